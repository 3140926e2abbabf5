"""Scores of a model as it stands: LM loss on held-out blocks, predictions on labelled rows.

The masks of an evaluation are drawn once, by block, from a seed of their own: two states of a model, or two methods,
have the same target tokens. Sums are kept in float64. Nothing is padded but to the longest of rows of like length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe import stop
from eunoe.data.collate import Batch, Rows, by_length, collate_lm
from eunoe.data.corpus import Blocks
from eunoe.data.tasks import Task
from eunoe.errors import EunoeError
from eunoe.evaluate.scores import are_spans, classification_scores, f1, matthews, regression_scores, span_scores
from eunoe.models.heads import target_logits
from eunoe.models.load import LanguageModel
from eunoe.models.products import scoring

MASK_SEED = 20221026
"""Seed of the masks that held-out text is scored under."""


@dataclass(frozen=True)
class Score:
    """One number, over how many items, and the counts behind it."""

    metric: str
    value: float
    n: int
    detail: dict[str, Any] | None = None


def eval_batches(lm: LanguageModel, blocks: Blocks, batch: int, mask_rate: float) -> list[Batch]:
    """Held-out blocks as batches, masked once and for all."""
    rows = [(blocks.ids[i], (MASK_SEED, i)) for i in range(len(blocks))]
    return [
        collate_lm(rows[i : i + batch], blocks.special, lm.objective, lm.mask_id, len(lm.tokenizer), mask_rate)
        for i in range(0, len(rows), batch)
    ]


@scoring()
def lm_score(model: nn.Module, batches: list[Batch], log_probs: Callable[[Batch], Tensor] | None = None) -> Score:
    """Mean cross-entropy (nats) over the target tokens of prepared batches, without dropout.

    ``log_probs``: log-probabilities (n, vocabulary) of a batch, float32, where a method reads text its own way
    (``Method.log_probs``); default: the model as it is. Raises ``EunoeError`` if the loss is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    total, n = 0.0, 0
    for batch in batches:
        stop.check("scoring held-out text")
        here = {k: v.to(device) for k, v in batch.items()}
        read = log_probs(here) if log_probs else torch.log_softmax(target_logits(model, here).float(), -1)
        total += float(F.nll_loss(read, here["labels"], reduction="none").double().sum())
        n += len(batch["labels"])
    if not n:
        raise EunoeError("the held-out text has no target tokens: it holds only tokens that the tokenizer calls special, such as unknown "
                         "words. Is it text of a language and script that the model knows?")  # fmt: skip
    if not total < float("inf"):
        raise EunoeError(
            f"the held-out LM loss is {total / n}: the model's weights are broken. Lower the learning rate."
        )
    return Score("lm_loss", total / n, n)


@torch.inference_mode()
def hidden_states(model: nn.Module, base: nn.Module, input_ids: Tensor) -> Tensor:
    """Last hidden states (B, T, width), float32 on the CPU: what ``eunoe verify`` compares bit by bit."""
    model.eval()
    device = next(model.parameters()).device
    out: Tensor = base(input_ids=input_ids.to(device))[0]
    return out.float().cpu()


@scoring()
def predictions(model: nn.Module, rows: Rows, task: Task, batch: int) -> list[Any]:
    """What a fine-tuned classifier answers to each row, in the rows' order: a class's name, a number, or the index of a choice.

    ``model`` gives ``logits``, one for each class, or for each choice, of a row after the other.
    """
    model.eval()
    device = next(model.parameters()).device
    predicted: list[Any] = [None] * len(rows)
    for chosen, rows_batch in by_length(rows, batch):
        stop.check("scoring labelled rows")
        logits = model(**{k: v.to(device) for k, v in rows_batch.items() if k != "labels"}).view(len(chosen), -1)
        answers = logits[:, 0].tolist() if task.kind == "regression" else logits.argmax(-1).tolist()
        for i, answer in zip(chosen, answers, strict=True):
            predicted[i] = task.labels[answer] if task.labels else answer
    return predicted


def task_scores(model: nn.Module, rows: Rows, task: Task, batch: int) -> list[Score]:
    """Scores of a fine-tuned classifier on labelled rows, as ``answer_scores`` has them."""
    gold = rows.labels.tolist()
    return answer_scores(
        task, [task.labels[g] for g in gold] if task.labels else gold, predictions(model, rows, task, batch)
    )


def answer_scores(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> list[Score]:
    """Scores of answers to rows of ``task``; the metrics that the task names come first.

    Classes: accuracy and macro-F1, and ``matthews`` and ``f1`` (of the last class) where the task names them. Numbers: Pearson and
    Spearman. Choices: accuracy. Tags: F1, precision and recall of spans
    where they mark spans, and the accuracy of words.
    """
    values, detail = _SCORERS[task.kind](task, gold, predicted)
    order = [*task.metrics, *(name for name in values if name not in task.metrics)]
    return [Score(name, values[name], len(gold), detail if name == "accuracy" else None) for name in order]


Scored = tuple[dict[str, float], dict[str, Any] | None]
"""Metric -> value, and the counts behind the accuracy."""


def _of_classes(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> Scored:
    scored = classification_scores(gold, predicted, task.labels)
    values = {"accuracy": scored["accuracy"], "macro_f1": scored["macro_f1"]}
    more = {"matthews": lambda: matthews(gold, predicted), "f1": lambda: f1(gold, predicted, task.labels[-1])}
    return values | {name: more[name]() for name in task.metrics if name in more}, dict(scored["detail"])


def _of_numbers(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> Scored:
    related = regression_scores([float(label) for label in gold], predicted)
    return {"pearson": related["pearson"], "spearman": related["spearman"]}, None


def _of_choices(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> Scored:
    return {"accuracy": sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)}, None


def _of_tags(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> Scored:
    words = [[str(tag) for row in rows for tag in row] for rows in (gold, predicted)]
    right = sum(g == p for g, p in zip(*words, strict=True)) / len(words[0])
    values = span_scores(gold, predicted) if are_spans(task.labels) else {}
    return values | {"accuracy": right}, None


_SCORERS = {"classification": _of_classes, "regression": _of_numbers, "choice": _of_choices, "tagging": _of_tags}
