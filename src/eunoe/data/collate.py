"""Blocks -> batches. Every batch is a pure function of (seed, position), so a resumed run needs no loader state.

Masked LM: BERT's rule, each ordinary token is a target with probability 0.15; of those 80 % become the mask token,
10 % a random token, 10 % stay. Causal LM: each next token is a target. Only target positions reach the LM head:
``positions`` indexes the flattened (batch * block) tokens and ``labels`` holds the target tokens there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eunoe import stop
from eunoe.data.corpus import Blocks
from eunoe.data.tokens import backward
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.progress import say_once

Objective = Literal["masked", "causal"]
Batch = dict[str, Tensor]
NO_TARGET = -100
"""Label of a position that the model's head sees and the LM loss leaves out."""
MOST_TOKENS = 2**26
"""Tokens in one batch at most: a batch is made whole, in memory (half a GiB of ids), before it is cut into micro-batches."""


def refuse_larger(batch: int, length: int, items: str) -> None:
    """Raise ``EunoeError`` if ``batch`` items of ``length`` tokens are more than ``MOST_TOKENS``; takes no memory."""
    if batch * length > MOST_TOKENS:
        raise EunoeError(f"a batch of {batch:,} {items} of up to {length:,} tokens has more than {MOST_TOKENS:,} tokens, the most that "
                         f"is made at once. Set batch to {max(1, MOST_TOKENS // length):,} or less.")  # fmt: skip


