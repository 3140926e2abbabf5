"""What goes to GLUE's server: names, header, order and labels of every task; every kind of fault is told by file and line."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import pytest

from eunoe.data.glue import GLUE, read_glue
from eunoe.data.submission import (
    FILES,
    LARGEST,
    fill_submission,
    submission_file,
    validate_submission,
    write_submission,
)
from eunoe.errors import EunoeError
from tests.data.glue_layout import TEST_ROWS, write_glue

FEW = dict.fromkeys(FILES, TEST_ROWS)


def answers(root: Path) -> dict[tuple[str, str], list[str | float]]:
    """A prediction for each test row of a layout: the classes in turn, and numbers out of range too."""
    collected: dict[tuple[str, str], list[str | float]] = {}
    for task, split, _ in FILES.values():
        labels = GLUE[task].labels
        n = len(read_glue(task, str(root), split))
        collected[task, split] = [labels[i % len(labels)] if labels else -1.0 + 2.2 * i for i in range(n)]
    return collected


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture
def sent(root: Path, tmp_path: Path) -> Path:
    assert write_submission(tmp_path / "s.zip", answers(root)) == []
    return tmp_path / "s.zip"


def unpacked(file: Path, folder: Path) -> Path:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("CoLA.tsv", ["0\t0", "1\t1", "2\t0", "3\t1"]),
        ("SST-2.tsv", ["0\t0", "1\t1", "2\t0", "3\t1"]),
        ("MRPC.tsv", ["0\t0", "1\t1", "2\t0", "3\t1"]),
        ("STS-B.tsv", ["0\t0.000", "1\t1.200", "2\t3.400", "3\t5.000"]),
        ("QQP.tsv", ["0\t0", "1\t1", "2\t0", "3\t1"]),
        ("MNLI-m.tsv", ["0\tentailment", "1\tneutral", "2\tcontradiction", "3\tentailment"]),
        ("MNLI-mm.tsv", ["0\tentailment", "1\tneutral", "2\tcontradiction", "3\tentailment"]),
        ("QNLI.tsv", ["0\tentailment", "1\tnot_entailment", "2\tentailment", "3\tnot_entailment"]),
        ("RTE.tsv", ["0\tentailment", "1\tnot_entailment", "2\tentailment", "3\tnot_entailment"]),
        ("WNLI.tsv", ["0\t0", "1\t1", "2\t0", "3\t1"]),
        ("AX.tsv", ["0\tentailment", "1\tneutral", "2\tcontradiction", "3\tentailment"]),
    ],
)
def test_each_file_has_the_servers_name_header_order_and_labels(sent: Path, name: str, lines: list[str]) -> None:
    with zipfile.ZipFile(sent) as archive:
        assert archive.read(name).decode().splitlines() == ["index\tprediction", *lines]
        assert sorted(archive.namelist()) == sorted(FILES)


def test_the_zip_is_valid_and_the_same_bytes_for_the_same_predictions(sent: Path, root: Path, tmp_path: Path) -> None:
    assert validate_submission(sent, FEW) == []
    assert validate_submission(unpacked(sent, tmp_path / "out"), FEW) == []
    write_submission(tmp_path / "again.zip", answers(root))
    assert (tmp_path / "again.zip").read_bytes() == sent.read_bytes()


def test_official_row_counts_are_wanted_where_no_others_are_given(sent: Path) -> None:
    problems = validate_submission(sent)
    assert "CoLA.tsv: 4 predictions, expected 1,063" in problems
    assert "MNLI-mm.tsv: 4 predictions, expected 9,847" in problems
    assert len(problems) == len(FILES)


def test_missing_tasks_are_named_and_filled_on_request(root: Path, tmp_path: Path) -> None:
    some = {key: value for key, value in answers(root).items() if key[0] in ("rte", "stsb")}
    lacking = write_submission(tmp_path / "some.zip", some)
    assert set(lacking) == set(FILES) - {"RTE.tsv", "STS-B.tsv"}
    assert any("CoLA.tsv is missing" in problem for problem in validate_submission(tmp_path / "some.zip", FEW))
    write_submission(tmp_path / "all.zip", some, fill=True)
    assert validate_submission(tmp_path / "all.zip", {"RTE.tsv": TEST_ROWS, "STS-B.tsv": TEST_ROWS}) == []


def test_a_zip_is_filled_afterwards_to_the_same_bytes_and_keeps_what_it_holds(root: Path, tmp_path: Path) -> None:
    some = {key: value for key, value in answers(root).items() if key[0] in ("rte", "stsb")}
    lacking = write_submission(tmp_path / "later.zip", some)
    write_submission(tmp_path / "at_once.zip", some, fill=True)
    assert fill_submission(tmp_path / "later.zip") == lacking
    assert (tmp_path / "later.zip").read_bytes() == (tmp_path / "at_once.zip").read_bytes()
    assert fill_submission(tmp_path / "later.zip") == []
    with pytest.raises(EunoeError, match="is a folder; only a zip is filled"):
        fill_submission(tmp_path)


def test_small_and_scientific_numbers_are_scores(sent: Path, tmp_path: Path) -> None:
    folder = unpacked(sent, tmp_path / "out")
    (folder / "STS-B.tsv").write_text("index\tprediction\n0\t1e-3\n1\t5\n2\t5.\n3\t4.25E0", encoding="utf-8")
    assert validate_submission(folder, FEW) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "RTE.tsv",
            "index\tprediction",
            "id\tlabel",
            r"RTE.tsv, line 1: the header is 'id\tlabel', expected 'index\tprediction'",
        ),
        (
            "RTE.tsv",
            "1\tnot_entailment",
            "1\t1",
            "RTE.tsv, line 3: the prediction is '1', expected one of entailment, not_entailment",
        ),
        ("CoLA.tsv", "2\t0", "3\t0", "CoLA.tsv, line 4: the index is '3', expected 2"),
        ("QQP.tsv", "1\t1", "1,1", "QQP.tsv, line 3: 1 columns"),
        ("STS-B.tsv", "1.200", "7", "STS-B.tsv, line 3: the prediction is '7', expected a number from 0 to 5"),
        ("STS-B.tsv", "1.200", "nan", "STS-B.tsv, line 3: the prediction is 'nan', expected a number from 0 to 5"),
        (
            "STS-B.tsv",
            "1.200",
            "1_0e-1",
            "STS-B.tsv, line 3: the prediction is '1_0e-1', expected a number from 0 to 5",
        ),
        ("STS-B.tsv", "1.200", " 1.2", "STS-B.tsv, line 3: the prediction is ' 1.2', expected a number from 0 to 5"),
        ("STS-B.tsv", "1.200", "-1.2", "STS-B.tsv, line 3: the prediction is '-1.2', expected a number from 0 to 5"),
        ("STS-B.tsv", "1.200", "١.2", "STS-B.tsv, line 3: the prediction is"),
        ("RTE.tsv", "prediction\n", "prediction\r\n", "RTE.tsv, line 1: 1 lines end as on Windows (CRLF)"),
        (
            "RTE.tsv",
            "1\tnot_entailment\n",
            "1\tnot_entailment\r\n",
            "RTE.tsv, line 3: 1 lines end as on Windows (CRLF)",
        ),
        ("WNLI.tsv", "3\t1\n", "", "WNLI.tsv: 3 predictions, expected 4"),
    ],
)
def test_each_kind_of_fault_is_told_by_file_and_line(
    sent: Path, tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    folder = unpacked(sent, tmp_path / "out")
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_bytes(text.replace(old, new, 1).encode())
    problems = validate_submission(folder, FEW)
    assert len(problems) == 1
    assert said.replace("\\t", "\t") in problems[0].encode().decode("unicode_escape") or said in problems[0]


def test_a_stranger_a_missing_file_and_something_else_are_told(sent: Path, tmp_path: Path) -> None:
    folder = unpacked(sent, tmp_path / "out")
    (folder / "RTE.tsv").rename(folder / "rte.tsv")
    problems = " ".join(validate_submission(folder, FEW))
    assert "RTE.tsv is missing" in problems
    assert "'rte.tsv'" in problems
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(EunoeError, match=r"cannot be read: .*Give the zip"):
        validate_submission(tmp_path / "no.zip")


def test_what_is_no_class_or_number_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EunoeError, match=r"rte test, row 1: the prediction is 'yes'"):
        write_submission(tmp_path / "s.zip", {("rte", "test"): ["entailment", "yes"]})
    with pytest.raises(EunoeError, match=r"stsb test, row 0: the prediction is nan"):
        write_submission(tmp_path / "s.zip", {("stsb", "test"): [float("nan")]})
    with pytest.raises(EunoeError, match=r"test set of GLUE 'rtee test'"):
        write_submission(tmp_path / "s.zip", {("rtee", "test"): []})
    assert not (tmp_path / "s.zip").exists()


def test_files_go_by_the_servers_names() -> None:
    assert submission_file("mnli") == "MNLI-m.tsv"
    assert submission_file("ax") == "AX.tsv"


@pytest.mark.parametrize("name", ["RTE.tsv", "stranger.bin"])
def test_a_small_zip_that_unpacks_to_a_large_file_takes_no_memory(tmp_path: Path, name: str) -> None:
    packed = tmp_path / "s.zip"
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        for _ in range(120):
            file.write(bytes(10**6))
    tracemalloc.start()
    with pytest.raises(EunoeError, match=rf"more than 64 MiB up to its file {name}"):
        validate_submission(packed)
    with pytest.raises(EunoeError, match="more than 64 MiB"):
        fill_submission(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * LARGEST


@pytest.mark.parametrize("damage", ["encrypted", "method", "cut", "sum"])
def test_a_damaged_zip_is_told_in_one_line(sent: Path, damage: str) -> None:
    data = bytearray(sent.read_bytes())
    local, central = data.find(b"PK\x03\x04"), data.find(b"PK\x01\x02")
    if damage == "encrypted":
        data[local + 6] |= 1
        data[central + 8] |= 1
    elif damage == "method":
        data[local + 8] = data[central + 10] = 99
    elif damage == "cut":
        del data[central - 40 : central]
    else:
        data[central + 16] ^= 0xFF
    sent.write_bytes(bytes(data))
    with pytest.raises(EunoeError, match=r"cannot be read: .* Give the zip, or the folder") as caught:
        validate_submission(sent)
    assert "\n" not in str(caught.value)


def test_long_cells_are_cut_in_what_is_told(sent: Path, tmp_path: Path) -> None:
    folder = unpacked(sent, tmp_path / "out")
    (folder / "RTE.tsv").write_text("index\tprediction\n0\t" + "x" * 10**6 + "\n")
    assert max(map(len, validate_submission(folder, FEW))) < 300
    with pytest.raises(EunoeError, match="stsb test, row 0: the prediction is 'high'"):
        write_submission(tmp_path / "t.zip", {("stsb", "test"): ["high"]})
