"""CPT's protocol end to end, ours against the released way: post-train each domain, few-shot fine-tune, score full test sets.

``recipes/cpt_small.yaml`` with the plug-ins in their default place, its first order and seed, the WHOLE matrix (ten end tasks) and
the FULL test sets. Both ways are carried out from the first step to the last, one after the other; nothing is multiplied.

Ours is ``eunoe.run_recipe`` as ``eunoe run --jobs 1`` calls it, reading, held-out scores, checkpoints and report included; its stages are
timed where they call ``train`` and the scorers. The released way (https://github.com/UIC-Liu-Lab/CPT) is plain transformers
with the same plug-ins, rows and numbers of steps: every position scored by the LM head; LayerNorms and LM head trained, and
thrown away with the next domain; each labelled row padded to 164 tokens; the full test set scored after every epoch of
fine-tuning. To its favour: it reads no text in its time, writes nothing, scores no held-out text, has torch's fused AdamW, and
its test rows are scored in bfloat16 where ours are in float32.

Times are processor time on one thread, which other work on the machine moves less than the clock on the wall. It takes an hour
and more, so ``python -m benchmarks`` without names leaves it out. ``EUNOE_BENCH_ROWS=N`` cuts the test sets to see it work.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

import eunoe.plan
import eunoe.sequence
import eunoe.transfer.finetune
import eunoe.transfer.phase
from benchmarks.cpt import domain_stage, released
from eunoe.cells import Board
from eunoe.data.collate import LMBatches, RowBatches, Rows, pad_rows
from eunoe.data.tasks import Task
from eunoe.engine import run
from eunoe.methods.base import Method
from eunoe.methods.masked import END_TASK_LR
from eunoe.models.heads import Classifier
from eunoe.plan import Measure, RunPlan, resolve
from eunoe.recipe import Recipe, load_recipe
from eunoe.report.schema import read_rows
from eunoe.sequence import Walk
from eunoe.transfer.finetune import encode_task

ROOT = Path(__file__).resolve().parents[1]
PADDED = 164
STAGES = {
    "post-training": (eunoe.sequence, "train"),
    "fine-tuning": (eunoe.transfer.phase, "train"),
    "scoring end tasks": (eunoe.transfer.finetune, "task_scores"),
    "scoring held-out text": (eunoe.plan, "lm_score"),
}
"""Stage -> where the run calls what does it: a module and a name in it."""
REST = "the rest: reading, models, checkpoints, report"


class Stages(defaultdict[str, float]):
    """Seconds of processor time by stage."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self[stage] += time.process_time() - began

    def watch(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts for ``stage`` from now on."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(stage):
                return function(*args, **kwargs)

        return timed

    @property
    def total(self) -> float:
        return sum(self.values())


def ours(recipe: Recipe, out: Path) -> Stages:
    """Carry out the recipe in the folder ``out``, as ``eunoe run`` does."""
    stages, whole = Stages(), Stages()
    with ExitStack() as stack, whole.timed(REST):
        for stage, (module, name) in STAGES.items():
            stack.enter_context(patch.object(module, name, stages.watch(stage, getattr(module, name))))
        run(recipe, out)
    stages[REST] = whole[REST] - stages.total
    return stages


def owed(plan: RunPlan) -> list[Measure]:
    """The end tasks of the plan's last sequence, in order."""
    measures = [cell.work for cell in plan.cells(Board(plan.out, None)) if isinstance(cell.work, Measure)]
    return [work for work in measures if work.way == plan.sequences[-1] and work.end_task]


def theirs(plan: RunPlan) -> tuple[Stages, dict[tuple[str, ...], float]]:
    """The protocol of a prepared plan the released way; also the accuracy on each (domains learnt..., task)."""
    stages, released_scores = Stages(), {}
    sequence, material = plan.sequences[-1], plan.material
    assert material is not None
    walk = Walk(sequence, plan.recipe.model, plan.out)
    lm, method = walk.lm, walk.method
    base = {name: p.clone() for name, p in lm.model.named_parameters() if "_plugin." not in name}
    for i, domain in enumerate(sequence.order):
        settings, blocks = sequence.training, material.train[domain]
        steps = settings.steps or max(1, round(len(blocks) * settings.epochs / settings.batch))
        batches = LMBatches(blocks, lm.objective, lm.mask_id, len(lm.tokenizer), settings.batch, steps, seed=i)
        with stages.timed("post-training"):
            step = released(lm.model, method, domain, batches, half=settings.precision == "bf16")
            for _ in range(steps):
                step()
            method.end(domain_stage(domain, batches))
            with torch.no_grad():
                for name, p in lm.model.named_parameters():
                    if name in base:
                        p.copy_(base[name])
        for work in owed(plan):
            if work.i == i:
                task = material.tasks[work.task][work.shots_seed]
                rows = encode_task(lm, task, plan.transfer_settings)
                released_scores[(*work.learnt, work.task)] = end_task(plan, lm.model, method, task, rows, stages)
    return stages, released_scores


def end_task(
    plan: RunPlan, lm: torch.nn.Module, method: Method, task: Task, rows: tuple[Rows, Rows], stages: Stages
) -> float:
    """Fine-tune a copy on padded rows, scoring the padded test set after every epoch; returns the last accuracy."""
    settings, half = plan.transfer_settings, plan.transfer_settings.precision == "bf16"
    batches = RowBatches(rows[0], settings.batch, settings.epochs, seed=0)
    correct = 0
    with stages.timed("fine-tuning"):
        model = Classifier(deepcopy(lm), len(task.labels), "first", settings.dropout)
        rates = method.for_end_task(model, task.name)
        slow = [p for name, p in model.named_parameters() if p.requires_grad and name in rates]
        fast = [p for name, p in model.named_parameters() if p.requires_grad and name not in rates]
        groups = [{"params": fast}, {"params": slow, "lr": settings.lr * END_TASK_LR}]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    for step in range(len(batches)):
        with stages.timed("fine-tuning"), torch.autocast("cpu", torch.bfloat16, enabled=half):
            model.train()
            inputs = pad(batches[step][0], rows[0].pad_id, PADDED)
            labels = inputs.pop("labels")
            F.cross_entropy(model(**inputs).float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(fast + slow, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % batches.per_epoch == 0:
            with stages.timed("scoring end tasks"), torch.autocast("cpu", torch.bfloat16, enabled=half):
                correct = padded_scores(model, rows[1], plan.recipe.evaluation.batch)
    return correct / len(rows[1])


@torch.inference_mode()
def padded_scores(model: Classifier, rows: Rows, batch: int) -> int:
    """How many test rows are answered rightly, all padded to ``PADDED`` tokens, in the order they come."""
    model.eval()
    correct = 0
    for start in range(0, len(rows), batch):
        inputs = pad(pad_rows(rows, range(start, min(start + batch, len(rows)))), rows.pad_id, PADDED)
        labels = inputs.pop("labels")
        correct += int((model(**inputs).argmax(-1) == labels).sum())
    return correct


def pad(batch: dict[str, Tensor], pad_id: int, length: int) -> dict[str, Tensor]:
    """A batch of labelled rows padded to ``length`` tokens, as the release does with every row."""
    missing = length - batch["input_ids"].shape[1]
    fill = {"input_ids": pad_id}
    return {k: v if k == "labels" else F.pad(v, (0, missing), value=fill.get(k, 0)) for k, v in batch.items()}


def protocol_recipe(rows: int | None) -> Recipe:
    """The small recipe, one system, order and seed, with the whole matrix and the full test sets (or so many rows)."""
    file = ROOT / "recipes" / "cpt_small.yaml"
    small = load_recipe(file)
    assert isinstance(small, Recipe)
    small.methods = [m for m in small.methods if isinstance(m, dict) and m.get("placement") == "sequential"]
    small.orders = dict(list(small.orders.items())[:1])
    small.seeds = small.seeds[:1]
    small.evaluation.matrix = "full"
    for domain in small.domains:
        assert domain.task is not None
        domain.task.test_rows = rows
    return small


def table(own_way: Stages, released_way: Stages) -> Iterator[str]:
    for stage in [*STAGES, REST]:
        against = (
            f"{released_way[stage]:8,.0f} s   {released_way[stage] / own_way[stage]:.1f} x"
            if released_way[stage]
            else "       -"
        )
        yield f"  {stage:48} {own_way[stage]:8,.0f} s {against}"
    yield f"  {'all':48} {own_way.total:8,.0f} s {released_way.total:8,.0f} s   {released_way.total / own_way.total:.1f} x"


def main() -> None:
    shared = Path(os.environ.setdefault("EUNOE_SHARED", str(ROOT.parent / "shared")))
    if not (shared / "data").is_dir():
        print(
            f"skipped: {shared / 'data'} is not here. Set EUNOE_SHARED to the folder whose `data` holds the recipe's text."
        )
        return
    cut = os.environ.get("EUNOE_BENCH_ROWS")
    recipe = protocol_recipe(int(cut) if cut else None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        own_way = ours(recipe, Path(folder) / "run")
        scores = {
            (*row.learnt, row.task): row.value
            for row in read_rows(Path(folder) / "run" / "rows.jsonl")
            if row.metric == "accuracy"
        }
    plan = resolve(recipe)
    with tempfile.TemporaryDirectory() as folder:
        plan.prepare(Path(folder))  # reads; nothing is written
    assert plan.material is not None
    rows = [len(task.test) for samples in plan.material.tasks.values() for task in samples.values()]
    split = ", ".join(f"{stage} {own_way[stage]:,.0f} s" for stage in [*STAGES, REST])
    print(
        f"test sets of {', '.join(f'{n:,}' for n in rows)} rows; ours took {own_way.total:,.0f} s ({split}); now the released way",
        flush=True,
    )
    released_way, released_scores = theirs(plan)
    print(
        f"processor time, one thread; {len(released_scores)} end tasks, {plan.transfer_settings.epochs:g} epochs each; "
        "ours and the released way"
    )
    print("\n".join(table(own_way, released_way)))
    both = [(scores[key], released_scores[key]) for key in released_scores]
    means = [100 * sum(column) / len(both) for column in zip(*both, strict=True)]
    print(
        f"  accuracy, mean of the {len(both)} end tasks: ours {means[0]:.1f}, the released way {means[1]:.1f} points",
        flush=True,
    )
    torch.set_num_threads(threads)