def mask_tokens(
    ids: NDArray[np.int64],
    maskable: NDArray[np.bool_],
    mask_id: int,
    vocabulary: int,
    rate: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """BERT's 80/10/10 rule on one block.

    ``ids`` (block,) token ids; ``maskable`` (block,) False at special tokens. Returns the changed ids and where the
    target tokens are, both (block,). If chance picks no token one maskable token is a target, so every block has a loss.
    """
    targets = maskable & (rng.random(len(ids)) < rate)
    if not targets.any() and maskable.any():
        targets[rng.choice(np.flatnonzero(maskable))] = True
    draw = rng.random(len(ids))
    random_ids = rng.integers(0, vocabulary, len(ids))
    changed = np.where(targets & (draw < 0.8), mask_id, np.where(targets & (draw >= 0.9), random_ids, ids))
    return changed, targets


@dataclass(frozen=True)
class LMBatches:
    """``batches[step]``: the micro-batches of one optimizer step, for any step in any order.

    Positions run on over epochs: step s takes places s*batch ... of the epochs' seeded permutations laid end to end.
    ``vocabulary``: random replacements are drawn below it, so it may be no more than the model's embedding has rows.
    Raises ``EunoeError`` if a batch has more than ``MOST_TOKENS`` tokens.
    """

    blocks: Blocks
    objective: Objective
    mask_id: int
    vocabulary: int
    batch: int
    steps: int
    seed: int
    micro_batch: int | None = None
    mask_rate: float = 0.15
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        refuse_larger(self.batch, self.blocks.ids.shape[1], "blocks")

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[Batch]:
        places = range(step * self.batch, (step + 1) * self.batch)
        chosen = [self._locate(p) for p in places]
        size = self.micro_batch or self.batch
        groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return [self._collate(group[self.rank :: self.world]) for group in groups]

    def _locate(self, place: int) -> tuple[int, int]:
        epoch, offset = divmod(place, len(self.blocks))
        return epoch, int(permutation(self.seed, epoch, len(self.blocks))[offset])

    def _collate(self, chosen: list[tuple[int, int]]) -> Batch:
        return self.collate([(self.blocks.ids[i], (self.seed, epoch, i)) for epoch, i in chosen])

    def collate(self, rows: Sequence[tuple[NDArray[Any], tuple[int, ...]]]) -> Batch:
        """Any blocks, each with the key of its random numbers, as a batch of the stage's objective."""
        return collate_lm(rows, self.blocks.special, self.objective, self.mask_id, self.vocabulary, self.mask_rate)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of one epoch; the last few are kept, as steps ask for them again and again."""
    return np.random.default_rng((0x0DE2, seed, epoch)).permutation(n)


def collate_lm(
    rows: Sequence[tuple[NDArray[Any], tuple[int, ...]]],
    special: NDArray[np.int64],
    objective: Objective,
    mask_id: int,
    vocabulary: int,
    mask_rate: float,
) -> Batch:
    """``rows``: (block of ids, key of its random numbers) -> ``input_ids`` (B, block), ``positions`` (n,), ``labels`` (n,)."""
    ids = np.stack([row.astype(np.int64) for row, _ in rows])
    if objective == "causal":
        targets = np.ones_like(ids, dtype=bool)
        targets[:, -1] = False
        positions = np.flatnonzero(targets)
        labels = ids.reshape(-1)[positions + 1]
        inputs = ids
    else:
        maskable = ~np.isin(ids, special)
        inputs, targets = np.empty_like(ids), np.empty_like(maskable)
        for i, (_, key) in enumerate(rows):
            rng = np.random.default_rng((0xA5C, *key))
            inputs[i], targets[i] = mask_tokens(ids[i], maskable[i], mask_id, vocabulary, mask_rate, rng)
        positions = np.flatnonzero(targets)
        labels = ids.reshape(-1)[positions]
    return {
        "input_ids": torch.from_numpy(inputs),
        "positions": torch.from_numpy(positions),
        "labels": torch.from_numpy(labels),
    }


@dataclass(frozen=True)
class Rows:
    """Tokenised labelled rows: ``inputs`` maps a model's arguments to lists of ids, ``labels`` (n,) ints or floats.

    A row is ``each`` sequences, one after the other in ``inputs``: one, or one for each choice.
    """

    inputs: list[dict[str, list[int]]]
    labels: Tensor
    pad_id: int
    each: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def sequences(self, row: int) -> list[dict[str, list[int]]]:
        return self.inputs[row * self.each : (row + 1) * self.each]

    def length(self, row: int) -> int:
        """Tokens of the longest sequence of a row."""
        return max(len(sequence["input_ids"]) for sequence in self.sequences(row))


def encode_rows(
    tokenizer: Any,
    texts: Sequence[tuple[str, str | None]],
    labels: Sequence[int] | Sequence[float],
    max_length: int,
    token_types: bool = True,
    each: int = 1,
) -> Rows:
    """Tokenise texts or pairs, cut to ``max_length`` tokens (of a pair the longer part first).

    ``token_types``: the model has a table to look up which text a token belongs to; without one it is not given them
    (GPT-2 would look them up among its words). ``each`` above 1: a label belongs to so many pairs of a context and a choice, one
    after the other; the context alone is cut, and how many were is said. Raises ``EunoeError`` if ``max_length`` leaves no token
    of a text.
    """
    if not texts:
        raise ValueError("no rows to encode")
    pairs = any(second is not None for _, second in texts)
    around, what = tokenizer.num_special_tokens_to_add(pair=pairs), "pair of texts" if pairs else "text"
    least = around + 1 + pairs
    if max_length < least:
        raise EunoeError(f"max_length is {max_length}, which leaves nothing of a {what}: the tokenizer puts {around} tokens around it. "
                         f"Set it to {least} or more.")  # fmt: skip
    if each > 1:
        _refuse_long_choices(tokenizer, texts, max_length, around)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    # an empty text, around which the tokenizer puts nothing, is one padding token: no model reads a row of none
    nothing = {"input_ids": [pad], "token_type_ids": [0]}
    inputs: list[dict[str, list[int]]] = []
    for start in range(0, len(texts), 256):  # what a tokenizer returns is many times as large as the ids
        stop.check("tokenising labelled rows")
        some = texts[start : start + 256]
        coded = tokenizer(
            [a for a, _ in some],
            [b or "" for _, b in some] if pairs else None,
            truncation=("only_first" if each > 1 else "longest_first") if pairs else True,
            max_length=max_length,
            padding=False,
            stride=0,
            verbose=False,
        )
        keys = [key for key in ("input_ids", "token_type_ids")[: 1 + token_types] if key in coded]
        turn = -1 if backward(tokenizer) else 1
        inputs += [{key: coded[key][i][::turn] or nothing[key] for key in keys} for i in range(len(some))]
    dtype = torch.float32 if any(isinstance(label, float) for label in labels) else torch.int64
    return Rows(inputs, torch.tensor(labels, dtype=dtype), int(pad), each)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, whole, with nothing put around it."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), 256):
        stop.check("tokenising labelled rows")
        some = list(texts[start : start + 256])
        ids += tokenizer(some, add_special_tokens=False, truncation=False, padding=False, verbose=False)["input_ids"]
    return ids


def say_cut(cut: int, rows: int, max_length: int) -> None:
    """Say that of so many rows with choices the context was cut."""
    if cut:
        say_once(f"the context of {cut:,} of {rows:,} choices is longer than max_length = {max_length} tokens allows, and is "
                 "cut at its end; choices and questions are whole")  # fmt: skip


def long_choice(choice: str, tokens: int, most: int, max_length: int) -> EunoeError:
    """The error for a choice (with its question) of ``tokens`` where ``most`` leave one token to the context."""
    return EunoeError(f"the choice {visible(repr(choice), 80)} has {tokens} tokens with its question; max_length = {max_length} leaves "
                      f"{most} beside one of the context. A choice is never cut: raise max_length, or shorten the row.")  # fmt: skip


def _refuse_long_choices(tokenizer: Any, texts: Sequence[tuple[str, str | None]], max_length: int, around: int) -> None:
    contexts = {text: len(ids) for text, ids in _by_text(tokenizer, [context for context, _ in texts])}
    most, cut = max_length - around - 1, 0
    for (context, choice), ids in zip(texts, token_ids(tokenizer, [choice or "" for _, choice in texts]), strict=True):
        if len(ids) > most:
            raise long_choice(choice or "", len(ids), most, max_length)
        cut += contexts[context] + len(ids) > most + 1
    say_cut(cut, len(texts), max_length)


def _by_text(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Each different text with its ids."""
    different = list(dict.fromkeys(texts))
    yield from zip(different, token_ids(tokenizer, different), strict=True)


def pad_rows(rows: Rows, chosen: Sequence[int]) -> Batch:
    """The chosen rows, padded on the right to the longest of them: ids and ``attention_mask`` (rows * each, T), ``labels`` (rows,)."""
    sequences = [sequence for i in chosen for sequence in rows.sequences(i)]
    lengths = torch.tensor([len(sequence["input_ids"]) for sequence in sequences])
    length = int(lengths.max())
    batch: Batch = {}
    for key in sequences[0]:
        padded = torch.full((len(sequences), length), rows.pad_id if key == "input_ids" else 0, dtype=torch.int64)
        for row, sequence in zip(padded, sequences, strict=True):
            ids = sequence[key]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        batch[key] = padded
    batch["attention_mask"] = (torch.arange(length)[None, :] < lengths[:, None]).long()
    batch["labels"] = rows.labels[list(chosen)]
    return batch


def by_length(rows: Rows, batch: int) -> Iterator[tuple[list[int], Batch]]:
    """All rows, shortest first, in batches: hardly any padding is computed. Yields (which rows, batch)."""
    order = sorted(range(len(rows)), key=lambda i: (rows.length(i), i))
    refuse_larger(min(batch, len(rows)), rows.length(order[-1]) * rows.each, "rows")
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        yield chosen, pad_rows(rows, chosen)


def row_steps(rows: int, batch: int, epochs: float, steps: int | None = None) -> int:
    """Optimizer steps over ``rows`` labelled rows: ``steps`` if given, else whole batches and a rest in each epoch.

    >>> row_steps(10, 4, epochs=2)
    6
    """
    return steps or max(1, round(-(-rows // batch) * epochs))


def rows_of_step(
    step: int, rows: int, batch: int, micro_batch: int | None, seed: int, length: Callable[[int], int]
) -> list[list[int]]:
    """Which of ``rows`` rows are read in a step, micro-batch by micro-batch: seeded order per epoch, within a batch by length."""
    epoch, place = divmod(step, -(-rows // batch))
    order = permutation(seed, epoch, rows)[place * batch : (place + 1) * batch]
    chosen = sorted(map(int, order), key=lambda i: (length(i), i))
    size = micro_batch or batch
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]


@dataclass(frozen=True)
class RowBatches:
    """``batches[step]`` for labelled rows: seeded order per epoch, micro-batches cut by length (least padding).

    Each epoch is its own pass, as in the papers' scripts: its last batch may be smaller. Raises ``EunoeError`` if a batch
    has more than ``MOST_TOKENS`` tokens.
    """

    rows: Rows
    batch: int
    epochs: float
    seed: int
    steps: int | None = None
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        longest = max(map(self.rows.length, range(len(self.rows))))
        refuse_larger(min(self.batch, len(self.rows)), longest * self.rows.each, "rows")

    @property
    def per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch)

    def __len__(self) -> int:
        return row_steps(len(self.rows), self.batch, self.epochs, self.steps)

    def __getitem__(self, step: int) -> list[Batch]:
        parts = rows_of_step(step, len(self.rows), self.batch, self.micro_batch, self.seed, self.rows.length)
        return [pad_rows(self.rows, chosen) for chosen in parts]
