"""Phases of unfreezing and discriminative learning rates, written out."""

from __future__ import annotations

import pytest

from eunoe.optim.unfreeze import discriminative, unfreezing_phases

PHASES = {
    ("none", 4, None): ["0123"],
    ("last", 4, None): ["3"],
    ("gradual", 4, None): ["3", "23", "123", "0123"],
    ("gradual", 4, 2): ["3", "23", "0123"],
    ("gradual", 4, 9): ["3", "23", "123", "0123"],
    ("chain-thaw", 4, None): ["3", "0", "1", "2", "0123"],
    ("chain-thaw", 4, 2): ["3", "0", "0123"],
    ("gradual", 1, None): ["0"],
    ("chain-thaw", 1, None): ["0"],
}


@pytest.mark.parametrize(("order", "groups", "most"), PHASES)
def test_phases(order: str, groups: int, most: int | None) -> None:
    phases = unfreezing_phases(order, groups, most)  # type: ignore[arg-type]
    assert ["".join(map(str, sorted(phase))) for phase in phases] == PHASES[order, groups, most]


def test_rates_of_the_papers_chain() -> None:
    assert discriminative(5) == pytest.approx([1 / 45.6976, 1 / 17.576, 1 / 6.76, 1 / 2.6, 1.0])
    assert discriminative(3, 1.0) == [1.0, 1.0, 1.0]
    assert discriminative(1) == [1.0]


def test_what_is_no_order_or_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown order 'up'; allowed: none, last, gradual, chain-thaw"):
        unfreezing_phases("up", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups 0"):
        unfreezing_phases("gradual", 0)
