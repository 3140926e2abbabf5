"""Whatever stands in a run folder: a page, or one error that names the file; never another exception, never a silent loss.

Every file of a run over domains and of a study is damaged in many ways, one at a time. The values are those that reports
really met: words for numbers, nan, numbers that no float holds, nested and empty things, half a line, other encodings.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from eunoe.errors import EunoeError
from eunoe.report import files
from eunoe.report.answer import answer
from eunoe.report.classes import class_counts
from eunoe.report.page import write_report
from eunoe.report.read import damaged, read_run
from eunoe.report.retention import kept_by_domains
from eunoe.report.samples import Sample, write_samples
from eunoe.report.schema import Row, append_rows, from_line, read_rows, to_line
from eunoe.report.study import summarize_study
from eunoe.report.summary import labels, summarize
from eunoe.report.terminal import print_run
from tests.report.made_up import made_up_capacity, made_up_facts, made_up_rows, made_up_run, made_up_study, study_rows
from tests.report.test_page import page

BYTES = {
    "empty": b"",
    "a line feed": b"\n",
    "not UTF-8": b"\xff\xfe\x00",
    "zeros": bytes(64),
    "null": b"null\n",
    "a number": b"3\n",
    "a text": b'"text"\n',
    "a list": b"[1, 2]\n",
    "a list of lists": b"[[]]\n",
    "an object": b"{}\n",
    "a list of objects": b'[{"a": {"b": [1e999, NaN]}}]\n',
    "half an object": b'{"a": ',
    "nested": b"[" * 1500 + b"]" * 1500 + b"\n",
    "digits": b"9" * 6000 + b"\n",
    "yaml of a list": b"- a\n- b\n",
    "yaml that is none": b"a: ]b\n\tc\n",
    "yaml of odd keys": b"1: 2\n? [a]\n: b\n",
    "csv without its columns": b"a,b\n1,2\n",
    "an open quote": b'step,loss,metric,value\n"1,2,3,4\n',
    "a long cell": b"step,metric,loss,value\n1," + b"x" * 200_000 + b",1,1\n",
}
FILES = ("rows.jsonl", "recipe.yaml", "environment.json", "texts.json", "finished.json", "times.jsonl", "samples.jsonl", "matrix.csv",
         "report.html", "sequences/cpt.given.seed0/notes.json", "sequences/cpt.given.seed0/samples.jsonl",
         "sequences/cpt.given.seed0/domains/0-a/curve.csv", "sequences/cpt.given.seed0/domains/0-a/capacity.json",
         "head/curve.csv", "methods.json")  # fmt: skip
CELL = "cells/rte/adamw-0.seed0"
CELL_FILES = (*FILES[:8], f"{CELL}/rows.jsonl", f"{CELL}/curve.csv", f"{CELL}/observed.csv")


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run over two domains with every file a run leaves."""
    folder = made_up_run(
        tmp_path_factory.mktemp("domains") / "run", made_up_rows(methods=("cpt",), seeds=(0,), domains=("a", "b"))
    )
    made_up_capacity(folder, layers=1)
    (folder / "sequences/cpt.given.seed0/notes.json").write_text('{"general": "how", "lines": ["a note"]}\n')
    (folder / "head").mkdir()
    (folder / "head/curve.csv").write_text("step,loss\n1,2.5\n")
    _whole(folder, "sequences/cpt.given.seed0/samples.jsonl")
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study of one task with every file a study leaves."""
    systems = {"adamw": ("lr=1", "lr=2"), "recadam": ("",)}
    rows = study_rows(tasks={"rte": ("accuracy",)}, systems=systems, seeds=(1,), texts=("t",), layers=1)
    folder = made_up_study(tmp_path_factory.mktemp("study") / "run", rows)
    _whole(folder)
    return folder


def _whole(folder: Path, *samples: str) -> None:
    for name in ("texts.json", "finished.json"):
        (folder / name).write_text('{"a": "b"}\n')
    (folder / "times.jsonl").write_text('{"what": "a", "seconds": 1.0, "tokens": 1}\n')
    (folder / "methods.json").write_text(json.dumps(made_up_facts(["cpt"])))
    for name in ("samples.jsonl", *samples):
        answer = Sample(method="cpt", order="given", seed=0, learnt=("a",), reads_as=None, prompt="Why?", answer="So.")
        write_samples(folder / name, [answer])


def looked_at(folder: Path) -> str | None:
    """The page and the terminal's tables together; None where one error came instead, which names a file of the folder."""
    console = Console(width=500, file=io.StringIO(), color_system=None)
    try:
        path = write_report(folder)
        print_run(read_run(folder), console)
    except EunoeError as caught:
        said = str(caught)
    else:
        assert isinstance(console.file, io.StringIO)
        return page(path).text + console.file.getvalue()
    assert str(folder) in said or "two rows of run" in said or "Rows of one order" in said
    assert len(said) < 1500
    return None


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_the_runs_of_these_tests_are_whole(domains: Path, study: Path, tmp_path: Path) -> None:
    for folder in (domains, study):
        copy = copied(folder, tmp_path / folder.parent.name)
        text = looked_at(copy)
        assert text is not None
        assert "damaged" not in text
        assert damaged(copy) == []
        assert all(
            (copy / name).exists() for name in (FILES if folder is domains else CELL_FILES) if name != "matrix.csv"
        )


