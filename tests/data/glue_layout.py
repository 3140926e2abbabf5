"""GLUE's official folders in small, quirks included, written by hand: what the download script leaves."""

from __future__ import annotations

from pathlib import Path

NLI = ("entailment", "neutral", "contradiction")
TWO = ("entailment", "not_entailment")
TEST_ROWS = 4


def label(task: str, i: int) -> str:
    """The label of row ``i`` in the files."""
    if task == "stsb":
        return f"{i % 6}.500" if i % 6 < 5 else "5.000"
    return {"mnli": NLI, "qnli": TWO, "rte": TWO}.get(task, ("0", "1"))[i % (3 if task == "mnli" else 2)]


def write_glue(root: Path, rows: int = 6, test_rows: int = TEST_ROWS) -> Path:
    """All nine tasks and the diagnostic set below ``root``: ``rows`` labelled rows a split, ``test_rows`` without labels."""
    for split in ("train", "dev"):
        _write(
            root / f"CoLA/{split}.tsv",
            None,
            [["gj04", label("cola", i), "" if i % 2 else "*", _one(i)] for i in range(rows)],
        )
        _write(root / f"SST-2/{split}.tsv", ["sentence", "label"], [[_one(i), label("sst2", i)] for i in range(rows)])
        quora = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
        pairs = [[str(i), "7", "8", _one(i), _two(i), label("qqp", i)] for i in range(rows)]
        _write(root / f"QQP/{split}.tsv", quora, [*pairs, ["99", "1", "2", "this row breaks off"]])
        sts = [
            "index",
            "genre",
            "filename",
            "year",
            "old_index",
            "source1",
            "source2",
            "sentence1",
            "sentence2",
            "score",
        ]
        filler = ["main-news", "MSRvid", "2012", "0001", "none", "none"]
        _write(
            root / f"STS-B/{split}.tsv",
            sts,
            [[str(i), *filler, _one(i), _two(i), label("stsb", i)] for i in range(rows)],
        )
        for folder, task in (("QNLI", "qnli"), ("RTE", "rte"), ("WNLI", "wnli")):
            names = ["index", "question", "sentence"] if task == "qnli" else ["index", "sentence1", "sentence2"]
            _write(
                root / f"{folder}/{split}.tsv",
                [*names, "label"],
                [[str(i), _one(i), _two(i), label(task, i)] for i in range(rows)],
            )
    mrpc = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    _write(
        root / "MRPC/train.tsv",
        mrpc,
        [[label("mrpc", i), f"1{i}", f"2{i}", _one(i), _two(i)] for i in range(rows)],
        bom=True,
    )
    _write(
        root / "MRPC/dev.tsv",
        mrpc,
        [[label("mrpc", i), f"3{i}", f"4{i}", _one(i), _two(i)] for i in range(rows)],
        bom=True,
    )
    _write(
        root / "MRPC/test.tsv",
        ["index", *mrpc[1:]],
        [[str(i), f"5{i}", f"6{i}", _one(i), _two(i)] for i in range(test_rows)],
    )
    parses = ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
              "sentence2_parse", "sentence1", "sentence2"]  # fmt: skip
    middle = ["1", "1n", "fiction", "( a )", "( b )", "(ROOT a)", "(ROOT b)"]
    for split, labels in (("train", 1), ("dev_matched", 5), ("dev_mismatched", 5)):
        header = [*parses, *(f"label{k + 1}" for k in range(labels)), "gold_label"]
        _write(root / f"MNLI/{split}.tsv", header,
               [[str(i), *middle, _one(i), _two(i), *[label("mnli", i + 1)] * labels, label("mnli", i)] for i in range(rows)])  # fmt: skip
    for split in ("test_matched", "test_mismatched"):
        _write(root / f"MNLI/{split}.tsv", parses, [[str(i), *middle, _one(i), _two(i)] for i in range(test_rows)])
    _write(root / "CoLA/test.tsv", ["index", "sentence"], [[str(i), _one(i)] for i in range(test_rows)])
    _write(root / "SST-2/test.tsv", ["index", "sentence"], [[str(i), _one(i)] for i in range(test_rows)])
    _write(
        root / "QQP/test.tsv", ["id", "question1", "question2"], [[str(i), _one(i), _two(i)] for i in range(test_rows)]
    )
    _write(root / "STS-B/test.tsv", sts[:-1], [[str(i), *filler, _one(i), _two(i)] for i in range(test_rows)])
    _write(
        root / "QNLI/test.tsv",
        ["index", "question", "sentence"],
        [[str(i), _one(i), _two(i)] for i in range(test_rows)],
    )
    for folder in ("RTE", "WNLI", "diagnostic"):
        name = "diagnostic.tsv" if folder == "diagnostic" else "test.tsv"
        _write(
            root / folder / name,
            ["index", "sentence1", "sentence2"],
            [[str(i), _one(i), _two(i)] for i in range(test_rows)],
        )
    return root


def _one(i: int) -> str:
    return f'He said "stay, row {i} .'  # a quote that is never closed is a character


def _two(i: int) -> str:
    return f"the river {i} 's bank ."


def _write(file: Path, header: list[str] | None, rows: list[list[str]], bom: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    end = "\r\n" if file.parent.name == "SST-2" else "\n"
    text = end.join("\t".join(row) for row in ([header] if header else []) + rows) + end
    file.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode() + (b"\n" if file.parent.name == "RTE" else b""))
