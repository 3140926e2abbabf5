"""CPT's protocol end to end, ours against the released way: post-train each domain, few-shot fine-tune, score full test sets.

Model and data are those of ``recipes/four_domains.yaml`` (MiniLM, four domains, method cpt, one seed), at its own small scale
and at ``--scale full``. Every unit of work is MEASURED in turn on a slice: a post-training step of at most 16 rows, an
epoch of fine-tuning each task, scoring 64 test rows of each task. The stages are those times MULTIPLIED by the counts
that the recipe makes: tokens, steps and rows, over all cells of its matrix. Not in either: reading and
tokenising text, copies of the model, checkpoints, held-out LM losses, which the release does not have.

The released way (https://github.com/UIC-Liu-Lab/CPT), done by plain transformers with the same plug-ins: every position scored by the
LM head, LayerNorms and LM head trained; each labelled row padded to 164 tokens; the full test set scored after every epoch
of fine-tuning. Its optimizer is torch's fused AdamW, which the release has not.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cpt import released
from benchmarks.measure import in_turn, taking_turns
from eunoe.data.collate import LMBatches, RowBatches, Rows, pad_rows
from eunoe.data.corpus import load_blocks
from eunoe.data.tasks import Task, load_task
from eunoe.evaluate.evaluator import predictions
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.models.heads import Classifier, lm_loss
from eunoe.models.load import LanguageModel, load_lm
from eunoe.optim.groups import scale_rates
from eunoe.plan import Plan, resolve
from eunoe.recipe import Recipe, load_recipe
from eunoe.train import Job, make_optimizer
from eunoe.transfer.finetune import encode_task, task_loss

ROOT = Path(__file__).resolve().parents[1]
PADDED, SLICE, SAMPLE, ROUNDS = 164, 16, 64, 2


@dataclass(frozen=True)
class Stage:
    """A unit of work measured both ways, and how many of them the protocol makes."""

    name: str
    unit: str
    seconds: tuple[float, float]
    """Of one unit: ours, the released way."""
    counts: tuple[int, int]

    @property
    def total(self) -> tuple[float, float]:
        return self.seconds[0] * self.counts[0], self.seconds[1] * self.counts[1]

    def line(self) -> str:
        ours, theirs = self.total
        return (
            f"  {self.name}: measured {1e3 * self.seconds[0]:.3g} and {1e3 * self.seconds[1]:.3g} ms a {self.unit}, "
            f"multiplied by {self.counts[0]:,} and {self.counts[1]:,}: {ours:,.0f} s and {theirs:,.0f} s ({theirs / ours:.1f} x)"
        )


def pad(batch: dict[str, Tensor], pad_id: int, length: int = PADDED) -> dict[str, Tensor]:
    """A batch of labelled rows padded to ``length`` tokens, as the release does with every row."""
    missing = length - batch["input_ids"].shape[1]
    fill = {"input_ids": pad_id}
    return {k: v if k == "labels" else F.pad(v, (0, missing), value=fill.get(k, 0)) for k, v in batch.items()}


def posttraining(plan: Plan, tokens: int) -> Stage:
    """Tokens of post-training: steps of at most ``SLICE`` rows, in turn."""
    settings, domain = plan.sequences[-1].training, plan.recipe.domains[0]
    rows = min(settings.batch, SLICE)

    def fresh() -> tuple[LanguageModel, Cpt, LMBatches]:
        lm, method = _model(plan.recipe)
        blocks = load_blocks(domain.corpus, lm.tokenizer, settings.block, "train")
        return lm, method, LMBatches(blocks, lm.objective, lm.mask_id, len(lm.tokenizer), rows, ROUNDS + 1, seed=0)

    lm, method, batches = fresh()
    job = Job(
        name="post-training", domain=domain.name, model=lm.model, method=method, batches=batches, loss=lm_loss, seed=0,
        settings=replace(settings, batch=rows), optimizer=lambda m: make_optimizer(settings.optimizer, m, settings.lr, ROUNDS + 1),
    )  # fmt: skip
    their_lm, their_method, _ = fresh()
    ours, theirs = taking_turns(job, released(their_lm.model, their_method, domain.name, batches))
    each = rows * settings.block
    return Stage(
        f"post-training (steps of {each:,} tokens)",
        "token",
        (median(ours) / each, median(theirs) / each),
        (tokens, tokens),
    )


def end_task(plan: Plan, task: Task, rows: tuple[Rows, Rows], cells: int) -> tuple[Stage, Stage]:
    """Fine-tuning steps of one task, a whole epoch in turn, and rows of its test set scored."""
    settings, (train_rows, test_rows) = plan.transfer_settings, rows
    lm, method = _model(plan.recipe)
    domain = plan.recipe.domains[0].name
    method.before_task(domain)
    method.after_task(domain)
    epoch = RowBatches(train_rows, settings.batch, 1, seed=0).per_epoch
    batches = RowBatches(train_rows, settings.batch, 1, seed=0, steps=epoch + 1)

    def fresh() -> tuple[Classifier, dict[str, float]]:
        model = Classifier(deepcopy(lm.model), len(task.labels), "first", settings.dropout)
        return model, method.for_end_task(model, domain)

    model, rates = fresh()
    job = Job(
        name=task.name, model=model, batches=batches, loss=task_loss, seed=0, settings=settings,
        optimizer=lambda m: scale_rates(make_optimizer(settings.optimizer, m, settings.lr, epoch + 1), m, rates),
    )  # fmt: skip
    theirs, _ = fresh()
    tuned = taking_turns(job, _padded_steps(theirs, train_rows, settings.batch, epoch + 1))
    chosen = np.random.default_rng(0).choice(len(test_rows), min(SAMPLE, len(test_rows)), replace=False).tolist()
    some = Rows([test_rows.inputs[i] for i in chosen], test_rows.labels[chosen], test_rows.pad_id)
    batch = plan.recipe.evaluation.batch
    scored = in_turn(
        lambda: _seconds(lambda: predictions(model, some, task.labels, batch)),
        lambda: _seconds(lambda: _padded_scores(theirs, some, batch)),
        rounds=ROUNDS,
    )
    epochs = round(settings.epochs)
    per = [median(column) / len(some) for column in scored]
    mean = [sum(column) / len(column) for column in tuned]  # an epoch's last batch is smaller
    steps, test = cells * epoch * epochs, cells * len(test_rows)
    return (
        Stage(f"fine-tuning {task.name}", "step", (mean[0], mean[1]), (steps, steps)),
        Stage(f"scoring {task.name}", "row", (per[0], per[1]), (test, test * epochs)),
    )


def _model(recipe: Recipe) -> tuple[LanguageModel, Cpt]:
    torch.manual_seed(0)
    lm = load_lm(recipe.model)
    return lm, Cpt(lm.model, CptSettings(), [d.name for d in recipe.domains])


def _padded_steps(model: Classifier, rows: Rows, batch: int, steps: int) -> Callable[[], float]:
    order = RowBatches(rows, batch, 1, seed=0, steps=steps)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.01, fused=True)
    places = iter(range(steps))

    def step() -> float:
        inputs = pad(order[next(places)][0], rows.pad_id)
        began = time.perf_counter()
        labels = inputs.pop("labels")
        F.cross_entropy(model(**inputs), labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    return step


@torch.inference_mode()
def _padded_scores(model: Classifier, rows: Rows, batch: int) -> None:
    model.eval()
    for start in range(0, len(rows), batch):
        inputs = pad(pad_rows(rows, range(start, min(start + batch, len(rows)))), rows.pad_id)
        inputs.pop("labels")
        model(**inputs).argmax(-1).tolist()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def protocol(scale: str | None) -> None:
    """Measure and print one scale of the recipe."""
    recipe = load_recipe(ROOT / "recipes" / "four_domains.yaml", scale=scale)
    assert isinstance(recipe, Recipe)
    plan = resolve(recipe)
    sequence = next(s for s in plan.sequences if s.label == "cpt")
    cells = Counter(cell.task for cell in plan.cells(sequence) if cell.end_task)
    tokenizer_of = load_lm(recipe.model)
    tokens, stages = 0, []
    for domain in recipe.domains:
        blocks = load_blocks(domain.corpus, tokenizer_of.tokenizer, recipe.training.block, "train")
        steps = max(1, round(len(blocks) * sequence.training.epochs / sequence.training.batch))
        tokens += steps * sequence.training.batch * recipe.training.block
    stages.append(posttraining(plan, tokens))
    for domain in recipe.domains:
        assert domain.task is not None
        task = load_task(domain.name, domain.task, domain.corpus)
        rows = encode_task(tokenizer_of, task, plan.transfer_settings)
        stages += end_task(plan, task, rows, cells[domain.name])
    print(
        f"scale {scale or 'small'}: {recipe.training.block} tokens a block, {sum(cells.values())} end tasks; ours and the released way"
    )
    for stage in stages:
        print(stage.line())
    print("  sums of the multiplied times:")
    both = [0.0, 0.0]
    for kind in ("post-training", "fine-tuning", "scoring"):
        ours, theirs = (sum(stage.total[i] for stage in stages if stage.name.startswith(kind)) for i in (0, 1))
        both = [both[0] + ours, both[1] + theirs]
        print(f"    {kind}: {ours:,.0f} s and {theirs:,.0f} s ({theirs / ours:.1f} x)")
    print(f"    all: {both[0]:,.0f} s and {both[1]:,.0f} s: {both[1] / both[0]:.1f} x", flush=True)


def main() -> None:
    shared = Path(os.environ.setdefault("EUNOE_SHARED", str(ROOT.parent / "shared")))
    if not (shared / "data").is_dir():
        print(
            f"skipped: {shared / 'data'} is not here. Set EUNOE_SHARED to the folder whose `data` holds the recipe's text."
        )
        return
    for scale in (None, "full"):
        protocol(scale)