# -- whole files ----------------------------------------------------------------------------------------------------
SHOWN = {
    "recipe.yaml",
    "environment.json",
    "samples.jsonl",
    "notes.json",
    "curve.csv",
    "capacity.json",
    "observed.csv",
    "methods.json",
}
"""Files that the page and the terminal show something of."""


@pytest.mark.parametrize("kind", ["domains", "study"])
@pytest.mark.parametrize("odd", BYTES, ids=lambda name: name.replace(" ", "_"))
def test_any_damaged_file_leaves_a_page_or_one_error_that_names_it(
    kind: str, odd: str, domains: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "eunoe.report.page.render", lambda runs: "".join(str(run) for run in runs)
    )  # the pages are made below
    folder = copied(domains if kind == "domains" else study, tmp_path / "run")
    for name in FILES if kind == "domains" else CELL_FILES:
        file = folder / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(BYTES[odd])
        found = {damage.file: damage.why for damage in damaged(folder)}
        assert all(str(file) in why for file, why in found.items())
        said, sentences = "", []
        try:
            sentences = read_run(folder).damaged
        except EunoeError as caught:
            said = str(caught)
        assert not said or file.name == "rows.jsonl"
        assert not said or str(file) in said or f"{folder} has no scores: rows.jsonl" in said
        shown = file.name in {*SHOWN, "rows.jsonl"} and "sequences/cpt.given.seed0/samples" not in name
        assert said or any(name in sentence for sentence in sentences) == (file in found and shown), name
        assert not any(str(folder) in sentence for sentence in sentences)
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


@pytest.mark.parametrize("kind", ["domains", "study"])
def test_a_page_says_which_files_are_damaged(kind: str, domains: Path, study: Path, tmp_path: Path) -> None:
    folder = copied(domains if kind == "domains" else study, tmp_path / "run")
    names = [
        name for name in (FILES if kind == "domains" else CELL_FILES) if Path(name).name in SHOWN and name != FILES[10]
    ]
    for name in names:
        (folder / name).write_bytes(b'{"a": [1e999]}\n\xff\n')
    text = looked_at(folder)
    assert text is not None
    for name in names:
        assert text.replace("\n", " ").count(f"damaged, and left out: {name}") == 2, (
            "once on the page and once in the terminal"
        )
    (folder / "rows.jsonl").write_bytes(b'{"a": [1e999]}\n')
    assert looked_at(folder) is None


@pytest.mark.parametrize("name", ["matrix.csv", "report.html"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data.replace(b"0.5", b"0.6"), lambda data: b""]
)
def test_what_no_longer_says_what_the_rows_say_is_found(
    name: str, damage: Callable[[bytes], bytes], domains: Path, tmp_path: Path
) -> None:
    from eunoe.report.matrices import write_matrix

    folder = copied(domains, tmp_path / "run")
    write_report(folder)
    write_matrix(read_rows(folder / "rows.jsonl"), folder / "matrix.csv")
    assert damaged(folder) == []
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(damage(data))
    if name == "matrix.csv" or not damage(data).endswith(b"</html>\n"):
        ((file, why),) = damaged(folder)
        assert file == folder / name
        assert str(file) in why
        assert "run the same command again" in why


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to(file.parent / "gone"),
                                  lambda file: file.symlink_to("/dev/zero")],
                         ids=["folder", "pipe", "dangling link", "endless device"])  # fmt: skip
