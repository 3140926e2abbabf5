"""GLUE's folders as they are handed out: columns by name, no quoting, odd names, and errors that name file and line."""

from __future__ import annotations

import gzip
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from eunoe.data.glue import GLUE, has_split, load_glue, read_glue
from eunoe.errors import EunoeError
from tests.conftest import shared
from tests.data.glue_layout import TEST_ROWS, label, write_glue

NINE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(root, tmp_path / "glue"))


@pytest.mark.parametrize("task", NINE)
@pytest.mark.parametrize("split", ["train", "dev"])
def test_labelled_rows_are_read_in_order_with_their_texts_and_labels(root: Path, task: str, split: str) -> None:
    rows = read_glue(task, str(root), split)
    assert len(rows) == 6  # QQP's row that breaks off is left out
    for i, row in enumerate(rows):
        assert row.text == f'He said "stay, row {i} .'
        assert row.pair == (None if GLUE[task].pair is None else f"the river {i} 's bank .")
        assert row.label == (float(label(task, i)) if task == "stsb" else label(task, i))


@pytest.mark.parametrize("task", [*NINE, "ax"])
def test_test_rows_have_no_label(root: Path, task: str) -> None:
    for split in [s for s in GLUE[task].splits if s.startswith("test")]:
        rows = read_glue(task, str(root), split)
        assert len(rows) == TEST_ROWS
        assert all(row.label == "" or math.isnan(float(row.label)) for row in rows)
        assert has_split(task, str(root), split)


def test_mnli_has_two_development_sets_and_dev_is_the_matched_one(own: Path) -> None:
    file = own / "MNLI/dev_mismatched.tsv"
    file.write_text(file.read_text(encoding="utf-8").replace("He said", "She said"), encoding="utf-8")
    assert read_glue("mnli", str(own), "dev")[0].text.startswith("He")
    assert read_glue("mnli", str(own), "dev_mismatched")[0].text.startswith("She")


def test_a_task_to_fine_tune_has_the_papers_metric_first_and_rows_spread_evenly(root: Path) -> None:
    task = load_glue("mine", "mrpc", str(root), 3, 2)
    assert (task.name, task.kind, task.labels, task.metrics) == (
        "mine",
        "classification",
        ("0", "1"),
        ("accuracy", "f1"),
    )
    assert [len(task.train), len(task.test)] == [3, 2]
    assert len({row.text for row in task.train}) == 3
    assert load_glue("s", "stsb", str(root)).metrics == ("pearson", "spearman")
    assert load_glue("c", "cola", str(root)).metrics == ("matthews",)


def old_mrpc(folder: Path) -> None:
    """MRPC as its authors hand it out: the development rows among the training rows, their ids beside them."""
    learn, dev = (
        (folder / f"{split}.tsv").read_text(encoding="utf-8-sig").splitlines(True) for split in ("train", "dev")
    )
    mixed = [learn[0], *(row for pair in zip(dev[1:], learn[1:], strict=True) for row in pair)]
    (folder / "msr_paraphrase_train.txt").write_text("".join(mixed), encoding="utf-8-sig")
    (folder / "test.tsv").rename(folder / "msr_paraphrase_test.txt")
    (folder / "dev_ids.tsv").write_text("".join(f"3{i}\t4{i}\r\n" for i in range(6)), encoding="utf-8")
    (folder / "train.tsv").unlink()
    (folder / "dev.tsv").unlink()


def test_mrpc_under_its_old_names_keeps_the_development_rows_out_of_the_training_rows(own: Path) -> None:
    for split, who in (("train", "She"), ("dev", "He")):
        file = own / f"MRPC/{split}.tsv"
        file.write_text(file.read_text(encoding="utf-8").replace("He said", f"{who} said"), encoding="utf-8")
    train, dev = read_glue("mrpc", str(own), "train"), read_glue("mrpc", str(own), "dev")
    old_mrpc(own / "MRPC")
    assert read_glue("mrpc", str(own), "dev") == dev
    assert read_glue("mrpc", str(own), "train") == train
    assert not set(train) & set(dev)
    assert len(read_glue("mrpc", str(own), "test")) == TEST_ROWS
    (own / "MRPC/msr_paraphrase_train.txt").rename(own / "MRPC/train.tsv")  # the whole file under the new name
    assert read_glue("mrpc", str(own), "dev") == dev
    assert read_glue("mrpc", str(own), "train") == train


def test_mrpc_under_its_old_names_needs_the_development_rows_or_their_ids(own: Path) -> None:
    folder = own / "MRPC"
    train, dev = read_glue("mrpc", str(own), "train"), (folder / "dev.tsv").read_bytes()
    old_mrpc(folder)
    (folder / "dev_ids.tsv").write_text("30 40\n", encoding="utf-8")
    with pytest.raises(EunoeError, match=r"dev_ids.tsv, line 1: '30 40', expected #1 ID and #2 ID separated by a tab"):
        read_glue("mrpc", str(own), "train")
    (folder / "dev_ids.tsv").write_text("\n", encoding="utf-8")
    with pytest.raises(EunoeError, match=r"dev_ids.tsv is empty"):
        read_glue("mrpc", str(own), "train")
    (folder / "dev_ids.tsv").unlink()
    with pytest.raises(
        EunoeError,
        match=r"msr_paraphrase_train.txt holds the development rows too, and neither dev_ids.tsv nor dev.tsv",
    ):
        read_glue("mrpc", str(own), "train")
    (folder / "dev.tsv").write_bytes(dev)
    assert read_glue("mrpc", str(own), "train") == train


