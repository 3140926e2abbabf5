"""Blocks -> batches. Every batch is a pure function of (seed, position), so a run that is taken up again needs no loader state.

Masked LM: BERT's rule, each ordinary token is asked for with probability 0.15; of those 80 % become the mask token,
10 % a random token, 10 % stay. Causal LM: each token asks for the next. Only asked positions reach the LM head:
``positions`` indexes the flattened (batch * block) tokens and ``labels`` holds what is asked there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eunoe.data.corpus import Blocks

Objective = Literal["masked", "causal"]
Batch = dict[str, Tensor]


def mask_tokens(
    ids: NDArray[np.int64],
    askable: NDArray[np.bool_],
    mask_id: int,
    vocabulary: int,
    rate: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """BERT's 80/10/10 rule on one block.

    ``ids`` (block,) token ids; ``askable`` (block,) False at special tokens. Returns the changed ids and where the
    model is asked, both (block,). If chance picks no token one askable token is asked, so every block has a loss.
    """
    asked = askable & (rng.random(len(ids)) < rate)
    if not asked.any() and askable.any():
        asked[rng.choice(np.flatnonzero(askable))] = True
    draw = rng.random(len(ids))
    random_ids = rng.integers(0, vocabulary, len(ids))
    changed = np.where(asked & (draw < 0.8), mask_id, np.where(asked & (draw >= 0.9), random_ids, ids))
    return changed, asked


@dataclass(frozen=True)
class LMBatches:
    """``batches[step]``: the micro-batches of one optimizer step, for any step in any order.

    Positions run on over epochs: step s takes places s*batch ... of the epochs' seeded permutations laid end to end.
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
        rows = [(self.blocks.ids[i], (self.seed, epoch, i)) for epoch, i in chosen]
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
        asked = np.ones_like(ids, dtype=bool)
        asked[:, -1] = False
        positions = np.flatnonzero(asked)
        labels = ids.reshape(-1)[positions + 1]
        inputs = ids
    else:
        askable = ~np.isin(ids, special)
        inputs, asked = np.empty_like(ids), np.empty_like(askable)
        for i, (_, key) in enumerate(rows):
            rng = np.random.default_rng((0xA5C, *key))
            inputs[i], asked[i] = mask_tokens(ids[i], askable[i], mask_id, vocabulary, mask_rate, rng)
        positions = np.flatnonzero(asked)
        labels = ids.reshape(-1)[positions]
    return {
        "input_ids": torch.from_numpy(inputs),
        "positions": torch.from_numpy(positions),
        "labels": torch.from_numpy(labels),
    }


@dataclass(frozen=True)
class Rows:
    """Tokenised labelled rows: ``inputs[i]`` maps a model's argument to a list of ids, ``labels`` (n,) ints or floats."""

    inputs: list[dict[str, list[int]]]
    labels: Tensor
    pad_id: int

    def __len__(self) -> int:
        return len(self.inputs)


def encode_rows(
    tokenizer: Any, texts: Sequence[tuple[str, str | None]], labels: Sequence[int] | Sequence[float], max_length: int
) -> Rows:
    """Tokenise texts or pairs, cut to ``max_length`` tokens (of a pair the longer part first)."""
    if not texts:
        raise ValueError("no rows to encode")
    pairs = any(second is not None for _, second in texts)
    first = [a for a, _ in texts]
    second = [b or "" for _, b in texts] if pairs else None
    coded = tokenizer(
        first, second, truncation="longest_first" if pairs else True, max_length=max_length, verbose=False
    )
    keys = [key for key in ("input_ids", "token_type_ids") if key in coded]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    # an empty text, around which the tokenizer puts nothing, is one padding token: no model reads a row of none
    nothing = {"input_ids": [pad], "token_type_ids": [0]}
    inputs = [{key: coded[key][i] or nothing[key] for key in keys} for i in range(len(first))]
    dtype = torch.float32 if any(isinstance(label, float) for label in labels) else torch.int64
    return Rows(inputs, torch.tensor(labels, dtype=dtype), int(pad))


def pad_rows(rows: Rows, chosen: Sequence[int]) -> Batch:
    """The chosen rows, padded on the right to the longest of them: ids, ``attention_mask`` and ``labels``."""
    length = max(len(rows.inputs[i]["input_ids"]) for i in chosen)
    batch: Batch = {}
    for key in rows.inputs[chosen[0]]:
        fill = rows.pad_id if key == "input_ids" else 0
        lists = [rows.inputs[i][key] + [fill] * (length - len(rows.inputs[i][key])) for i in chosen]
        batch[key] = torch.tensor(lists, dtype=torch.int64)
    lengths = torch.tensor([len(rows.inputs[i]["input_ids"]) for i in chosen])
    batch["attention_mask"] = (torch.arange(length)[None, :] < lengths[:, None]).long()
    batch["labels"] = rows.labels[list(chosen)]
    return batch


def by_length(rows: Rows, batch: int) -> Iterator[tuple[list[int], Batch]]:
    """All rows, shortest first, in batches: hardly any padding is computed. Yields (which rows, batch)."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows.inputs[i]["input_ids"]), i))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        yield chosen, pad_rows(rows, chosen)


def row_steps(rows: int, batch: int, epochs: float, steps: int | None = None) -> int:
    """Optimizer steps over ``rows`` labelled rows: ``steps`` if given, else whole batches and a rest in each epoch.

    >>> row_steps(10, 4, epochs=2)
    6
    """
    return steps or max(1, round(-(-rows // batch) * epochs))


@dataclass(frozen=True)
class RowBatches:
    """``batches[step]`` for labelled rows: seeded order per epoch, micro-batches cut by length (least padding).

    Each epoch is its own pass, as in the papers' scripts: its last batch may be smaller.
    """

    rows: Rows
    batch: int
    epochs: float
    seed: int
    steps: int | None = None
    micro_batch: int | None = None

    @property
    def per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch)

    def __len__(self) -> int:
        return row_steps(len(self.rows), self.batch, self.epochs, self.steps)

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, place = divmod(step, self.per_epoch)
        order = permutation(self.seed, epoch, len(self.rows))[place * self.batch : (place + 1) * self.batch]
        chosen = sorted((int(i) for i in order), key=lambda i: (len(self.rows.inputs[i]["input_ids"]), i))
        size = self.micro_batch or self.batch
        return [pad_rows(self.rows, chosen[i : i + size]) for i in range(0, len(chosen), size)]
