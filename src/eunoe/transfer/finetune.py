"""Fine-tuning on a labelled end task: the transfer recipe of CPT and of RecAdam.

A fresh classifier on the trunk's first (decoders: last) token; everything trains. Defaults are CPT's end tasks
(arXiv 2210.05549, released settings): batch 20, learning rate 5e-5 (plug-ins 3e-5), 20 epochs, linear decay without warm-up,
AdamW with weight decay 0.01, 164 tokens, the last epoch is scored. ``optimizer: recadam`` pulls the trunk back to where
it started (EMNLP 2020, arXiv 2004.12651), the classifier learns freely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.choices import choose, make_optimizer, written_out
from eunoe.data.collate import Batch, RowBatches, Rows, encode_rows, row_steps
from eunoe.data.tasks import Example, Task
from eunoe.evaluate.evaluator import Score, predictions, task_scores
from eunoe.lookup import lookup
from eunoe.models.anatomy import anatomy
from eunoe.models.cross_entropy import at_least_float32, cross_entropy
from eunoe.models.heads import Classifier, LossSum, Pooling
from eunoe.models.load import LanguageModel, refuse_longer
from eunoe.optim.advice import lambda_curve
from eunoe.optim.advice import warnings as advice
from eunoe.optim.names import plain_names
from eunoe.optim.schedules import SCHEDULES
from eunoe.optim.table import OPTIMIZERS
from eunoe.recipe import Batch as BatchSize
from eunoe.recipe import Below1, Epochs, LoopSettings, Positive
from eunoe.transfer.base import Course, Start, Tuned
from eunoe.transfer.encoded import encoded
from eunoe.transfer.phase import phase
from eunoe.transfer.watch import Watch, best_of


@dataclass(kw_only=True)
class FinetuneSettings(LoopSettings):
    """Fine-tuning; the defaults are CPT's end tasks."""

    batch: BatchSize = 20
    """Labelled rows in one optimizer step."""
    epochs: Epochs = 20
    """Passes over the training rows; the last one is scored (there is no validation set)."""
    lr: Positive = 5e-5
    """Highest learning rate; a method may lower it for its own weights (CPT's plug-ins: x 0.6)."""
    warmup: Below1 = 0.0
    """Share of the steps over which the learning rate rises."""
    optimizer: Any = field(default_factory=lambda: {"name": "adamw", "weight_decay": 0.01})
    """A name of the optimizer table, or a mapping with its options."""
    max_length: BatchSize = 164
    """Tokens of a row; longer ones are cut."""
    freeze: Literal["none", "backbone"] = "none"
    """``backbone``: the pretrained weights stay, plug-ins and classifier train."""
    dropout: Below1 = 0.1
    """Dropout rate of the classifier."""
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    """Which state the classifier reads: of the first token, of the last, or the mean; auto: first of encoders, last of decoders."""
    start: Literal["pretrained", "random"] = "pretrained"
    """``random``: the trunk starts afresh, as RecAdam's script does; its optimizer pulls it to the pretrained weights."""
    evaluate_every: Positive | None = None
    """Score the test rows every so many steps (below 1: share of the run) and report the best of them too; null: only
    after the last step."""
    observe_every: Positive | None = None
    """Record the distance to the pretrained weights every so many steps (below 1: share of the run)."""


def resolve(settings: FinetuneSettings, where: str) -> FinetuneSettings:
    """The settings with names looked up and the optimizer's options written out; raises ``EunoeError`` for what is unknown."""
    lookup(SCHEDULES, settings.schedule, f"schedule in {where}")
    return replace(settings, optimizer=written_out(settings.optimizer, f"{where}.optimizer"))


def check(lm: LanguageModel, task: Task, settings: FinetuneSettings, where: str) -> None:
    """Refuse a length that the model or the task's texts do not fit."""
    refuse_longer(lm, settings.max_length, f"{where}.max_length")
    encode_task(lm, task, settings)


def course(settings: FinetuneSettings, rows: int) -> Course | None:
    """The course of RecAdam's lambda, its pull and the learning rate on ``rows`` rows; None for other optimizers."""
    name, _, options = choose(OPTIMIZERS, settings.optimizer, "optimizer", "optimizer")
    if name != "recadam":
        return None
    steps = row_steps(rows, settings.batch, settings.epochs, settings.steps)
    loop = (settings.lr, steps, settings.schedule, settings.warmup)
    return Course(steps, lambda_curve(options, *loop), advice(options, *loop, start=settings.start))


def encode_task(lm: LanguageModel, task: Task, settings: FinetuneSettings) -> tuple[Rows, Rows]:
    """The task's training and test rows as token ids; the last few tasks are kept."""
    return encoded(
        lm.tokenizer,
        task,
        ("finetune", settings.max_length, lm.token_types),
        lambda: (
            encode_examples(lm, task, task.train, settings.max_length),
            encode_examples(lm, task, task.test, settings.max_length),
        ),
    )


