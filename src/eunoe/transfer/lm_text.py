"""The text of a task without its labels, as a language model is fine-tuned on it: ULMFiT's first step (arXiv 1801.06146)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eunoe.data.collate import LMBatches, row_steps
from eunoe.data.corpus import Blocks
from eunoe.data.tasks import Task
from eunoe.data.tokens import encode
from eunoe.errors import EunoeError
from eunoe.models.load import LanguageModel
from eunoe.recipe import Batch, Below1, Block, Count, Epochs, Positive, Share


@dataclass(kw_only=True)
class LMStage:
    """Fine-tuning of the language model on the task's text; null is what the preset has."""

    tune: Literal["full", "none"] = "full"
    """``none``: the language model stays as it is (a row of the paper's ablation)."""
    epochs: Epochs | None = None
    """Passes over the text."""
    steps: Count | None = None
    """Optimizer steps, instead of ``epochs``."""
    batch: Batch | None = None
    """Blocks (an AWD-LSTM: streams) in a step."""
    block: Block | None = None
    """Tokens of a block."""
    lr: Positive | None = None
    """Highest learning rate, of the last group."""
    discriminative: Positive | list[Positive] | None = None
    """Each group of layers learns at 1 / this of the one above; 1: all alike. A list: the share of each, the lowest first. The groups
    are those of ``eunoe.models.depth``, an embedding that is the LM head's too with the head, as in the scripts."""
    schedule: str | None = None
    """slanted_triangle | constant | linear | cosine."""
    cut_frac: Share | None = None
    """Share of the steps over which a slanted triangle rises."""
    ratio: Positive | None = None
    """How many times the lowest learning rate of a slanted triangle the highest is."""
    clip: Positive | None = None
    """Largest gradient norm."""
    weight_decay: Below1 | None = None
    """Pull toward zero, times the learning rate."""
    mask_rate: Share = 0.15
    """Share of the tokens that are a masked LM's targets."""


def task_texts(task: Task) -> list[str]:
    """The text of the training rows (of a pair both parts) and of ``Task.unlabelled``; never of the test rows."""
    return [" ".join(part for part in (e.text, e.pair) if part) for e in task.train] + list(task.unlabelled)


def text_blocks(lm: LanguageModel, task: Task, block: int, where: str) -> Blocks:
    """The task's text laid end to end, in blocks of ``block`` tokens; what is left over at the end is not read.

    Raises ``EunoeError`` where it is shorter than one block.
    """
    key = (id(lm.tokenizer), id(task))
    if key not in _TOKENS:
        doing = f"tokenising the text of {task.name}"
        coded = np.fromiter((i for part in encode(task_texts(task), lm.tokenizer, doing) for i in part), np.int64)
        while len(_TOKENS) >= 8:
            _TOKENS.pop(next(iter(_TOKENS)))
        _TOKENS[key] = (lm.tokenizer, task, coded)  # what the ids name is kept, so they stay theirs
    ids = _TOKENS[key][2]
    if len(ids) < block:
        raise EunoeError(
            f"{where}.block is {block}, but the text of {task.name!r} has {len(ids):,} tokens in all. Set it to {max(8, len(ids) // 4)} "
            "or less, give unlabelled text, or leave the language model as it is: tune: none."
        )
    kept = ids[: len(ids) // block * block].reshape(-1, block)
    digest = hashlib.sha256(kept.tobytes()).hexdigest()[:32]
    return Blocks(kept, np.array(sorted(set(lm.tokenizer.all_special_ids)), dtype=np.int64), digest)


_TOKENS: dict[tuple[int, int], tuple[Any, Task, NDArray[np.int64]]] = {}


def lm_batches(lm: LanguageModel, blocks: Blocks, stage: LMStage, seed: int, micro_batch: int | None) -> LMBatches:
    """The steps of the language model's fine-tuning."""
    assert stage.batch is not None
    steps = row_steps(len(blocks), stage.batch, stage.epochs or 1.0, stage.steps)
    return LMBatches(
        blocks, lm.objective, lm.mask_id, len(lm.tokenizer), stage.batch, steps, seed, micro_batch, stage.mask_rate
    )


__all__ = ["LMStage", "lm_batches", "task_texts", "text_blocks"]
