"""Rows of a buffer mixed into a stage's batches, for methods that learn old text again beside the new.

What is drawn is a pure function of (seed, step): a step that is computed again after a kill has the same rows, under the same
masks. A step's loss is a mean over all its items, so it is the same however its rows are cut into micro-batches and divided
between processes; the rows of the buffer are cut as the stage's own are, and need no more memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eunoe.data.collate import Batch, LMBatches
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError

FROM_BUFFER = "from_buffer"


@dataclass(frozen=True)
class Mixed:
    """``batches[step]``: the micro-batches of ``own``, and rows of ``buffer`` beside them.

    ``own``: the stage's batches (``LMBatches``), or these mixed with another buffer already. ``rows``: rows of the buffer in a step,
    over all micro-batches and processes; a fraction is kept in the mean over the steps (0.5: a row in every second step). ``seed``: what
    is drawn, and its masks, depend on it and on the step alone. ``make``: (step, [(block, place in the step)]) -> these rows
    as a batch; default: masked by (seed, step, place), as text that is learnt again. What it marks its rows with, 0 marks all others.

    Each batch says with ``from_buffer`` (B,) bool which of its rows are from the buffer; ``target_rows`` tells to which row a
    target position belongs. Raises ``EunoeError`` for blocks of another length, and for a number of rows that is not above 0.

    >>> Mixed(stage.batches, stage.earlier["law"], rows=rows_of_share(0.25, 48), seed=stage.seed)  # doctest: +SKIP
    """

    own: Any
    buffer: Blocks
    rows: float
    seed: int
    make: Callable[[int, Sequence[tuple[int, int]]], Batch] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rows < float("inf"):
            raise EunoeError(f"rows of the buffer in a step: {self.rows!r}; give a number above 0.")
        length, other = self.lm.blocks.ids.shape[1], self.buffer.ids.shape[1]
        if not len(self.buffer) or length != other:
            raise EunoeError(f"the buffer holds {len(self.buffer)} blocks of {other} tokens; it needs at least one, of {length} tokens as "
                             "the stage's own.")  # fmt: skip

    @property
    def lm(self) -> LMBatches:
        """The stage's own batches, below all that is mixed in: they say how text is masked and divided."""
        return lm_batches(self.own)

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, step: int) -> list[Batch]:
        micro = [_marked(batch, False) for batch in self.own[step]]
        chosen = self.drawn(step)
        world, rank = self.lm.world, self.lm.rank
        # as many groups as keep to micro_batch, and none in which a process has no row: each must pass the model as often
        groups = 0 if self.lm.micro_batch is None else min(-(-len(chosen) // self.lm.micro_batch), len(chosen) // world)
        for part in np.array_split(np.arange(len(chosen)), groups or 1):
            drawn = [(int(chosen[i]), int(i)) for i in part[rank::world]]
            if not drawn:
                continue
            added = _marked((self.make or self._collate)(step, drawn), True)
            micro = [*micro, added] if groups else [*micro[:-1], join_rows([micro[-1], added])]
        return micro

    def drawn(self, step: int) -> NDArray[np.int64]:
        """Which blocks of the buffer a step reads; none twice in a step, unless the buffer is smaller than that."""
        count = int((step + 1) * self.rows + 1e-9) - int(step * self.rows + 1e-9)
        rng = np.random.default_rng((0xB0FF, self.seed, step))
        return rng.choice(len(self.buffer), count, replace=count > len(self.buffer))

    def _collate(self, step: int, chosen: Sequence[tuple[int, int]]) -> Batch:
        """Blocks, each with its place in the step: masks are drawn by the place, whoever computes it."""
        return self.lm.collate([(self.buffer.ids[block], (0xB0FF, self.seed, step, place)) for block, place in chosen])


def lm_batches(batches: Any) -> LMBatches:
    """A stage's own batches, below all that is mixed in. Raises ``EunoeError`` for batches of another kind, which hold no blocks."""
    while isinstance(batches, Mixed):
        batches = batches.own
    if not isinstance(batches, LMBatches):
        raise EunoeError(
            f"the stage's batches are {type(batches).__name__}; this method reads the blocks behind them and needs LMBatches."
        )
    return batches


def rows_of_share(share: float, batch: int) -> float:
    """Rows a step that make ``share`` (above 0, below 1) of all rows those of the buffer, beside ``batch`` own ones.

    >>> rows_of_share(0.25, 48)
    16.0
    """
    if not 0 < share < 1:
        raise EunoeError(f"the buffer's share is {share!r}; give a number above 0 and below 1.")
    return batch * share / (1 - share)


def target_rows(batch: Batch) -> Tensor:
    """Row (n,) of each target position: ``batch["from_buffer"][target_rows(batch)]`` says which are from the buffer."""
    return batch["positions"] // batch["input_ids"].shape[1]


def take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of an LM batch, as a batch: for passes that need single examples."""
    width, of_row = batch["input_ids"].shape[1], target_rows(batch)
    taken: list[Batch] = []
    for row in rows:
        here = of_row == row
        taken.append(
            {k: v[row : row + 1] for k, v in batch.items() if k not in ("positions", "labels")}
            | {"positions": batch["positions"][here] - row * width, "labels": batch["labels"][here]}
        )
    return join_rows(taken)


def join_rows(batches: Sequence[Batch]) -> Batch:
    """LM batches of one block length as one, rows in the same order; where one lacks a mark of rows, its rows have 0."""
    if len(batches) == 1:
        return batches[0]
    sizes = [batch["input_ids"].numel() for batch in batches]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    marks = {key: batch[key] for batch in batches for key in batch if key not in ("positions", "input_ids", "labels")}
    batches = [
        {key: mark.new_zeros(len(batch["input_ids"])) for key, mark in marks.items()} | dict(batch) for batch in batches
    ]
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0] if key != "positions"}
    return joined | {"positions": torch.cat([b["positions"] + s for b, s in zip(batches, starts, strict=True)])}


def _marked(batch: Batch, buffer: bool) -> Batch:
    if FROM_BUFFER in batch:
        return batch
    return {**batch, FROM_BUFFER: torch.full((len(batch["input_ids"]),), buffer)}


__all__ = ["FROM_BUFFER", "Mixed", "join_rows", "lm_batches", "rows_of_share", "take_rows", "target_rows"]
