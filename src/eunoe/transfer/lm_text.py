"""The text of a task without its labels, as a language model is fine-tuned on it: ULMFiT's first step (arXiv 1801.06146)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from eunoe.data.collate import LMBatches, row_steps
from eunoe.data.corpus import Blocks
from eunoe.data.stream import StreamBatches
from eunoe.data.tasks import Task
from eunoe.data.tokens import around, backward, encode
from eunoe.errors import EunoeError
from eunoe.methods.base import Batches, Loss
from eunoe.models.anatomy import RECURRENT, anatomy
from eunoe.models.awd.loss import AwdLoss, Carry
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.models.awd.tokenizer import AwdLstmTokenizer
from eunoe.models.awd.vocabulary import remap
from eunoe.models.awd.words import SPECIAL
from eunoe.models.heads import lm_loss
from eunoe.models.load import LanguageModel
from eunoe.progress import say_once
from eunoe.recipe import Batch, Below1, Block, Count, Epochs, Positive, Share


@dataclass(kw_only=True)
class LMStage:
    """Fine-tuning of the language model on the task's text; null is what the preset has."""

    tune: Literal["full", "none"] = "full"
    """``none``: the language model stays as it is (a row of the paper's ablation)."""
    epochs: Epochs | None = None
    """Passes over the text."""
    steps: Count | None = None
    """Optimizer steps, instead of ``epochs``. An AWD-LSTM reads its text in whole passes, and takes epochs alone."""
    batch: Batch | None = None
    """Blocks (an AWD-LSTM: streams) in a step."""
    block: Block | None = None
    """Tokens of a block."""
    max_length: Count | None = None
    """Tokens of a text that are read, the rest is cut; null: all. The vocabulary of an AWD-LSTM is that of the whole text."""
    lr: Positive | None = None
    """Highest learning rate, of the last group."""
    discriminative: Positive | list[Positive] | None = None
    """Each group of layers learns at 1 / this of the one above; 1: all alike. A list: the share of each, the lowest first. The groups
    are those of ``eunoe.models.depth``, an embedding that is the LM head's too with the head, as in the scripts."""
    schedule: str | None = None
    """slanted_triangle | constant | linear | cosine."""
    cut_frac: Share | None = None
    """Share of the steps over which a slanted triangle rises."""
    ratio: Annotated[float, Field(ge=1)] | None = None
    """How many times the lowest learning rate of a slanted triangle the highest is."""
    clip: Positive | None = None
    """Largest gradient norm."""
    weight_decay: Below1 | None = None
    """Pull toward zero, times the learning rate."""
    mask_rate: Share = 0.15
    """Share of the tokens that are a masked LM's targets."""
    vocabulary: Literal["task", "kept"] = "task"
    """AWD-LSTM: ``task`` gives it the words of the task's text, those it does not know the mean row; ``kept``: its own. Tokenizers of
    parts of words keep theirs in any case."""
    largest: Count = 60_000
    """Words of the task's vocabulary at most."""
    least: Count = 2
    """How often a word must stand in the text to be in the vocabulary."""


def task_texts(task: Task) -> list[str]:
    """The text of the training rows (of a pair both parts) and of ``Task.unlabelled``; never of the test rows."""
    return [" ".join(part for part in (e.text, e.pair) if part) for e in task.train] + list(task.unlabelled)


_TOKENS: dict[tuple[int, int, int | None], tuple[Any, Task, NDArray[np.int64]]] = {}
_WORDS: dict[tuple[int, int, int, int], tuple[Any, Task, AwdLstmTokenizer]] = {}


def text_ids(lm: LanguageModel, task: Task, most: int | None = None) -> NDArray[np.int64]:
    """The task's text laid end to end as token ids, of each row ``most`` at most; the last few texts are kept."""
    key = (id(lm.tokenizer), id(task), most)
    if key not in _TOKENS:
        doing = f"tokenising the text of {task.name}"
        marks, turned = len(around(lm.tokenizer)[1]), backward(lm.tokenizer)
        parts = encode(task_texts(task), lm.tokenizer, doing)
        coded = np.fromiter((i for part in parts for i in _first(part, most, marks, turned)), np.int64)
        _keep(_TOKENS, key, (lm.tokenizer, task, coded))
    return _TOKENS[key][2]


def _first(ids: list[int], most: int | None, marks: int, turned: bool) -> list[int]:
    """The first ``most`` tokens of a text that ends in ``marks`` marks, which stay; of one that is ``turned`` round likewise.

    >>> _first([101, 7, 8, 9, 102], 4, 1, False), _first([9, 8, 7, 2], 3, 0, True)
    ([101, 7, 8, 102], [8, 7, 2])
    """
    if most is None or len(ids) <= most:
        return ids
    marks = min(marks, most)
    if turned:
        return ids[:marks] + ids[len(ids) - (most - marks) :]
    return ids[: most - marks] + ids[len(ids) - marks :]


def _keep(shelf: dict[Any, Any], key: Any, value: Any) -> None:
    while len(shelf) >= 8:
        shelf.pop(next(iter(shelf)))
    shelf[key] = value  # what the ids name is kept in it, so they stay theirs


def task_words(old: AwdLstmTokenizer, task: Task, stage: LMStage) -> AwdLstmTokenizer:
    """A tokenizer of the words of the task's text, which splits text as ``old`` does."""
    key = (id(old), id(task), stage.largest, stage.least)
    if key not in _WORDS:
        words = AwdLstmTokenizer.build(
            task_texts(task), stage.largest, stage.least, spacy=old.spacy, backward=old.backward
        )
        _keep(_WORDS, key, (old, task, words))
    return _WORDS[key][2]


