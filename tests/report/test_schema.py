from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.errors import EunoeError
from eunoe.report.schema import Row, append_rows, from_line, read_rows, to_line

ROW = Row(run="demo", method="cpt", transfer="finetune", order="given", seed=0, shots_seed=2022, learnt=("a", "b"), task="a",
          metric="accuracy", value=0.5, n=200, steps=32, detail={"yes": {"support": 100, "predicted": 90, "correct": 60}})  # fmt: skip


@given(st.text(), st.floats(-3e38, 3e38), st.lists(st.text(max_size=3)).map(tuple))
def test_a_row_survives_its_line(name: str, value: float, learnt: tuple[str, ...]) -> None:
    row = replace(ROW, run=name, value=value, learnt=learnt, detail={name: {"support": 1}})
    line = to_line(row)
    assert from_line(line) == row
    assert line.count("\n") == 1


def test_lines_that_hold_unusual_line_ends_are_still_one_row(tmp_path: Path) -> None:
    rows = [
        replace(ROW, detail={"odd\u2028class\x85\u2029": {"support": 1}}),
        replace(ROW, task="b", transfer=None, detail=None),
    ]
    append_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_appending_in_parts_gives_the_bytes_of_appending_at_once(tmp_path: Path) -> None:
    rows = [replace(ROW, seed=i) for i in range(5)]
    append_rows(tmp_path / "once.jsonl", rows)
    for row in rows:
        append_rows(tmp_path / "parts.jsonl", [row])
    assert (tmp_path / "once.jsonl").read_bytes() == (tmp_path / "parts.jsonl").read_bytes()


def test_a_line_cut_by_a_kill_is_left_out_and_then_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW, replace(ROW, seed=1)])
    whole = path.read_bytes()
    for cut in (1, 20, len(to_line(ROW)) - 1):
        path.write_bytes(whole[:-cut])
        assert read_rows(path) == [ROW]
        append_rows(path, [replace(ROW, seed=1)])
        assert path.read_bytes() == whole


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize(
    "change",
    [
        {"value": "high"}, {"value": float("nan")}, {"value": True}, {"learnt": "abc"}, {"learnt": [1]}, {"seed": 0.5},
        {"n": None}, {"task": None}, {"detail": [1]}, {"surprise": 1},
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW])
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**json.loads(to_line(ROW)), **change}) + "\n")
    with pytest.raises(EunoeError, match=r"rows\.jsonl:2 is not a row"):
        read_rows(path)


@pytest.mark.parametrize("line", [b"", b"[]", b"3", b"{", b"\xff", b"{}"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(to_line(ROW).encode() + line + b"\n")
    with pytest.raises(EunoeError, match=r"rows\.jsonl:2 is not"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_value_that_is_no_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="value is not a finite number"):
        to_line(replace(ROW, value=float("nan")))


def test_a_full_disk_leaves_the_earlier_rows_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW])
    before = path.read_bytes()

    def full(_file: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EunoeError, match="No space left on device"):
        append_rows(path, [replace(ROW, seed=1)])
    assert path.read_bytes() == before


def test_the_key_tells_rows_apart_by_everything_but_what_was_measured() -> None:
    assert replace(ROW, value=0.1, n=3, steps=1, detail=None, run="x").key == ROW.key
    for change in ({"method": "ncl"}, {"transfer": None}, {"order": "o"}, {"seed": 1}, {"shots_seed": 1}, {"learnt": ("a",)},
                   {"task": "b"}, {"metric": "macro_f1"}):  # fmt: skip
        assert replace(ROW, **change).key != ROW.key
