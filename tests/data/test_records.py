from __future__ import annotations

import gzip
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eunoe import stop
from eunoe.data.records import cell, read_rows, shown_value, text_cell
from eunoe.errors import EunoeError, Interrupted
from eunoe.lookup import SHOWN
from tests.conftest import shared
from tests.data.reading import read_records, refusal, texts


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


def test_every_row_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n')
    places = [where for where, _ in read_rows(str(tmp_path))]
    assert places == [f"{tmp_path}/a.txt, line 1", f"{tmp_path}/a.txt, line 3", f"{tmp_path}/b.jsonl, line 1"]


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


def test_an_unreachable_hub_dataset_is_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    message = refusal("hub:owner/name#test")
    assert "'owner/name' (config None, split test) cannot be read: no route to host" in message


# -- odd values: one message, never a traceback ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "value",
    [[{"role": "user", "content": "word " * 20_000}] * 3, {"a": {"b": ["x"] * 9999}}, list(range(10**5)), 7, 0.5, True,
     "\ud800" * 3],
)  # fmt: skip
def test_what_is_no_text_is_told_in_a_line_or_two(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": value}) + "\n")
    [(where, record)] = read_rows(str(tmp_path / "a.jsonl"))
    with pytest.raises(EunoeError) as caught:
        text_cell(record, "text", where)
    message = str(caught.value)
    assert f"{tmp_path}/a.jsonl, line 1: column 'text' holds" in message
    assert "\n" not in message
    assert len(message) < 500


def test_the_shared_conversations_are_refused_in_a_few_words() -> None:
    where, record = next(read_rows(str(shared("cases/conversations.jsonl"))))
    with pytest.raises(EunoeError) as caught:
        text_cell(record, "text", where)
    assert len(str(caught.value)) < 500
    assert "line 1: column 'text' holds [{" in str(caught.value)


def test_a_value_is_shown_cut_and_without_control_characters() -> None:
    assert shown_value("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    assert len(shown_value(deep)) <= 80


@pytest.mark.parametrize(
    "line",
    [
        '{"text": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"text": ' + "9" * 5000 + "}",
        '{"text": "\x01"}',
        "{",
        "\ud800",
    ],
)
def test_json_that_cannot_be_read_names_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + line.encode("utf-8", "surrogatepass"))
    message = refusal(tmp_path / "a.jsonl")
    assert "a.jsonl, line 2: not " in message
    assert len(message) < 500


def test_blank_lines_do_not_move_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n\n{"text": "one"}\n\n{"text": null}\n')
    places = list(read_rows(str(tmp_path / "a.jsonl")))
    assert [where.rpartition(", ")[2] for where, _ in places] == ["line 3", "line 5"]
    with pytest.raises(EunoeError, match="line 5: column 'text' is null"):
        text_cell(places[1][1], "text", places[1][0])
    (tmp_path / "a.csv").write_text('text,label\n\n"two\nlines",x\n\nlast,y\n')
    assert [where.rpartition(", ")[2] for where, _ in read_rows(str(tmp_path / "a.csv"))] == ["line 3", "line 6"]


@pytest.mark.parametrize(
    "values", [{"when": [10**18, -(10**18)]}, {"n": [None, 1]}, {"b": [b"\xff", b""]}, {"l": [[1], []]}]
)
def test_parquet_columns_of_every_type_are_rows(tmp_path: Path, values: dict[str, list[Any]]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": ["one", "two"], **values})
    if "when" in values:
        table = table.set_column(1, "when", table["when"].cast(pa.timestamp("us")))
    pq.write_table(table, tmp_path / "a.parquet")
    if "when" in values:  # beyond what Python's datetime holds
        assert "a.parquet cannot be read: " in refusal(tmp_path / "a.parquet")
    else:
        assert texts(tmp_path / "a.parquet") == ["one", "two"]


@pytest.mark.parametrize("cut", [0, 4, 60, -20, -8])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, cut: int) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["one"] * 100}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:cut])
    assert "a.parquet cannot be read: " in refusal(tmp_path / "a.parquet")


# -- Excel -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"'])
def test_excels_first_line_names_the_separator(tmp_path: Path, first: str) -> None:
    (tmp_path / "a.csv").write_bytes(f"{first}\r\ntext;label\r\none, two;x\r\n".encode("utf-8-sig"))
    assert list(read_rows(str(tmp_path / "a.csv"))) == [
        (f"{tmp_path}/a.csv, line 3", {"text": "one, two", "label": "x"})
    ]
    (tmp_path / "b.csv").write_text("sep=\t\ntext\tlabel\none\tx\n")
    assert list(read_records(str(tmp_path / "b.csv"))) == [{"text": "one", "label": "x"}]


def test_the_shared_file_of_excel_is_read() -> None:
    assert list(read_records(str(shared("cases/excel_sep.csv")))) == [{"text": "good team", "label": "good"}]


@pytest.mark.parametrize(("separator", "advice"), [(";", "put the line sep=; before it"), ("\t", "name the file .tsv")])
def test_another_separator_is_recognised(tmp_path: Path, separator: str, advice: str) -> None:
    (tmp_path / "a.csv").write_text(f"text{separator}label\none{separator}x\n")
    message = refusal(tmp_path / "a.csv")
    assert "a.csv, line 1: one column named" in message
    assert advice in message