def check_words(lm: LanguageModel, task: Task, stage: LMStage, where: str, afresh: bool = False) -> None:
    """Raise ``EunoeError`` for an AWD-LSTM whose vocabulary is not that of its weights, that would have no word of the task, or, unless it
    starts ``afresh``, knows none of them; say how many it knows."""
    old = lm.tokenizer
    if not isinstance(old, AwdLstmTokenizer):
        return
    rows, words = anatomy(lm.model).embeddings.num_embeddings, len(old.tokens)
    if rows != words and not afresh:
        raise EunoeError(f"{where}: the vocabulary of {lm.name!r} has {words:,} tokens and its weights {rows:,} rows. They are of "
                         "different models: give the vocabulary that the weights were trained with.")  # fmt: skip
    least = 1 if stage.vocabulary == "kept" else stage.least
    new, known = set(task_words(old, task, replace(stage, least=least)).tokens) - set(SPECIAL), set(old.tokens)
    here = len(new & known)
    if not new:
        raise EunoeError(f"{where}: no word of {task.name!r} stands in its text {least} times or more, so that the model would read none. "
                         "Set least to 1, or vocabulary to kept, or give unlabelled text.")  # fmt: skip
    if afresh:
        return
    if not here:
        some = ", ".join(repr(word) for word in sorted(new)[:4])
        raise EunoeError(f"{where}: {lm.name!r} knows none of the {len(new):,} words of {task.name!r} ({some}). Are both of one "
                         "language, and split by one rule? Give another model.")  # fmt: skip
    say_once(f"{lm.name} knows {here:,} of the {len(new):,} words of {task.name}")


def in_words_of(lm: LanguageModel, task: Task, stage: LMStage) -> LanguageModel:
    """An AWD-LSTM in the vocabulary of the task's text: rows of words it knows are kept, the others get the mean row. In place, with
    a tokenizer of its own; other models, and with ``vocabulary: kept``, as they are. Raises ``EunoeError`` as ``remap`` does."""
    old = lm.tokenizer
    if not isinstance(old, AwdLstmTokenizer) or stage.vocabulary == "kept":
        return lm
    new = task_words(old, task, stage)
    assert isinstance(lm.model, AwdLstmForCausalLM)
    remap(lm.model, old.get_vocab(), new.get_vocab())
    return replace(lm, tokenizer=new)


def text_blocks(lm: LanguageModel, task: Task, block: int, where: str, most: int | None = None) -> Blocks:
    """The task's text laid end to end, of each row ``most`` tokens at most, in blocks of ``block``; a rest at the end is not read.

    Raises ``EunoeError`` where it is shorter than one block.
    """
    ids = text_ids(lm, task, most)
    if len(ids) < block:
        raise EunoeError(
            f"{where}.block is {block}, but the text of {task.name!r} has {len(ids):,} tokens in all. Set it to {max(8, len(ids) // 4)} "
            "or less, give unlabelled text, or leave the language model as it is: tune: none."
        )
    kept = ids[: len(ids) // block * block].reshape(-1, block)
    digest = hashlib.sha256(kept.tobytes()).hexdigest()[:32]
    return Blocks(kept, np.array(sorted(set(lm.tokenizer.all_special_ids)), dtype=np.int64), digest)


@dataclass(frozen=True, kw_only=True)
class LMTraining:
    """What the language model is fine-tuned with: batches, loss, and for an AWD-LSTM the state it carries and the scale of lengths."""

    batches: Batches
    loss: Loss
    carry: Any = None
    scale: Callable[[int], float] = lambda step: 1.0


def lm_training(
    lm: LanguageModel, task: Task, stage: LMStage, seed: int, micro_batch: int | None, where: str
) -> LMTraining:
    """Blocks in a seeded order; an AWD-LSTM reads ``batch`` streams side by side, in pieces of varied length, with its state carried
    on, AR 2 and TAR 1. Raises ``EunoeError`` for a text that is too short."""
    assert stage.batch is not None
    assert stage.block is not None
    if anatomy(lm.model).model_type in RECURRENT:
        epochs = stage.epochs or 1.0
        if stage.steps is not None or epochs != int(epochs):
            given = f"epochs is {epochs:g}" if stage.steps is None else f"steps is {stage.steps}"
            raise EunoeError(f"{where}.{given}, but an AWD-LSTM reads its text in whole passes. Give epochs as a whole number, and no "
                             "steps.")  # fmt: skip
        ids = text_ids(lm, task, stage.max_length)
        if len(ids) < 2 * stage.batch:
            raise EunoeError(f"{where}.batch is {stage.batch}, but the text of {task.name!r} has {len(ids):,} tokens in all, too short for "
                             f"{stage.batch} rows. Set it to {max(1, len(ids) // 8)} or less, or give unlabelled text.")  # fmt: skip
        stream, carry = StreamBatches(ids, stage.batch, stage.block, int(epochs), seed), Carry()
        return LMTraining(batches=stream, loss=AwdLoss(carry), carry=carry, scale=stream.scale)
    blocks = text_blocks(lm, task, stage.block, where, stage.max_length)
    steps = row_steps(len(blocks), stage.batch, stage.epochs or 1.0, stage.steps)
    batches = LMBatches(
        blocks, lm.objective, lm.mask_id, len(lm.tokenizer), stage.batch, steps, seed, micro_batch, stage.mask_rate
    )
    return LMTraining(batches=batches, loss=lm_loss)


__all__ = ["LMStage", "LMTraining", "check_words", "in_words_of", "lm_training", "task_texts", "text_blocks"]