def test_labelled_rows_of_qqp_with_a_tab_too_many_are_left_out_as_those_that_break_off(own: Path) -> None:
    before = read_glue("qqp", str(own), "train")
    break_line(own / "QQP/train.tsv", 3, "said", "sa\tid")
    assert read_glue("qqp", str(own), "train") == [before[0], *before[2:]]


@pytest.mark.parametrize("file", ["RTE/test.tsv", "CoLA/test.tsv", "QQP/test.tsv"])
def test_a_blank_line_in_a_test_file_is_no_row(own: Path, file: str) -> None:
    task = file.split("/")[0].lower()
    before = read_glue(task, str(own), "test")
    break_line(own / file, 2, "0\t", "\n0\t")
    break_line(own / file, 5, "2\t", "\n2\t")
    assert read_glue(task, str(own), "test") == before


def test_folders_are_found_whatever_their_case_and_hyphens_and_files_may_be_packed(own: Path) -> None:
    before = read_glue("stsb", str(own), "dev")
    (own / "STS-B").rename(own / "sts_b")
    file = own / "sts_b/dev.tsv"
    (own / "sts_b/dev.tsv.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    assert read_glue("stsb", str(own), "dev") == before


# -- what is refused -------------------------------------------------------------------------------------------------
def break_line(file: Path, number: int, old: str, new: str) -> None:
    lines = file.read_text(encoding="utf-8").split("\n")
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    file.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "line", "old", "new", "task", "split", "said"),
    [
        (
            "RTE/dev.tsv",
            1,
            "sentence2",
            "sentense2",
            "rte",
            "dev",
            r"RTE/dev.tsv, line 1: unknown column 'sentence2'.*sentense2",
        ),
        (
            "RTE/dev.tsv",
            3,
            "not_entailment",
            "neutral",
            "rte",
            "dev",
            r"line 3: the label is 'neutral'; .*entailment, not_entailment",
        ),
        ("QNLI/train.tsv", 4, "\t", " ", "qnli", "train", r"QNLI/train.tsv, line 4: 3 columns, expected 4"),
        ("STS-B/dev.tsv", 2, "0.500", "good", "stsb", "dev", r"line 2: the score is 'good', expected a number"),
        (
            "STS-B/dev.tsv",
            2,
            "0.500",
            "17.5",
            "stsb",
            "dev",
            r"dev.tsv, line 2: the score is '17.5', expected .* 0 to 5",
        ),
        (
            "STS-B/train.tsv",
            3,
            "1.500",
            "-3",
            "stsb",
            "train",
            r"train.tsv, line 3: the score is '-3', expected .* 0 to 5",
        ),
        ("STS-B/train.tsv", 3, "1.500", "nan", "stsb", "train", r"line 3: the score is 'nan'"),
        (
            "RTE/train.tsv",
            3,
            "said",
            "sa\tid",
            "rte",
            "train",
            r"RTE/train.tsv, line 3: 5 columns, expected 4 .*stray tab",
        ),
        ("WNLI/test.tsv", 3, "said", "sa\tid", "wnli", "test", r"WNLI/test.tsv, line 3: 4 columns, expected 3"),
        ("CoLA/dev.tsv", 2, "said", "sa\tid", "cola", "dev", r"CoLA/dev.tsv, line 2: 5 columns, expected 4"),
        ("QQP/test.tsv", 3, "said", "sa\tid", "qqp", "test", r"QQP/test.tsv, line 3: 4 columns, expected 3"),
        ("QQP/test.tsv", 3, "\tthe river", " ", "qqp", "test", r"QQP/test.tsv, line 3: 2 columns, expected 3"),
        (
            "CoLA/train.tsv",
            1,
            "gj04",
            "source\tlabel\tmark\tsentence\ngj04",
            "cola",
            "train",
            r"CoLA/train.tsv, line 1: a header, .*CoLA's labelled files have none.*Take the line out",
        ),
        ("CoLA/train.tsv", 1, "gj04", "sentence\tlabel\ngj04", "cola", "train", r"line 1: a header"),
        ("CoLA/train.tsv", 2, "\t1\t", "\t2\t", "cola", "train", r"line 2: the label is '2'"),
        ("WNLI/test.tsv", 3, "1\t", "5\t", "wnli", "test", r"WNLI/test.tsv, line 3: index '5', expected 1"),
    ],
)
def test_a_broken_file_is_refused_by_file_and_line(
    own: Path, file: str, line: int, old: str, new: str, task: str, split: str, said: str
) -> None:
    break_line(own / file, line, old, new)
    with pytest.raises(EunoeError, match=said):
        read_glue(task, str(own), split)