def encode_examples(lm: LanguageModel, task: Task, examples: Sequence[Example], max_length: int) -> Rows:
    """Rows of ``task`` as token ids; a row without a label (a test row) gets class 0, or 0.

    A choice is read after its context, and after its question where there is one, as the second text of a pair.
    """
    texts: list[tuple[str, str | None]] = [(e.text, e.pair) for e in examples]
    if task.choices:
        texts = [(e.text, f"{e.pair} {choice}" if e.pair else choice) for e in examples for choice in e.choices]
    return encode_rows(
        lm.tokenizer, texts, gold_labels(task, examples), max_length, lm.token_types, each=task.choices or 1
    )


def gold_labels(task: Task, examples: Sequence[Example]) -> list[int] | list[float]:
    """Labels as a loss reads them: a class's place, a number, a choice's place; 0 where there is none."""
    if task.kind == "classification":
        index = {label: i for i, label in enumerate(task.labels)}
        return [0 if e.label == "" else index[str(e.label)] for e in examples]
    if task.kind == "choice":
        return [int(str(e.label)) for e in examples]
    numbers = [float(str(e.label)) for e in examples]
    return [0.0 if math.isnan(number) else number for number in numbers]


def finetune(start: Start, settings: FinetuneSettings) -> Tuned:
    """Fine-tune a copy of the model on the task and score it on the test rows; the model itself is not changed."""
    lm, task, seed = start.lm, start.task, start.seed
    train_rows, test_rows = encode_task(lm, task, settings)
    torch.manual_seed(seed)
    start.method.activate(start.domain)  # what is copied, and where distances are counted from, is the domain's
    own: Pooling = "first" if lm.objective == "masked" else "last"
    pooling = own if settings.pooling == "auto" else settings.pooling
    model = Classifier(deepcopy(lm.model), max(len(task.labels), 1), pooling, settings.dropout)
    anchor = {n: p.detach() for n, p in anatomy(lm.model).base.named_parameters()}
    if settings.start == "random":
        start_afresh(model.trunk, lm.model)
    rates = start.method.for_end_task(model, start.domain, settings.freeze)
    batches = RowBatches(train_rows, settings.batch, settings.epochs, seed, settings.steps, settings.micro_batch)

    def score() -> list[Score]:
        return task_scores(model, test_rows, task, start.batch)

    watch = Watch(score, model.trunk, anchor, len(batches), settings.evaluate_every, settings.observe_every)
    recalled = anchor if settings.start == "random" else None
    done = phase(
        model, batches, task_loss, lambda m: make_optimizer(settings.optimizer, m, settings.lr, len(batches), recalled),
        settings, None, rates, start.folder, name=start.name or f"end task {task.name}", seed=seed, identity=start.identity,
        observe=watch.observe if watch.asked else None,
    )  # fmt: skip
    best, best_step = best_of(done.observed, len(test_rows))

    def predict(examples: Sequence[Example]) -> list[Any]:
        return predictions(model, encode_examples(lm, task, examples, settings.max_length), task, start.batch)

    return Tuned(scores=score(), phases={"finetune": done}, predict=predict, trunk=model.trunk, best=best,
                 best_step=best_step)  # fmt: skip


def start_afresh(trunk: nn.Module, lm: nn.Module, above: int | None = None) -> None:
    """Give ``trunk``, a copy of the base of ``lm`` or ``lm`` itself, new random weights, as its library makes them for a fresh model.

    ``above``: only the base's layers from this one on (counted from 0); None: all of it. Plug-ins stay as they are.
    """
    whole = type(lm)(deepcopy(lm.config))
    fresh, named = anatomy(whole), plain_names(trunk)
    layers = tuple(f"{layer.name}." for layer in fresh.layers[above or 0 :])
    with torch.no_grad():
        for name, p in (whole if trunk is lm else fresh.base).named_parameters():
            if above is None or name.startswith(layers):
                named[name].copy_(p)


class TaskLoss:
    """Summed cross-entropy over a batch's rows (of classes, or of choices), or squared error for numbers.

    ``task_loss`` is the one instance.
    """

    def items(self, batch: Batch) -> int:
        """How many rows the batch has."""
        return len(batch["labels"])

    def __call__(self, model: nn.Module, batch: Batch) -> LossSum:
        logits = model(**{k: v for k, v in batch.items() if k != "labels"})
        return LossSum(label_loss(logits, batch["labels"]), self.items(batch), logits)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over the rows: cross-entropy of ``logits``, a row's after the other's, or squared error where ``labels`` are numbers."""
    each = logits.view(len(labels), -1)
    if labels.dtype.is_floating_point:
        return F.mse_loss(at_least_float32(each[:, 0]), labels, reduction="sum")
    return cross_entropy(each, labels)


task_loss = TaskLoss()
