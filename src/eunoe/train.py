"""The one training loop: post-training, LM heads and fine-tuning all pass through ``train``.

It knows a method only by its six hooks (methods/base.py). Batches are a function of the step and random numbers a
function of (seed, step, micro-batch), so a checkpoint needs no loader and no generator state, and a run that was
killed ends in the same bits as one that was not. Checkpoints fall between optimizer steps; micro-batches of a step that
a kill cut short are computed again.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe import checkpoint, ranks
from eunoe.errors import EunoeError, Interrupted
from eunoe.lookup import lookup
from eunoe.methods.base import Method, trainable
from eunoe.models.dropout import CheapDropout
from eunoe.optim.protect import Protected
from eunoe.optim.schedules import make_scheduler
from eunoe.optim.table import OPTIMIZERS
from eunoe.progress import Bar
from eunoe.recipe import LoopSettings, build, named

Loss = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, int, Any]]
"""(model, micro-batch) -> summed loss, over how many items, outputs (for a method's penalty)."""


class Batches(Protocol):
    """``batches[step]``: the micro-batches of an optimizer step; the same for the same step, in any order of asking."""

    def __len__(self) -> int: ...
    def __getitem__(self, step: int, /) -> list[dict[str, Tensor]]: ...


@dataclass(kw_only=True)
class Job:
    """One training to carry out, or to take up where it stopped."""

    name: str
    """What is learnt (a domain, an end task); shown on the progress bar and in errors."""
    model: nn.Module
    batches: Batches
    loss: Loss
    optimizer: Callable[[nn.Module], Optimizer]
    """Makes the optimizer, after the method's ``before_task``."""
    settings: LoopSettings
    seed: int
    method: Method | None = None
    folder: Path | None = None
    """Where checkpoints go while it trains; None: none are written."""
    domain: str | None = None
    """Handed to the method's hooks; default ``name``."""
    observe: Callable[[int], Mapping[str, float]] | None = None
    """Called after each step with its number (from 1); what it returns is kept in ``Trained.observed``."""


@dataclass
class Trained:
    """What a training leaves: its curve (step from 1, loss per item, rate, gradient norm), what was seen on the way."""

    steps: int
    curve: list[tuple[int, float, float, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    observed: list[tuple[int, str, float]] = field(default_factory=list)
    """What ``Job.observe`` saw: (step, metric, value)."""

    def curve_csv(self) -> str:
        """The curve as ``curve.csv`` holds it, in full precision."""
        return "step,loss,lr,grad_norm\n" + "".join(
            f"{s},{loss!r},{lr!r},{norm!r}\n" for s, loss, lr, norm in self.curve
        )


def train(job: Job) -> Trained:
    """Carry out a job on whatever device accelerate finds; raises ``Interrupted`` (place saved) or ``EunoeError``.

    The loss of a step is the mean over all asked items of all its micro-batches and processes, however it is split.
    """
    settings, method = job.settings, job.method or Method(job.model, None, [])
    domain = job.domain or job.name
    method.before_task(domain)
    AcceleratorState._reset_state()  # else a second training of the process could not have another precision
    accelerator = Accelerator(mixed_precision=_precision(settings), cpu=ranks.on_cpu())
    optimizer = job.optimizer(job.model)
    scheduler = make_scheduler(optimizer, settings.schedule, len(job.batches), settings.warmup)
    done = _resume(job, optimizer, scheduler, method)
    keep = Protected(optimizer, method.protected())  # what is closed may be known only from the checkpoint
    model = accelerator.prepare(job.model)
    optimizer = accelerator.prepare(optimizer)
    model.train()
    began, total = time.monotonic(), len(job.batches)
    with _stop_signals() as stop, Bar(job.name, total, done.steps) as bar:
        for step in range(done.steps, total):
            # -- forward and backward over the micro-batches of this step
            progress = step / total
            method.before_step(progress)
            micro = [{k: v.to(accelerator.device) for k, v in b.items()} for b in job.batches[step]]
            items, loss_sum = _items(micro, accelerator), 0.0
            if not items:
                raise EunoeError(f"step {step + 1} of {job.name} asks for nothing: its text holds only tokens that the tokenizer calls "
                                 "special, such as unknown words. Is it text of a language and script that the model knows?")  # fmt: skip
            for i, batch in enumerate(micro):
                torch.manual_seed(_seed(job.seed, step, i, accelerator.process_index))
                last = i == len(micro) - 1
                with CheapDropout(), nullcontext() if last else accelerator.no_sync(model):
                    loss, _, outputs = job.loss(model, batch)
                    total_loss = loss * (accelerator.num_processes / items)
                    penalty = method.penalty(batch, outputs)
                    if penalty is not None:
                        total_loss = total_loss + penalty / len(micro)
                    accelerator.backward(total_loss)
                loss_sum += loss.item()
            told = torch.tensor([loss_sum, float(stop.asked is not None)], dtype=torch.float64)
            told = told.to(accelerator.device) if accelerator.num_processes > 1 else told
            total_sum, stopping = accelerator.reduce(told, "sum").tolist()
            value = total_sum / items
            # -- gradients, update
            method.on_gradients(progress)
            norm = _clip(job.model, settings, accelerator)
            _refuse_nan(job, step, value, norm)
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step()
            # -- record, save
            done.steps, tokens = step + 1, sum(b["input_ids"].numel() for b in micro) * accelerator.num_processes
            done.curve.append((done.steps, value, rate, norm))
            done.tokens += tokens
            bar.advance(tokens, value)
            if job.observe is not None:
                done.observed += [(done.steps, name, seen) for name, seen in job.observe(done.steps).items()]
                model.train()
            asked = stop.asked  # once: a signal may come between the two questions
            if accelerator.num_processes > 1:  # all stop after the same step, or one would wait for the others
                asked = (asked or "a signal to another process") if stopping else None
            if job.folder is not None and (done.steps % settings.checkpoint_every == 0 or asked):
                _save(job, done, optimizer, scheduler, method, accelerator)
            if asked:
                where = (
                    f"saved after step {done.steps} of {total}" if job.folder else "it starts this short training over"
                )
                raise Interrupted(
                    f"stopped by {asked} while learning {job.name}; {where}. Run the same command to go on."
                )
    done.seconds = time.monotonic() - began
    keep.release()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if accelerator.device.type != "cpu":
        accelerator.free_memory()  # a full garbage collection, which on the CPU frees nothing more
    method.after_task(domain)
    return done


def optimizer_settings(choice: Any, where: str) -> tuple[Any, Any, dict[str, Any]]:
    """A recipe's choice of optimizer -> its table entry, its typed settings, and both as one plain mapping."""
    name, options = named(choice, where)
    entry = lookup(OPTIMIZERS, name, "optimizer")
    settings = build(entry.settings, options, f"{where} ({name})")
    return entry, settings, {"name": name, **asdict(settings)}


def make_optimizer(
    choice: Any, model: nn.Module, lr: float, steps: int, anchor: Mapping[str, Tensor] | None = None
) -> Optimizer:
    """The optimizer that a recipe chose, over the weights of ``model`` that train; ``anchor``: what RecAdam recalls."""
    entry, settings, _ = optimizer_settings(choice, "optimizer")
    built: Optimizer = entry.build(model, settings, lr, steps=steps, anchor=anchor)
    return built


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training may have changed, by name."""
    return {name: p.detach() for name, p in trainable(model)}


def restore(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put saved weights back; raises ``EunoeError`` where names or shapes do not match."""
    named = dict(trainable(model))
    wrong = sorted(set(named) ^ set(tensors)) or [n for n, t in tensors.items() if named[n].shape != t.shape]
    if wrong:
        raise EunoeError(
            f"{where} does not fit this model: {', '.join(wrong[:3])} differ. It belongs to another recipe."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            named[name].copy_(value)


def _items(micro: list[dict[str, Tensor]], accelerator: Accelerator) -> int:
    return int(accelerator.reduce(torch.tensor(sum(len(b["labels"]) for b in micro), device=accelerator.device), "sum"))


def _seed(seed: int, step: int, micro: int, rank: int) -> int:
    """One number per (seed, step, micro-batch, process), far apart from its neighbours."""
    value = 0x9E3779B97F4A7C15
    for part in (seed, step, micro, rank):
        value = ((value ^ (part + 1)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


def _precision(settings: LoopSettings) -> str:
    """bf16 where asked for, or where ``auto`` finds an accelerator that has it; a CPU's bf16 is slower than float32."""
    if settings.precision == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return {"float32": "no", "bf16": "bf16"}[settings.precision]


def _clip(model: nn.Module, settings: LoopSettings, accelerator: Accelerator) -> float:
    """Clip in place, by one norm over all weights or weight by weight; returns the norm before clipping."""
    grads = [p for p in model.parameters() if p.grad is not None]
    if settings.clip_by == "tensor" and settings.clip is not None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in grads if p.grad is not None])
        for p in grads:
            torch.nn.utils.clip_grad_norm_([p], settings.clip)
        return float(norm)
    return float(accelerator.clip_grad_norm_(grads, math.inf if settings.clip is None else settings.clip))


def _refuse_nan(job: Job, step: int, loss: float, norm: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    held = checkpoint.newest(job.folder)[0] if job.folder else None
    last = f"the last good checkpoint is {held.folder}" if held else "there is no earlier checkpoint of it"
    raise EunoeError(f"the loss is {loss} and the gradient norm {norm} at step {step + 1} of {job.name}; nothing was updated, {last}. "
                     f"Lower the rate (now {job.settings.lr:g}), clip gradients, or look at the data of this step.")  # fmt: skip


def _save(job: Job, done: Trained, optimizer: Any, scheduler: Any, method: Method, accelerator: Accelerator) -> None:
    if job.folder is None or not accelerator.is_main_process:
        return
    state = {
        "weights": weights(job.model),
        "optimizer": optimizer.state_dict(),
        "method": method.state_dict(),
        "loop": {
            "scheduler": scheduler.state_dict(),
            "steps": done.steps,
            "tokens": done.tokens,
            "curve": done.curve,
            "observed": done.observed,
        },
    }
    checkpoint.save(job.folder / f"step-{done.steps:08d}", state)
    checkpoint.prune(job.folder, keep=2)


def _resume(job: Job, optimizer: Optimizer, scheduler: Any, method: Method) -> Trained:
    """Take up the newest checkpoint that verifies; say which were passed over and why."""
    if job.folder is None:
        return Trained(0)
    held, skipped = checkpoint.newest(job.folder)
    if held is None:
        return Trained(0, notes=skipped)
    groups = held.groups
    restore(job.model, groups["weights"], str(held.folder))
    optimizer.load_state_dict(groups["optimizer"])
    scheduler.load_state_dict(groups["loop"]["scheduler"])
    method.load_state_dict(groups["method"])
    loop = groups["loop"]
    return Trained(loop["steps"], [tuple(point) for point in loop["curve"]], loop["tokens"], notes=skipped,
                   observed=[tuple(point) for point in loop["observed"]])  # fmt: skip


class _Stop:
    asked: str | None = None


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask the loop to save and stop after the step it is in; a second one stops at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: Any) -> None:
        stop.asked = signal.Signals(number).name
        for s, handler in before.items():
            signal.signal(s, handler)

    for s in before:
        signal.signal(s, ask)
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    if stop.asked:  # it came after the last step had looked: it must not be lost
        signal.raise_signal(signal.Signals[stop.asked])