def test_a_wrong_folder_a_missing_split_and_unknown_names_say_what_was_expected(own: Path) -> None:
    for task, folder in (("cola", "CoLA"), ("rte", "RTE"), ("rte", "CoLA"), ("stsb", "STS-B")):
        said = rf"holds no folder '{GLUE[task].folder}': it is the folder of .* itself. Give the folder above {folder}: {own}\."
        with pytest.raises(EunoeError, match=said):
            read_glue(task, str(own / folder), "train")
    with pytest.raises(EunoeError, match=r"GLEU does not exist. Give the folder that holds CoLA"):
        read_glue("cola", str(own / "GLEU"), "train")
    with pytest.raises(EunoeError, match=r"dev.tsv is not a folder"):
        read_glue("cola", str(own / "RTE/dev.tsv"), "train")
    (own / "mine").mkdir()
    with pytest.raises(EunoeError, match=r"holds no folder 'CoLA', where GLUE's cola lies; it holds no folders"):
        read_glue("cola", str(own / "mine"), "train")
    (own / "RTE/dev.tsv").unlink()
    with pytest.raises(
        EunoeError, match=r"lacks the dev rows of GLUE's rte: expected dev.tsv; it holds test.tsv, train.tsv"
    ):
        read_glue("rte", str(own), "dev")
    with pytest.raises(EunoeError, match=r"unknown GLUE task 'colla'.*cola"):
        read_glue("colla", str(own), "dev")
    with pytest.raises(EunoeError, match=r"unknown split of GLUE's rte 'dev_mismatched'"):
        read_glue("rte", str(own), "dev_mismatched")
    with pytest.raises(EunoeError, match=r"test rows alone"):
        load_glue("x", "ax", str(own))


def test_the_hubs_columns_and_numbers_become_the_files_texts_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fake(name: str, config: str, split: str) -> Any:
        asked.append((name, config, split))
        if config == "mnli":
            return iter(
                [{"premise": "a", "hypothesis": "b", "label": 2}, {"premise": "c", "hypothesis": "d", "label": -1}]
            )
        if config == "mrpc":
            return iter([{"sentence1": "a", "sentence2": "b", "label": 1}])
        return iter([{"sentence1": "a", "sentence2": "b", "label": 3.25}])

    monkeypatch.setattr("eunoe.data.glue.read_hub", fake)
    (row,) = read_glue("mnli", "hub", "dev")
    assert (row.text, row.pair, row.label) == ("a", "b", "contradiction")
    assert [r.label for r in read_glue("mrpc", "hub", "train")] == ["1"]
    assert [r.label for r in read_glue("stsb", "hub", "dev")] == [3.25]
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched"), ("nyu-mll/glue", "mrpc", "train"),
                     ("nyu-mll/glue", "stsb", "validation")]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "split", "rows"),
    [("cola", "dev", 1043), ("rte", "train", 2490), ("rte", "dev", 277), ("mrpc", "train", 3668), ("mrpc", "dev", 408),
     ("stsb", "train", 5749), ("stsb", "dev", 1500), ("qnli", "dev", 5463)],
)  # fmt: skip
def test_real_files_have_the_rows_that_their_readme_counts(task: str, split: str, rows: int) -> None:
    assert len(read_glue(task, str(shared("data")), split)) == rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("index\tsentence1\tsentence2\tlabel\n0\tcafé\tb\tentailment\n".encode("latin-1"), "line 2: not UTF-8"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\0\tb\tentailment\n", "line 2: a NUL byte"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t" + b"x" * 10**6 + b"\n", "line 2: the label is 'xxx"),
        (b"word " * 4_000_000, "line 1: the line has more than"),
    ],
)
def test_odd_files_are_told_in_a_few_words(own: Path, data: bytes, message: str) -> None:
    (own / "RTE" / "train.tsv").write_bytes(data)
    with pytest.raises(EunoeError) as caught:
        read_glue("rte", str(own), "train")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "encoding:" not in str(caught.value), "there is no such setting for GLUE"


def test_lines_that_end_as_on_other_systems_are_the_same_rows(own: Path) -> None:
    right = read_glue("rte", str(own), "train")
    for end in (b"\r\n", b"\r"):
        data = (own / "RTE" / "train.tsv").read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        (own / "RTE" / "train.tsv").write_bytes(data.replace(b"\n", end))
        assert read_glue("rte", str(own), "train") == right


@pytest.mark.parametrize(
    "record",
    [{"premise": "a"}, {"sentence1": "a", "sentence2": None, "label": 1}, {"sentence1": "a", "sentence2": "b", "label": None},
     {"sentence1": "a", "sentence2": "b", "label": "yes"}, {"sentence1": ["a"], "sentence2": "b", "label": 1}],
)  # fmt: skip
def test_rows_of_the_hub_that_are_not_of_glue_are_told(monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]) -> None:
    monkeypatch.setattr("eunoe.data.glue.read_hub", lambda *_: iter([record]))
    with pytest.raises(EunoeError, match=r"nyu-mll/glue \(rte, train\), row 1: "):
        read_glue("rte", "hub", "train")
