"""Fine-tuning on a labelled end task: the transfer recipe of CPT and of RecAdam.

A fresh classifier on the trunk's first (decoders: last) token; everything trains. Defaults are CPT's end tasks
(arXiv 2210.05549, released settings): batch 20, rate 5e-5 (plug-ins 3e-5), 20 epochs, linear decay without warm-up,
AdamW with weight decay 0.01, 164 tokens, the last epoch is scored. ``optimizer: recadam`` pulls the trunk back to where
it started (EMNLP 2020, arXiv 2004.12651), the classifier learns freely.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.data.collate import RowBatches, Rows, encode_rows
from eunoe.data.tasks import Task
from eunoe.evaluate.evaluator import Score, task_scores
from eunoe.methods.base import Method
from eunoe.models.heads import Classifier
from eunoe.models.load import LanguageModel, refuse_longer
from eunoe.optim.groups import scale_rates
from eunoe.recipe import LoopSettings
from eunoe.train import Job, make_optimizer, train


@dataclass(kw_only=True)
class FinetuneSettings(LoopSettings):
    """Fine-tuning; the defaults are CPT's end tasks."""

    batch: int = 20
    """Labelled rows in one optimizer step."""
    epochs: float = 20
    """Passes over the training rows; the last one is scored (there is no validation set)."""
    lr: float = 5e-5
    """Highest rate; a method may lower it for its own weights (CPT's plug-ins: x 0.6)."""
    warmup: float = 0.0
    """Share of the steps over which the rate rises."""
    optimizer: Any = field(default_factory=lambda: {"name": "adamw", "weight_decay": 0.01})
    """A name of the optimizer table, or a mapping with its options."""
    max_length: int = 164
    """Tokens of a row; longer ones are cut."""
    freeze: Literal["none", "backbone"] = "none"
    """``backbone``: the pretrained weights stay, plug-ins and classifier train."""
    dropout: float = 0.1
    """Dropout rate of the classifier."""


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning leaves: scores on the test rows, and how many steps it took."""

    scores: list[Score]
    steps: int
    seconds: float


def encode_task(lm: LanguageModel, task: Task, settings: FinetuneSettings) -> tuple[Rows, Rows]:
    """The task's training and test rows as token ids."""
    refuse_longer(lm, settings.max_length, "recipe.transfer.max_length")
    index = {label: i for i, label in enumerate(task.labels)}
    train_rows, test_rows = (
        encode_rows(
            lm.tokenizer,
            [(e.text, e.pair) for e in part],
            [index[str(e.label)] for e in part] if task.labels else [float(e.label) for e in part],
            settings.max_length,
        )
        for part in (task.train, task.test)
    )
    return train_rows, test_rows


def finetune(
    lm: LanguageModel, method: Method, domain: str | None, task: Task, rows: tuple[Rows, Rows],
    settings: FinetuneSettings, seed: int, eval_batch: int, folder: Path | None = None,
) -> Finetuned:  # fmt: skip
    """Fine-tune a copy of ``lm`` on ``task`` and score it on the test rows; the model itself is not changed.

    ``domain``: whose masks the copy reads (None: the model without them). The classifier's start, the order of the
    rows and dropout depend on ``seed`` alone, so equal models get equal scores.
    """
    torch.manual_seed(seed)
    pooling: Literal["first", "last"] = "first" if lm.objective == "masked" else "last"
    model = Classifier(deepcopy(lm.model), max(len(task.labels), 1), pooling, settings.dropout)
    rates = method.for_end_task(model, domain, settings.freeze)
    batches = RowBatches(rows[0], settings.batch, settings.epochs, seed, settings.steps, settings.micro_batch)

    def optimizer(m: nn.Module) -> torch.optim.Optimizer:
        return scale_rates(make_optimizer(settings.optimizer, m, settings.lr, len(batches)), m, rates)

    done = train(Job(name=f"end task {task.name}", model=model, batches=batches, loss=task_loss, settings=settings,
                     optimizer=optimizer, seed=seed, folder=folder))  # fmt: skip
    return Finetuned(task_scores(model, rows[1], task.labels, eval_batch), done.steps, done.seconds)


def task_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int, Tensor]:
    """Summed cross-entropy over the rows (squared error for numbers), how many there are, and the logits."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"})
    labels = batch["labels"]
    if labels.dtype.is_floating_point:
        return F.mse_loss(logits[:, 0].float(), labels, reduction="sum"), len(labels), logits
    return F.cross_entropy(logits.float(), labels, reduction="sum"), len(labels), logits
