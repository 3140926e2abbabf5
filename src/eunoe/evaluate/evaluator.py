"""Scores of a model as it stands: LM loss on held-out blocks, predictions on labelled rows.

The masks of an evaluation are drawn once, by block, from a seed of their own: two states of a model, or two methods,
are asked for the same tokens. Sums are kept in float64. Nothing is padded but to the longest of rows of like length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.data.collate import Batch, Rows, by_length, collate_lm
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError
from eunoe.evaluate.scores import classification_scores, regression_scores
from eunoe.models.heads import asked_logits
from eunoe.models.load import LanguageModel

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


@torch.inference_mode()
def lm_score(model: nn.Module, batches: list[Batch]) -> Score:
    """Mean cross-entropy (nats) over the asked tokens of prepared batches, without dropout.

    Raises ``EunoeError`` if it is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    total, n = 0.0, 0
    for batch in batches:
        here = {k: v.to(device) for k, v in batch.items()}
        losses = F.cross_entropy(asked_logits(model, here).float(), here["labels"], reduction="none")
        total += float(losses.double().sum())
        n += len(batch["labels"])
    if not n:
        raise EunoeError("the held-out text asks for nothing: it holds only tokens that the tokenizer calls special, such as unknown "
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


@torch.inference_mode()
def task_scores(model: nn.Module, rows: Rows, labels: tuple[str, ...], batch: int) -> list[Score]:
    """Scores of a fine-tuned classifier on test rows: accuracy and macro-F1, or Pearson and Spearman for numbers."""
    model.eval()
    device = next(model.parameters()).device
    predicted: list[Any] = [None] * len(rows)
    for chosen, rows_batch in by_length(rows, batch):
        logits = model(**{k: v.to(device) for k, v in rows_batch.items() if k != "labels"})
        answers = logits.argmax(-1).tolist() if labels else logits[:, 0].tolist()
        for i, answer in zip(chosen, answers, strict=True):
            predicted[i] = answer
    gold = rows.labels.tolist()
    if not labels:
        found = regression_scores(gold, predicted)
        return [Score("pearson", found["pearson"], len(rows)), Score("spearman", found["spearman"], len(rows))]
    scored = classification_scores([labels[g] for g in gold], [labels[p] for p in predicted], labels)
    detail: dict[str, Any] = dict(scored["detail"])
    return [
        Score("accuracy", scored["accuracy"], len(rows), detail),
        Score("macro_f1", scored["macro_f1"], len(rows)),
    ]
