"""One long text -> batches of consecutive pieces, for models that carry a state from one to the next.

The text is cut into ``batch`` rows of equal length, side by side; a batch is the next piece of every row, so that row r of a batch
continues row r of the one before. Lengths vary (variable BPTT, Merity et al. 2018, arXiv 1708.02182): about ``bptt`` tokens with
probability 0.95 and half of it else, plus a normal variation of 5, five tokens at least. Otherwise the same places of the text would end a
piece in every epoch, and the words there would never learn from what follows. A longer piece has a larger
gradient sum behind its mean, so its learning rate is multiplied by its length over ``bptt`` (``scale``).

Each epoch draws lengths of its own; all of it is a function of (seed, step), so a resumed run needs no loader state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eunoe.data.collate import Batch, refuse_larger
from eunoe.errors import EunoeError

SHORTEST = 5
"""Tokens of a piece at least."""
SPREAD = 5.0
"""Standard deviation of a piece's length, in tokens."""
LONG_SHARE = 0.95
"""Share of the pieces that are about ``bptt`` long; the others are half as long."""


def rows_of(ids: NDArray[Any], batch: int) -> Tensor:
    """The text as ``batch`` rows (batch, length), without the rest that fills no row. Raises ``EunoeError`` for a text too short.

    >>> rows_of(np.arange(7), 3).tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    length = len(ids) // batch
    if length < 2:
        raise EunoeError(
            f"a text of {len(ids):,} tokens is too short for {batch} rows of two tokens or more. Give more text or a smaller batch."
        )
    return torch.from_numpy(np.ascontiguousarray(ids[: length * batch]).astype(np.int64).reshape(batch, length))


def lengths_of(targets: int, bptt: int, rng: np.random.Generator | None) -> list[int]:
    """Lengths of the pieces of ``targets`` tokens; without ``rng`` all are ``bptt`` long. The last takes what is left.

    >>> lengths_of(25, 10, None)
    [10, 10, 5]
    """
    lengths = []
    while targets > 0:
        length = bptt
        if rng is not None:
            base = bptt if rng.random() < LONG_SHARE else bptt / 2
            length = max(SHORTEST, int(rng.normal(base, SPREAD)))
        lengths.append(min(length, targets))
        targets -= lengths[-1]
    return lengths


@dataclass(frozen=True)
class StreamBatches:
    """``batches[step]``: the next piece of every row: ``input_ids`` and ``labels`` (batch, T), and ``start``, true at an epoch's first."""

    ids: NDArray[Any]
    batch: int
    bptt: int
    epochs: int
    seed: int
    variable: bool = True

    def __post_init__(self) -> None:
        if self.bptt < SHORTEST:
            raise EunoeError(f"bptt is {self.bptt}; pieces have {SHORTEST} tokens at least.")
        refuse_larger(self.batch, 2 * self.bptt, "rows")
        rows_of(self.ids[: 2 * self.batch], self.batch)

    @cached_property
    def rows(self) -> Tensor:
        """The text, (batch, length)."""
        return rows_of(self.ids, self.batch)

    @cached_property
    def pieces(self) -> list[tuple[int, int]]:
        """(start, length) of each step's piece."""
        targets, out = self.rows.shape[1] - 1, []
        for epoch in range(self.epochs):
            rng = np.random.default_rng((0xB977, self.seed, epoch)) if self.variable else None
            at = 0
            for length in lengths_of(targets, self.bptt, rng):
                out.append((at, length))
                at += length
        return out

    @cached_property
    def epoch_ends(self) -> list[int]:
        """Steps (from 1) after which an epoch is complete."""
        starts = [i for i, (at, _) in enumerate(self.pieces) if at == 0]
        return [*starts[1:], len(self.pieces)]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, step: int) -> list[Batch]:
        at, length = self.pieces[step]
        piece = self.rows[:, at : at + length + 1]
        return [
            {
                "input_ids": piece[:, :-1].contiguous(),
                "labels": piece[:, 1:].contiguous(),
                "start": torch.tensor(at == 0),
            }
        ]

    def scale(self, step: int) -> float:
        """What the learning rate of a step is multiplied by: its length over ``bptt``."""
        return self.pieces[step][1] / self.bptt


def in_order(ids: NDArray[Any], batch: int, bptt: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A text once, for scoring: (inputs, targets) of (batch, T), in order; rows as in training, none longer than ``bptt``."""
    rows = rows_of(ids, batch)
    at = 0
    for length in lengths_of(rows.shape[1] - 1, bptt, None):
        yield rows[:, at : at + length], rows[:, at + 1 : at + length + 1]
        at += length


__all__ = ["StreamBatches", "in_order", "lengths_of", "rows_of"]
