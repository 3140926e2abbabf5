"""The room left in plug-ins: shares, warnings, maps; files that are missing or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from eunoe.report.capacity import Side, free_shares, scarce, sides
from eunoe.report.page import write_report
from eunoe.report.read import Room, read_rooms
from tests.report.made_up import DOMAINS, made_up_capacity, made_up_run
from tests.report.test_page import page


def room(place: int, free: int, seed: int = 0, layer: str = "encoder.layer.0") -> Room:
    mask = {
        "layer": layer,
        "part": "attention",
        "units": "inner",
        "size": 100,
        "used": 100 - free,
        "shared": 0,
        "free": free,
    }
    return Room("cpt", "given", seed, place, "ab"[place], [mask])


def test_free_shares_are_means_over_sequences_domain_by_domain() -> None:
    rooms = [room(0, 60), room(1, 20), room(0, 40, seed=1), room(1, 10, seed=1)]
    assert sides(rooms) == [Side("attention", "inner")]
    assert free_shares(rooms, Side("attention", "inner")) == {"encoder.layer.0": [0.5, pytest.approx(0.15)]}
    assert free_shares(rooms, Side("attention", "outer")) == {}


def test_the_warning_names_the_fullest_mask_and_what_to_do() -> None:
    assert scarce([room(0, 5), room(1, 10)], "cpt") == ""  # the state at the end counts, and 10 % are enough
    told = scarce([room(0, 50), room(1, 9), room(0, 50, seed=1), room(1, 3, seed=1)], "cpt")
    assert told.startswith("cpt: after b, 2 of 2 masks have less than 10 % of their units free; least layer 0 (attention, inner), 3 of "
                           "100 (seed 1).")  # fmt: skip
    assert "Wider plug-ins" in told


def test_the_page_maps_each_kind_of_mask_and_warns(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "four")
    assert "Room left" not in page(write_report([run])).text
    made_up_capacity(run)
    read = page(write_report([run]))
    for words in (
        "Room left in the plug-ins",
        "feed-forward, outer",
        "cpt: after bbc_news",
        "mean of 3 seeds",
        "Units used, shared and free",
    ):
        assert words in read.text, words
    assert sum("share of free units" in (a.get("aria-label") or "") for _, a in read.elements) == 4
    made_up_capacity(run, free=0.9)
    assert "cpt: after" not in page(write_report([run])).text


def test_a_broken_capacity_is_left_out(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "four")
    made_up_capacity(run)
    whole = read_rooms(run)
    assert len(whole) == 3 * len(DOMAINS)
    files = sorted(run.glob("sequences/*/domains/*/capacity.json"))
    for file, text in zip(files, ("[", "[]", "{}", '[{"layer": 1}]', '[{"layer": "a", "part": "b", "units": "c", "size": 0, "used": 0, '
                                  '"shared": 0, "free": 0}]'), strict=False):  # fmt: skip
        file.write_text(text)
    assert len(read_rooms(run)) == len(whole) - 5
    assert write_report([run]).is_file()
