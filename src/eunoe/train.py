"""The one training loop: post-training, LM heads and fine-tuning all pass through ``train``.

It knows a method only by its hooks (methods/base.py). Batches are a function of the step and random numbers a function of
(seed, step, micro-batch), so a checkpoint needs no loader and no generator state, and a run that was killed ends in the
same bits as one that was not. Checkpoints fall between optimizer steps; micro-batches of a step that a kill cut short are
computed again.

accelerate gives the device, the processes and autocast. The model itself is not handed to it: it marks a model as prepared
and leaves it as it is the next time, so that only the first training of a model object had the precision asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from eunoe import checkpoint, ranks, stop
from eunoe.data.collate import Batch
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods.base import Batches, Loss, Method, Stage, restore
from eunoe.methods.together import terms
from eunoe.models.anatomy import anatomy
from eunoe.models.cross_entropy import at_least_float32
from eunoe.models.dropout import CheapDropout
from eunoe.models.half import HalfProducts
from eunoe.models.products import FastProducts
from eunoe.optim.protect import Protected
from eunoe.optim.schedules import make_scheduler
from eunoe.precision import auto
from eunoe.progress import Bar
from eunoe.recipe import LoopSettings
from eunoe.trackers import follow


@dataclass(kw_only=True)
class Job:
    """One training to carry out, or to resume where it stopped."""

    name: str
    """What is learnt (a domain, an end task); shown on the progress bar and in errors."""
    model: nn.Module
    batches: Batches
    loss: Loss
    optimizer: Callable[[nn.Module], Optimizer]
    """Makes the optimizer, after the method's ``begin``."""
    settings: LoopSettings
    seed: int
    method: Method | None = None
    stage: Stage | None = None
    """What the method is told of; default: one domain, ``name``."""
    folder: Path | None = None
    """Where checkpoints go while it trains; None: none are written."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What this training is (run, cell, what it starts from): checkpoints carry it, and those of another are refused."""
    observe: Callable[[int], Mapping[str, float]] | None = None
    """Called after each step with its number (from 1); what it returns is kept in ``Trained.observed``."""
    enough: Callable[[int], bool] | None = None
    """Called after each step with its number (from 1): True ends the training there (early stopping). What it remembers from
    step to step belongs into ``carry``, which checkpoints hold."""
    rate_scale: Callable[[int], float] | None = None
    """Step (from 0) -> what its learning rates are multiplied by (AWD-LSTM: the length of its text over the usual one)."""
    keep_last: bool = False
    """Write a checkpoint after the last step too: more follows, and a kill in it must not cost steps of this training."""
    carry: Any = None
    """State that a loss carries from batch to batch (hidden states): ``state_dict`` and ``load_state_dict``."""