# -- limits ------------------------------------------------------------------------------------------------------------
def test_time_grows_with_the_columns_not_with_their_square(tmp_path: Path) -> None:
    """A million columns took hours, each compared with all others."""
    names = [f"c{i}" for i in range(200_000)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join(names) + "\n")
    began = time.process_time()
    [(where, record)] = read_rows(str(tmp_path / "a.csv"))
    with pytest.raises(EunoeError) as caught:
        cell(record, "c1999999", where)
    assert time.process_time() - began < 10
    message = str(caught.value)
    assert "Did you mean c199999" in message
    assert f"and {200_000 - SHOWN:,} more." in message
    assert len(message) < 600
    (tmp_path / "a.csv").write_text(",".join([*names, "c7"]) + "\n")
    assert "duplicate column 'c7'" in refusal(tmp_path / "a.csv")


def test_a_long_name_of_a_column_is_cut_in_messages(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x" * 10**6 + ",b\n1,2\n")
    [(where, record)] = read_rows(str(tmp_path / "a.csv"))
    with pytest.raises(EunoeError) as caught:
        cell(record, "text", where)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("documents", ["paragraphs", "file"])
def test_a_document_above_the_limit_is_refused_by_its_line(tmp_path: Path, documents: str) -> None:
    (tmp_path / "a.txt").write_text("short\n\n" + "word word\n" * 200)
    message = refusal(tmp_path / "a.txt", documents=documents, line_limit=1000)
    assert (
        f"line {3 if documents == 'paragraphs' else 1}: the document that begins here has more than 1,000 bytes"
        in message
    )
    assert "documents: lines" in message
    assert len(texts(tmp_path / "a.txt", documents="lines", line_limit=1000)) == 201
    assert len(texts(tmp_path / "a.txt", documents=documents, line_limit=5000)) == (
        2 if documents == "paragraphs" else 1
    )


def test_a_quote_that_is_never_closed_does_not_take_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\nfine,x\n"open,y\n' + "more,z\n" * 1000)
    assert "a.csv, line 3: the row that begins here has more than 1,000 bytes" in refusal(
        tmp_path / "a.csv", line_limit=1000
    )


def test_limits_hold_for_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["short"] * 500 + ["word " * 1000]}), tmp_path / "a.parquet")
    assert "a.parquet, row 501: column 'text' has more than 1,000 bytes" in refusal(
        tmp_path / "a.parquet", line_limit=1000
    )
    assert len(texts(tmp_path / "a.parquet", line_limit=5000)) == 501


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(tmp_path: Path, limit: int) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert "line_limit must be at least 1" in refusal(tmp_path / "a.txt", line_limit=limit)


def read_until_stopped(path: Path) -> None:
    with stop.watching():
        rows = read_rows(str(path))
        next(rows)
        signal.raise_signal(signal.SIGTERM)
        list(rows)


def test_a_signal_stops_reading(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 2000)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM while reading .*a\.jsonl"):
        read_until_stopped(tmp_path / "a.jsonl")


def damaged(data: bytes, dice: random.Random) -> bytes:
    broken = bytearray(data)
    for _ in range(dice.choice([1, 2, 5, 20])):
        place = dice.randrange(len(broken) + 1)
        if dice.random() < 0.5:
            broken[place : place + 1] = bytes([dice.randrange(256)])
        elif dice.random() < 0.5:
            broken[place:place] = dice.choice(
                [b'"', b"\0", b"\xff", b"[", b"\r", b"9" * 50, b"\\ud800", b"NaN", b"null"]
            )
        else:
            del broken[place : place + dice.randrange(1, 200)]
    return bytes(broken)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet", "b.jsonl.gz", "b.txt"])
def test_damage_of_any_kind_is_rows_or_one_error(tmp_path: Path, name: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["one", "two"] * 50, "label": ["a", "b"] * 50}), tmp_path / "a.parquet")
    whole = {
        "a.txt": "Käse one\n\ntwo\n".encode() * 20,
        "b.txt": "Käse one\n\ntwo\n".encode("utf-16") * 5,
        "a.csv": b"text,label\n" + b'"o,ne",a\ntwo,b\n' * 20,
        "a.tsv": b"text\tlabel\n" + b"one\ta\ntwo\tb\n" * 20,
        "a.jsonl": b'{"text":"one","label":"a"}\n' * 40,
        "b.jsonl.gz": gzip.compress(b'{"text":"one","label":"a"}\n' * 40),
        "a.parquet": (tmp_path / "a.parquet").read_bytes(),
    }[name]
    dice = random.Random(name)
    collected: list[str] = []
    for _ in range(100):
        (tmp_path / name).write_bytes(damaged(whole, dice))
        for how in ({}, {"encoding": "gb18030"}, {"fallback_encoding": "cp932"}):
            try:
                for where, record in read_rows(str(tmp_path / name), **how):
                    text_cell(record, "text", where)
            except EunoeError as error:
                collected.append(str(error))
    assert len(collected) > 10
    assert not [message for message in collected if "\n" in message or len(message.encode()) > 1000]
