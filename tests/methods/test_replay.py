"""Replay: how many old rows a step has, of which text, and that nothing more is asked of a run than its settings read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eunoe.contract.way import Way, text
from eunoe.data.buffer import target_rows
from eunoe.methods import choose_method
from tests.tiny import tiny_bert, tiny_gpt2


def rows(
    choice: dict[str, Any], i: int, model: Any = tiny_bert, order: tuple[str, ...] | None = None
) -> list[tuple[bool, set[int]]]:
    """Of every row in the six steps of stage ``i``: whether it is old, and its target tokens."""
    way = Way({"name": "replay", **choice}, model, order)
    stage = way.stage(i).bind(general=text("sea") if choice.get("source") == "general" else None)
    found = []
    for micro in (way.make().batches(stage)[step] for step in range(6)):
        for batch in micro:
            old = batch.get("from_buffer", torch.zeros(len(batch["input_ids"]), dtype=torch.bool)).tolist()
            for row, is_old in enumerate(old):
                found.append((is_old, set(batch["labels"][target_rows(batch) == row].tolist())))
    return found


def words(domain: str) -> set[int]:
    return set(text(domain).ids.flatten().tolist())


@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize(("share", "old"), [(0.25, 12), (0.5, 36), (0.1, 4)])
def test_the_share_of_old_rows_is_of_the_earlier_domains(share: float, old: int, model: Any) -> None:
    """Six steps of six own rows: 36 stay, and share / (1 - share) times as many come."""
    first, second = (rows({"share": share}, i, model) for i in (0, 1))
    assert [is_old for is_old, _ in first] == [False] * 36
    assert [is_old for is_old, _ in second].count(True) == old
    assert [is_old for is_old, _ in second].count(False) == 36
    for is_old, targets in second:
        assert targets
        assert targets <= words("food" if is_old else "law")


def test_a_domain_that_returns_is_no_old_text_of_itself() -> None:
    order = ("food", "food", "law", "food")
    assert not any(is_old for is_old, _ in rows({}, 1, order=order))
    third = [targets for is_old, targets in rows({}, 3, order=order) if is_old]
    assert third
    assert all(targets <= words("law") for targets in third)


def test_general_text_is_replayed_in_every_stage() -> None:
    for i in (0, 1):
        old = [targets for is_old, targets in rows({"source": "general", "share": 0.5}, i) if is_old]
        assert len(old) == 36
        assert all(targets <= words("sea") for targets in old)


@pytest.mark.parametrize(
    ("choice", "reads"),
    [
        ("replay", {"earlier"}),
        ({"name": "replay", "source": "general"}, {"general"}),
        ("wise", set()),
        ({"name": "wise", "alpha": None}, {"earlier"}),
        ({"name": ["replay", "wise"], "replay": {"source": "general"}, "wise": {"alpha": None}}, {"earlier", "general"}),
        ("ewc", set()),
    ],
)  # fmt: skip
def test_a_stage_hands_out_only_the_old_text_that_the_settings_read(choice: Any, reads: set[str]) -> None:
    assert choose_method(choice, "test").reads == reads