@dataclass
class Trained:
    """What a training leaves: its curve (step from 1, loss per item, rate, gradient norm), what was observed on the way."""

    steps: int
    ended: bool = False
    """Did ``Job.enough`` end it before all its steps?"""
    curve: list[tuple[int, float, float, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    """Over all its parts, if it was stopped in between."""
    notes: list[str] = field(default_factory=list)
    observed: list[tuple[int, str, float]] = field(default_factory=list)
    """What ``Job.observe`` gave: (step, metric, value)."""

    def curve_csv(self) -> str:
        """The curve as ``curve.csv`` holds it, in full precision."""
        return "step,loss,lr,grad_norm\n" + "".join(
            f"{s},{loss!r},{lr!r},{norm!r}\n" for s, loss, lr, norm in self.curve
        )


def train(job: Job) -> Trained:
    """Carry out a job on whatever device accelerate finds; raises ``Interrupted`` (place saved) or ``EunoeError``.

    The loss of a step is the mean over all items of all its micro-batches and processes, however it is split.
    """
    if (tried := _TRIAL.get()) is not None:
        job = _cut(job, tried)
    settings, method = job.settings, job.method or Method(job.model, None, [])
    accelerator = _accelerator(settings)
    job.model.to(accelerator.device)
    products = _products(accelerator)
    stage = _bound(job, accelerator, products)
    torch.manual_seed(_seed(job.seed, len(job.batches), 0, 0))  # what a method draws does not depend on what ran before
    method.begin(stage)
    batches, extras = method.batches(stage), terms(method)
    optimizer, total = job.optimizer(job.model), len(batches)
    method.on_optimizer(optimizer)
    scheduler = make_scheduler(optimizer, settings.schedule, total, settings.warmup)
    identity = {**job.identity, "method": checkpoint.digest(method.state_dict())} if job.folder else {}
    done = _resume(job, identity, optimizer, scheduler, method)
    keep = Protected(optimizer, method.protected())  # of the tensors that move: after the model went to its device
    model = _wrapped(job.model, accelerator)
    model.train()
    began, world = time.monotonic() - done.seconds, accelerator.num_processes
    ends = job.keep_last or type(method).end is not Method.end  # then a kill in what follows costs no step
    with stop.watching(), Bar(job.name, total, done.steps) as bar:
        for step in range(total if done.ended else done.steps, total):
            # -- forward and backward over the micro-batches of this step
            method.before_step(step, total)
            micro = [{k: v.to(accelerator.device) for k, v in b.items()} for b in batches[step]]
            items, *extra_items = _items(job, extras, micro, step, accelerator)
            loss_sum = 0.0
            for i, batch in enumerate(micro):
                torch.manual_seed(_seed(job.seed, step, i, accelerator.process_index))
                last = i == len(micro) - 1
                with CheapDropout(), nullcontext() if last or world == 1 else model.no_sync():
                    with products():
                        loss = job.loss(model, batch)
                        objective = loss.total * (world / items)
                        for term, n in zip(extras, extra_items, strict=True):
                            if term.extra_items(batch):
                                objective = objective + term.extra_loss(batch, loss.outputs) * (world / n)
                        if last and (penalty := method.penalty()) is not None:
                            objective = objective + penalty
                    objective.backward()
                loss_sum += loss.total.item()
            value, stopping = _shared(loss_sum, accelerator)
            value /= items
            # -- gradients, update
            method.on_gradients()
            norm = _clip(job.model, settings)
            _refuse_nan(job, step, value, norm)
            rate = _step(job, optimizer, step)
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step()
            # -- record, save
            done.steps, tokens = step + 1, sum(b["input_ids"].numel() for b in micro) * world
            done.curve.append((done.steps, value, rate, norm))
            done.tokens, done.seconds = done.tokens + tokens, time.monotonic() - began
            bar.advance(tokens, value)
            follow(job.folder, {"loss": value, "lr": rate, "grad_norm": norm}, done.steps)
            if job.observe is not None:
                done.observed += [(done.steps, name, seen) for name, seen in job.observe(done.steps).items()]
                model.train()
            done.ended = job.enough is not None and job.enough(done.steps)
            asked, last_step = stop.asked() if world == 1 else stopping, done.ended or done.steps == total
            if job.folder is not None and (
                done.steps % settings.checkpoint_every == 0 or asked or (last_step and ends)
            ):
                _save(job, identity, done, optimizer, scheduler, method, accelerator)
            if asked:
                where = f"saved after step {done.steps} of {total}" if job.folder else "this short training starts over"
                raise Interrupted(
                    f"stopped by {asked} while learning {job.name}; {where}. Run the same command to resume."
                )
            if done.ended:
                break
    keep.release()
    if accelerator.device.type != "cpu":
        accelerator.free_memory()  # a full garbage collection, which on the CPU frees nothing more
    torch.manual_seed(_seed(job.seed, total, 1, 0))
    method.end(stage)
    return done


# -- a few steps, to know how long all would take -------------------------------------------------------------------
@dataclass
class Tried:
    """A training that was cut short: when it began and when each of its steps ended, on a monotonic clock in seconds."""

    total: int
    """Optimizer steps that it would have had."""
    times: list[float]

    @property
    def left_out(self) -> float:
        """Seconds that the steps which were left out would have taken: the first step is slower, and counts only if it is alone."""
        ended = self.times[1:] if len(self.times) > 2 else self.times
        return (self.total - len(self.times) + 1) * (ended[-1] - ended[0]) / (len(ended) - 1)


@contextmanager
def trial(steps: int, seconds: float) -> Iterator[list[Tried]]:
    """Within the block every training ends after ``steps`` steps, or the first two or more that take ``seconds``; it saves nothing.

    Yields the list of these trainings, in order. One step alone is taken where it takes ``seconds`` by itself.
    """
    tried: list[Tried] = []
    before = _TRIAL.set((steps, seconds, tried))
    try:
        yield tried
    finally:
        _TRIAL.reset(before)


_TRIAL: ContextVar[tuple[int, float, list[Tried]] | None] = ContextVar("trial", default=None)


def _cut(job: Job, trial: tuple[int, float, list[Tried]]) -> Job:
    steps, seconds, tried = trial
    cut, others = Tried(len(job.batches), [time.monotonic()]), job.enough
    tried.append(cut)

    def enough(step: int) -> bool:
        done = others is not None and others(step)
        cut.times.append(time.monotonic())
        return done or step >= steps or cut.times[-1] - cut.times[0] > seconds

    return replace(job, folder=None, enough=enough)


# -- the parts of a step ------------------------------------------------------------------------------------------
def _accelerator(settings: LoopSettings) -> Accelerator:
    """The device, the processes and the precision; what the surroundings say of gradient accumulation is overruled."""
    ranks.check()
    ranks.joined()
    AcceleratorState._reset_state()  # else a second training of the process could not have another precision
    once = GradientAccumulationPlugin(num_steps=1)
    chosen = auto() if settings.precision == "auto" else settings.precision
    mixed = {"float32": "no", "bf16": "bf16"}[chosen]
    return Accelerator(mixed_precision=mixed, cpu=ranks.on_cpu(), gradient_accumulation_plugin=once)


def _products(accelerator: Accelerator) -> Callable[[], ExitStack]:
    """Contexts in which the model computes in the run's precision; one set of rounded frozen weights serves them all."""
    faster = HalfProducts() if accelerator.mixed_precision == "bf16" else FastProducts()

    def entered() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(accelerator.autocast())  # nothing in float32
        stack.enter_context(faster)
        return stack

    return entered


def _bound(job: Job, accelerator: Accelerator, products: Callable[[], ExitStack]) -> Stage:
    """The stage, with its loss and its forward pass bound to the bare model in the run's precision."""
    stage = job.stage or Stage(name=job.name, domains=(job.name,), seed=job.seed, batches=job.batches)

    def loss(batch: Batch) -> Any:
        with products():
            return job.loss(job.model, {k: v.to(accelerator.device) for k, v in batch.items()})

    def forward(batch: Batch) -> tuple[Tensor, Tensor]:
        ids = batch["input_ids"].to(accelerator.device)
        mask = batch["attention_mask"].to(ids.device) if "attention_mask" in batch else torch.ones_like(ids)
        with products():
            return at_least_float32(anatomy(job.model).base(input_ids=ids, attention_mask=mask)[0]), mask

    return stage.bind(loss=loss, forward=forward)


def _wrapped(model: nn.Module, accelerator: Accelerator) -> Any:
    """The model as the loop calls it: itself, or its copy among several processes, which averages gradients."""
    if accelerator.num_processes == 1:
        return model
    own = None if accelerator.device.type == "cpu" else [accelerator.local_process_index]
    return DistributedDataParallel(model, device_ids=own)


def _items(job: Job, extras: list[Method], micro: list[Batch], step: int, accelerator: Accelerator) -> list[int]:
    """Over how many items the loss and each extra loss sum in this step, over all micro-batches and processes."""
    own = [sum(map(job.loss.items, micro)), *(sum(map(term.extra_items, micro)) for term in extras)]
    items: list[int] = accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum").tolist()
    if not items[0]:
        raise EunoeError(f"step {step + 1} of {job.name} has no target tokens: its text holds only tokens that the tokenizer calls "
                         "special, such as unknown words. Is it text of a language and script that the model knows?")  # fmt: skip
    return items


def _shared(loss_sum: float, accelerator: Accelerator) -> tuple[float, str | None]:
    """The sum of all processes' losses, and why all stop now: they stop after the same step, or one would wait for the others."""
    if accelerator.num_processes == 1:
        return loss_sum, None
    asked = stop.asked()
    both = torch.tensor([loss_sum, float(asked is not None)], dtype=torch.float64, device=accelerator.device)
    total, stopping = accelerator.reduce(both, "sum").tolist()
    return total, (asked or "a signal to another process") if stopping else None


def _step(job: Job, optimizer: Optimizer, step: int) -> float:
    """One update, at the learning rates of the schedule times ``job.rate_scale``; returns the first group's learning rate."""
    scale = 1.0 if job.rate_scale is None else job.rate_scale(step)
    scheduled = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups if scale != 1.0 else ():
        group["lr"] = group["lr"] * scale
    optimizer.step()
    rate = float(optimizer.param_groups[0]["lr"])
    for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
        group["lr"] = lr
    return rate


def _seed(seed: int, step: int, micro: int, rank: int) -> int:
    """One number per (seed, step, micro-batch, process), far apart from its neighbours."""
    value = 0x9E3779B97F4A7C15
    for part in (seed, step, micro, rank):
        value = ((value ^ (part + 1)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


def _clip(model: nn.Module, settings: LoopSettings) -> float:
    """Clip in place, by one norm over all weights or weight by weight; returns the norm before clipping."""
    grads = [p for p in model.parameters() if p.grad is not None]
    if settings.clip_by == "tensor" and settings.clip is not None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in grads if p.grad is not None])
        for p in grads:
            torch.nn.utils.clip_grad_norm_([p], settings.clip)
        return float(norm)
    return float(torch.nn.utils.clip_grad_norm_(grads, math.inf if settings.clip is None else settings.clip))


def _refuse_nan(job: Job, step: int, loss: float, norm: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    good = checkpoint.newest_whole(job.folder) if job.folder else None
    last = f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint of it"
    raise EunoeError(f"the loss is {loss} and the gradient norm {norm} at step {step + 1} of {job.name}; nothing was updated, {last}. "
                     f"Lower the learning rate (now {job.settings.lr:g}), clip gradients, or look at the data of this step.")  # fmt: skip


# -- checkpoints ---------------------------------------------------------------------------------------------------
def _save(
    job: Job, identity: Mapping[str, str], done: Trained, optimizer: Any, scheduler: Any, method: Method,
    accelerator: Accelerator,
) -> None:  # fmt: skip
    if job.folder is None or not accelerator.is_main_process:
        return
    state = {
        "weights": method.weights(),
        "optimizer": optimizer.state_dict(),
        "method": method.step_state(),
        "loop": {
            "scheduler": scheduler.state_dict(), "steps": done.steps, "ended": done.ended, "tokens": done.tokens, "seconds": done.seconds,
            "curve": done.curve, "observed": done.observed, "carry": job.carry.state_dict() if job.carry else None,
        },
    }  # fmt: skip
    checkpoint.save(job.folder / f"step-{done.steps:08d}", state, identity)
    checkpoint.prune(job.folder, keep=2)


def _resume(job: Job, identity: Mapping[str, str], optimizer: Optimizer, scheduler: Any, method: Method) -> Trained:
    """Restore the newest checkpoint that verifies; say which were skipped and why. One of another training is refused."""
    if job.folder is None:
        return Trained(0)
    saved, skipped = _newest(job.folder, identity)
    if saved is None:
        return Trained(0, notes=skipped)
    groups = saved.groups
    with checkpoint.forged(saved.folder):
        restore(method.weights(), groups["weights"], str(saved.folder))
        optimizer.load_state_dict(groups["optimizer"])
        scheduler.load_state_dict(groups["loop"]["scheduler"])
        method.load_step_state(groups["method"])
        loop = groups["loop"]
        if job.carry is not None:
            job.carry.load_state_dict(loop["carry"])
        return Trained(int(loop["steps"]), bool(loop["ended"]), [tuple(point) for point in loop["curve"]], int(loop["tokens"]),
                       float(loop["seconds"]), skipped, [tuple(point) for point in loop["observed"]])  # fmt: skip


def _newest(folder: Path, identity: Mapping[str, str]) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """``checkpoint.newest`` of the first process, for all: two that resumed from different steps would wait for each other."""
    own: list[checkpoint.Checkpoint | None] = []

    def look() -> tuple[Path | None, list[str]]:
        saved, skipped = checkpoint.newest(folder, identity)
        own.append(saved)
        return (saved.folder if saved else None), skipped

    chosen, skipped = ranks.decide(look)
    if not own:
        own.append(None if chosen is None else checkpoint.load(chosen, identity))
    return own[0], skipped


__all__ = ["Job", "Trained", "Tried", "train", "trial"]
