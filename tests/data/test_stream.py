"""Consecutive pieces of one long text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eunoe.data.stream import StreamBatches, in_order, lengths_of
from eunoe.errors import EunoeError


def stream(**change: object) -> StreamBatches:
    settings: dict[str, object] = {"ids": np.arange(803), "batch": 4, "bptt": 10, "epochs": 2, "seed": 3}
    return StreamBatches(**{**settings, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("variable", [True, False])
def test_each_row_continues_the_one_before(variable: bool) -> None:
    batches = stream(variable=variable)
    per_epoch = batches.epoch_ends[0]
    for epoch in range(2):
        steps = range(epoch * per_epoch if epoch else 0, batches.epoch_ends[epoch])
        pieces = [batches[step][0] for step in steps]
        read = torch.cat([piece["input_ids"] for piece in pieces], 1)
        assert read.shape == (4, 199)
        assert read[1].tolist() == list(range(200, 399))
        assert torch.equal(torch.cat([piece["labels"] for piece in pieces], 1), read + 1)
        assert [bool(piece["start"]) for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert len(batches) == batches.epoch_ends[-1]


def test_lengths_vary_by_seed_and_epoch_and_scale_the_learning_rate() -> None:
    batches = stream(bptt=20)
    first, second = batches.epoch_ends
    one, two = ([n for _, n in batches.pieces[a:b]] for a, b in ((0, first), (first, second)))
    assert one != two
    assert len(set(one)) > 3
    assert batches.pieces == stream(bptt=20).pieces
    assert batches.pieces != stream(bptt=20, seed=4).pieces
    assert batches.scale(1) == one[1] / 20


def test_lengths_follow_the_papers_rule() -> None:
    lengths = np.array(lengths_of(2_000_000, 70, np.random.default_rng(0))[:-1])
    halves = (lengths < 53).mean()
    assert abs(halves - 0.05) < 0.005
    assert abs(lengths[lengths >= 53].mean() - 69.5) < 0.2  # int() cuts half a token off
    assert abs(lengths[lengths >= 53].std() - 5) < 0.2
    assert min(lengths_of(1000, 6, np.random.default_rng(0))[:-1]) == 5


def test_a_text_too_short_is_refused() -> None:
    with pytest.raises(EunoeError, match="a text of 5 tokens is too short for 4 rows"):
        stream(ids=np.arange(5))
    with pytest.raises(EunoeError, match="bptt is 4; pieces have 5"):
        stream(bptt=4)


def test_scoring_reads_each_place_once() -> None:
    targets = torch.cat([t for _, t in in_order(np.arange(21), 2, 4)], 1)
    assert targets.tolist() == [list(range(1, 10)), list(range(11, 20))]