@pytest.mark.parametrize("name", ["rows.jsonl", "environment.json", "sequences/cpt.given.seed0/domains/0-a/curve.csv"])
def test_what_is_no_file_is_named_and_never_waited_for(
    name: str, make: Callable[[Path], None], domains: Path, tmp_path: Path
) -> None:
    folder = copied(domains, tmp_path / "run")
    (folder / name).unlink()
    make(folder / name)
    text = looked_at(folder)
    assert (text is None) == (name == "rows.jsonl")
    missing = name.endswith("curve.csv") and not (folder / name).exists()  # such a link is no file of the folder
    assert text is None or missing or f"damaged, and left out: {name}" in text


# -- single values --------------------------------------------------------------------------------------------------
VALUES = (None, True, False, 0, -1, 3, 2**53, 2**63, 10**400, 1.5, -0.0, 1e38, 1e39, 1e308, float("nan"), float("inf"), "", "3", "nan",
          "text", "general", "base", "lm_loss", "cka@t", "lm_loss@", "@", "best", "\x1b[31m\x07", "\ud800", "x" * 20_000, [], ["a"],
          ["a", "a"], [None], [[]], {}, {"a": 1}, {"a": {"support": 10**400, "predicted": 1, "correct": 1}},
          {"before": "x"},
          {"before": 1e308}, {"before": float("nan")}, {"layers": {"a": 1e308, "b": True}}, {"layers": []},
          {"layers": {"0": None}})  # fmt: skip
KEYS = [*json.loads(to_line(made_up_rows()[0])), "unknown"]


def oddly(rows: list[Row], key: str, value: object, which: int) -> Iterator[str]:
    for i, row in enumerate(rows):
        data = json.loads(to_line(row))
        if i == which:
            data[key] = value
        yield json.dumps(data) + "\n"


@pytest.mark.parametrize("kind", ["domains", "study"])
@pytest.mark.parametrize("key", KEYS)
def test_any_value_in_a_row_leaves_tables_or_one_error_that_names_the_line(
    key: str, kind: str, domains: Path, study: Path, tmp_path: Path
) -> None:
    folder = copied(domains if kind == "domains" else study, tmp_path / "run")
    rows = read_rows(folder / "rows.jsonl")
    for i, value in enumerate(VALUES):
        which = i % 2 * (len(rows) - 1)
        (folder / "rows.jsonl").write_text("".join(oddly(rows, key, value, which)), encoding="utf-8")
        console = Console(width=80, file=io.StringIO(), color_system=None)
        try:
            print_run(read_run(folder), console)
        except EunoeError as error:
            said = str(error)
            assert (
                f"rows.jsonl:{which + 1} is not a row" in said
                or "two rows of run" in said
                or "Rows of one order" in said
            )
            assert len(said) < 1500
        else:
            assert isinstance(console.file, io.StringIO)
            assert "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize(
    "keys", [("value", "n", "steps"), ("detail", "short_shots"), ("method", "metric", "task")], ids="-".join
)
@pytest.mark.parametrize("kind", ["domains", "study"])
def test_what_can_be_read_can_be_drawn(
    kind: str, keys: tuple[str, ...], domains: Path, study: Path, tmp_path: Path
) -> None:
    """One page with every odd value that rows may hold under these keys, each in another row."""
    folder = copied(domains if kind == "domains" else study, tmp_path / "run")
    lines = [to_line(row) for row in read_rows(folder / "rows.jsonl")]
    odd = [(key, value) for value in VALUES for key in keys]
    for i, (key, value) in enumerate(odd):
        place = i * len(lines) // len(odd)
        line = json.dumps({**json.loads(lines[place]), key: value})
        with suppress(EunoeError):
            from_line(line)
            lines[place] = line + "\n"
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    assert looked_at(folder) is not None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_of_curves_and_masks(
    data: st.DataObject, domains: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = domains / "sequences/cpt.given.seed0/domains/1-b"
    odd = st.sampled_from(
        ["", "x", "nan", "inf", "1e400", "-1", "0", "9" * 5000, "1e38", "\x00", '"', "٣", "1_0", " 4 "]
    )
    cells = data.draw(st.lists(st.tuples(odd, odd), max_size=4))
    masks = st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=3),
                         lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["layer", "size", "free"]), inner),
                         max_leaves=5)  # fmt: skip
    before = {name: (folder / name).read_bytes() for name in ("curve.csv", "capacity.json")}
    try:
        (folder / "curve.csv").write_text(
            "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in cells), encoding="utf-8"
        )
        (folder / "capacity.json").write_text(json.dumps(data.draw(masks)), encoding="utf-8")
        run = read_run(domains)
        named = {sentence.split(" ")[4] for sentence in run.damaged}
        assert len(named) == len(run.damaged)
    finally:
        for name, content in before.items():
            (folder / name).write_bytes(content)


