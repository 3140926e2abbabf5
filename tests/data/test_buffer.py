"""Rows of a buffer beside a stage's own: by (seed, step), under any micro-batches and processes, in the share asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from eunoe.data.buffer import Mixed, join_rows, rows_of_share, take_rows, target_rows
from eunoe.data.collate import Batch, LMBatches
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError

LENGTH, VOCABULARY, MASK = 8, 1000, 4


def blocks(first: int, n: int) -> Blocks:
    """``n`` blocks whose tokens stand in no other: a target token says which block it is of."""
    return Blocks(first + np.arange(n * LENGTH).reshape(n, LENGTH), np.arange(5), f"from {first}")


OWN, OLD, OLDER = blocks(10, 24), blocks(400, 10), blocks(700, 10)


def own(objective: Any = "masked", **change: Any) -> LMBatches:
    given = {"batch": 6, "steps": 8, "seed": 3, "micro_batch": None, "mask_rate": 0.4, **change}
    return LMBatches(OWN, objective, MASK, VOCABULARY, **given)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


def targets(micro: list[Batch]) -> Counter[tuple[int, tuple[int, ...], bool]]:
    """Each target token, the row of inputs it stands in, and whether that row is from the buffer."""
    return Counter(
        (label, tuple(batch["input_ids"][row].tolist()), bool(batch["from_buffer"][row]))
        for batch in micro
        for label, row in zip(batch["labels"].tolist(), target_rows(batch).tolist(), strict=True)
    )


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_a_step_is_the_same_in_any_order_of_asking_and_another_seed_draws_others(objective: Any) -> None:
    mixed, again = (Mixed(own(objective), OLD, 2, 7) for _ in range(2))
    forward = [mixed[step] for step in range(8)]
    assert all(same(again[step], forward[step]) for step in reversed(range(8)))
    other = Mixed(own(objective), OLD, 2, 8)
    assert not all(same(other[step], forward[step]) for step in range(8))
    assert len({tuple(mixed.drawn(step)) for step in range(8)}) > 1


@pytest.mark.parametrize("objective", ["masked", "causal"])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("micro_batch", [None, 2, 3])
def test_nothing_is_lost_or_changed_under_micro_batches_and_processes(
    micro_batch: int | None, world: int, rows: int, objective: Any
) -> None:
    whole = Mixed(own(objective), OLD, rows, 7)
    parts = [Mixed(own(objective, micro_batch=micro_batch, rank=r, world=world), OLD, rows, 7) for r in range(world)]
    for step in range(8):
        each = [part[step] for part in parts]
        assert len({len(micro) for micro in each}) == 1, "each process passes the model as often as the others"
        together = [batch for micro in each for batch in micro]
        assert all(len(batch["input_ids"]) for batch in together)
        assert targets(together) == targets(whole[step])
        if micro_batch:
            assert max(len(batch["input_ids"]) for batch in together) <= micro_batch // world + world
        for batch in together:  # of the right source, and where it says
            from_buffer = batch["from_buffer"][target_rows(batch)]
            assert torch.equal(from_buffer, batch["labels"] >= 400)
            if objective == "causal":
                assert torch.equal(batch["input_ids"].flatten()[batch["positions"]] + 1, batch["labels"])


@pytest.mark.parametrize(("share", "steps"), [(0.5, 8), (0.25, 8), (1 / 7, 8), (0.02, 50)])
def test_the_share_is_kept_over_the_steps_to_one_row(share: float, steps: int) -> None:
    mixed = Mixed(own(steps=steps), OLD, rows_of_share(share, 6), 7)
    marks = torch.cat([batch["from_buffer"] for step in range(steps) for batch in mixed[step]])
    assert len(marks) - int(marks.sum()) == 6 * steps
    assert int(marks.sum()) == pytest.approx(rows_of_share(share, 6) * steps, abs=1)
    assert marks.any()


def test_no_block_comes_twice_in_a_step_unless_the_buffer_is_smaller() -> None:
    assert all(len(set(Mixed(own(), OLD, 10, 1).drawn(step))) == 10 for step in range(8))
    assert len(Mixed(own(), blocks(400, 3), 10, 1).drawn(0)) == 10
    seen = {int(i) for step in range(8) for i in Mixed(own(), OLD, 5, 1).drawn(step)}
    assert seen == set(range(10)), "and all of it is read in time"


def test_a_row_drawn_again_in_another_step_has_another_mask() -> None:
    mixed = Mixed(own(), blocks(400, 1), 1, 7)
    rows = {tuple(batch["input_ids"][batch["from_buffer"]][0].tolist()) for step in range(8) for batch in mixed[step]}
    assert len(rows) > 1


def test_two_buffers_are_chained() -> None:
    first = Mixed(own(micro_batch=2), OLD, 2, 7)
    both = Mixed(first, OLDER, 3, 9)
    for step in range(8):
        micro = both[step]
        assert same(micro[: len(first[step])], first[step])
        marks = [int(batch["from_buffer"].sum()) for batch in micro]
        assert sum(marks) == 5
        labels = torch.cat([batch["labels"][batch["from_buffer"][target_rows(batch)]] for batch in micro])
        assert set((labels // 300).tolist()) == {1, 2}


def test_rows_are_taken_from_a_batch_and_joined_again() -> None:
    (batch,) = Mixed(own(), OLD, 2, 7)[0]
    rows = [take_rows(batch, [i]) for i in range(8)]
    assert same([join_rows(rows)], [batch])
    assert same([take_rows(batch, [6, 0])], [join_rows([rows[6], rows[0]])])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mixed(own(), OLD, 0, 7), "rows of the buffer in a step: 0; give a number above 0"),
        (lambda: Mixed(own(), OLD, float("nan"), 7), "give a number above 0"),
        (lambda: rows_of_share(1.0, 6), "share is 1.0; give a number above 0 and below 1"),
        (lambda: Mixed(own(), Blocks(np.zeros((3, 9)), np.arange(5), "x"), 1, 7), "3 blocks of 9 tokens; .* of 8 tokens"),
        (lambda: Mixed(own(), blocks(400, 0), 1, 7), "holds 0 blocks"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_words(call: Any, message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        call()