# -- other versions -------------------------------------------------------------------------------------------------
ROW = made_up_rows()[-1]


@pytest.mark.parametrize("newer", [("short_shots",), ("short_shots", "detail"), ("short_shots", "detail", "at")])
def test_a_row_from_before_a_field_was_added_is_read_with_its_default(newer: tuple[str, ...], tmp_path: Path) -> None:
    data = {key: value for key, value in json.loads(to_line(ROW)).items() if key not in newer}
    row = from_line(json.dumps(data))
    assert row == replace(ROW, **{key: {"at": "last"}.get(key) for key in newer})  # type: ignore[arg-type]
    rows = [{k: v for k, v in json.loads(to_line(row)).items() if k not in newer} for row in made_up_rows()]
    run = made_up_run(tmp_path / "old", curves=False)
    (run / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "next comes cpt, which learnt 0.746 ± 0.017 and forgot exactly 0" in answer(summarize(read_run(run).rows))


def test_a_field_of_a_later_version_is_refused_by_its_name(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "new", curves=False)
    with open(run / "rows.jsonl", "a") as file:
        file.write(json.dumps({**json.loads(to_line(ROW)), "weighting": "rows"}) + "\n")
    with pytest.raises(
        EunoeError, match=r"rows.jsonl:\d+ is not a row of this project \(.*'weighting'.*later version of eunoe"
    ):
        write_report(run)


def test_old_runs_whose_methods_bear_the_names_of_the_heads_rows_have_a_page(tmp_path: Path) -> None:
    heads = [replace(row, method=name, order="none", learnt=(), transfer=None, shots_seed=None, metric="lm_loss", detail=None,
                     task="general", value=value, steps=0)
             for row in made_up_rows(seeds=(0,))[:1] for name, value in (("head-start", 10.5), ("head-trained", 6.0))]  # fmt: skip
    methods = ("head-start", "head-trained")
    run = made_up_run(tmp_path / "old", heads + made_up_rows(methods=methods, seeds=(0,)))
    assert answer(summarize(read_run(run).rows)).startswith(
        ("Best at the end is head-start, ", "Best at the end is head-trained, ")
    )
    order_none = made_up_run(tmp_path / "none", heads + made_up_rows(methods=methods, seeds=(0,), order="none"))
    assert looked_at(order_none) is not None


# -- sizes ----------------------------------------------------------------------------------------------------------
def test_a_line_that_is_too_long_is_refused_without_being_read_whole(tmp_path: Path, domains: Path) -> None:
    folder = copied(domains, tmp_path / "run")
    with open(folder / "rows.jsonl", "ab") as file:
        file.truncate(file.tell() + 2**40)  # a hole of a terabyte, which takes no room on the disk
    with pytest.raises(EunoeError, match=r"rows.jsonl:\d+ is longer than 10,000,000 bytes"):
        read_run(folder)
    for name in (
        "environment.json",
        "recipe.yaml",
        "samples.jsonl",
        "sequences/cpt.given.seed0/domains/0-a/capacity.json",
    ):
        os.truncate(copied(domains, tmp_path / name.replace("/", "-")) / name, 2**40)
        (sentence,) = read_run(tmp_path / name.replace("/", "-")).damaged
        assert name in sentence


def lines_carried_out(work: Callable[[], object]) -> int:
    """How many lines of eunoe Python goes through, each turn of a loop or comprehension counted: no clock, so no load is in it."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        count += 1
        return trace if "eunoe" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_the_count_of_lines_tells_all_with_all_from_one_by_one() -> None:
    code = compile("def all_with_all(n):\n    return [i for i in range(n) for j in range(n) if i == j]\n"
                   "def one_by_one(n):\n    return [i for i in range(n) if i]\n", "eunoe/made_up.py", "exec")  # fmt: skip
    made: dict[str, Any] = {}
    exec(code, made)
    few, many = (lines_carried_out(lambda n=n: made["all_with_all"](n)) for n in (50, 200))
    assert many > 12 * few
    few, many = (lines_carried_out(lambda n=n: made["one_by_one"](n)) for n in (50, 200))
    assert many < 5 * few


@pytest.mark.parametrize("kind", ["method", "seed", "run", "transfer", "task"])
def test_rows_are_read_and_summed_up_in_steps_that_grow_as_their_number(kind: str, tmp_path: Path) -> None:
    """Four times the rows, each of its own method, seed, task or system: whoever compares all with all needs sixteen times the steps."""
    counts = []
    for many in (150, 600):
        base = ROW if kind not in ("transfer", "task") else replace(ROW, method="base", learnt=())
        rows = [replace(base, **{kind: i if kind == "seed" else f"n{i}"}) for i in range(many)]
        (tmp_path / "rows.jsonl").write_text("".join(map(to_line, rows)))

        def summed_up() -> None:
            run = read_run(tmp_path)
            if run.study is None:
                summarize(run.rows), class_counts(run.rows), kept_by_domains(run.rows, labels(run.rows))
            else:
                summarize_study(run.rows, run.study)

        counts.append(lines_carried_out(summed_up))
    assert counts[1] < 5 * counts[0]


def test_adding_a_row_reads_no_more_than_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, [replace(ROW, seed=i) for i in range(2000)])
    whole = file.read_bytes()
    file.write_bytes(whole + to_line(replace(ROW, seed=3000)).encode()[:-1])
    append_rows(file, [replace(ROW, seed=2000)])
    assert file.read_bytes() == whole + to_line(replace(ROW, seed=2000)).encode()
    os.truncate(file, 0)
    append_rows(file, [ROW])
    assert read_rows(file) == [ROW]
    with open(file, "ab") as longer:
        longer.truncate(2**38)  # one unfinished line that is longer than any memory; it ends in a line feed
        longer.write(b"\n")
    append_rows(file, [])
    assert file.stat().st_size == 2**38 + 1


# -- names ----------------------------------------------------------------------------------------------------------
def test_names_are_shown_escaped_in_the_terminal_and_on_the_page(tmp_path: Path) -> None:
    evil = "red\x1b[31m\x07\u202e"
    of_study = study_rows(run=evil, tasks={evil: (evil,)}, systems={evil: ("",), "b": ("",)}, texts=(evil,))
    of_domains = made_up_rows(run=evil, methods=(evil, "cpt"), domains=(evil, "b"), order=evil, seeds=(0,))
    for kind, rows in (("domains", of_domains), ("study", of_study)):
        make = made_up_run if kind == "domains" else made_up_study
        run = make(tmp_path / kind, rows, **{"curves" if kind == "domains" else "cells": False})
        text = looked_at(run)
        assert text is not None
        for sign in "\x1b\x07\u202e":
            assert sign not in text
            assert sign not in (run / "report.html").read_text(encoding="utf-8")
        assert "red\\x1b[31m\\x07\\u202e" in text


def test_tables_made_in_python_obey_no_name_either() -> None:
    from eunoe.report.terminal import print_summary

    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_summary(made_up_rows(methods=("a\x1b[2Jb",), seeds=(0,)), console)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b" not in console.file.getvalue()
    assert "\\x1b[2Jb" in console.file.getvalue()


def test_the_limits_are_far_from_what_runs_hold() -> None:
    assert len(to_line(ROW)) * 1000 < files.LINE
    assert files.DOCUMENT > files.LINE


@pytest.mark.parametrize("given", [None, 3, [None]])
def test_what_is_no_run_folder_is_refused_by_value(given: Any) -> None:
    with pytest.raises(EunoeError, match=r"a run folder is given as (None|3); give a path"):
        write_report(given)
