from __future__ import annotations

import codecs
import gzip
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from eunoe.data.encoding import LINE_LIMIT, lines_of
from eunoe.data.records import read_rows
from eunoe.errors import EunoeError
from tests.conftest import shared

CHINESE = "目录\n第一章 赔案处理的基本规定\n保险公司应当在三十日内作出核定\n联通\n"
JAPANESE = "私は日本語の文章を書いています。\nこれは試験です。猫が好きです。\n"
GERMAN = "Die Würde des Menschen ist unantastbar.\nSie zu achten und zu schützen ist Verpflichtung.\n"


def lines(path: Path, **more: Any) -> list[str]:
    return [line for _, line in lines_of(path, **more)]


def refusal(path: Path, **more: Any) -> str:
    with pytest.raises(EunoeError) as caught:
        list(lines_of(path, **more))
    return str(caught.value)


def texts(path: Path, **more: Any) -> list[str]:
    return [record["text"] for _, record in read_rows(str(path), **more)]


# -- one encoding a file ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "encoding"),
    [(CHINESE, "gb18030"), (CHINESE, "gbk"), (CHINESE, "big5hkscs"), (JAPANESE, "cp932"), (JAPANESE, "euc_jp"),
     (GERMAN, "cp1252"), (GERMAN, "utf-16"), (CHINESE, "utf-16-be"), (GERMAN, "utf-32-le"), (GERMAN, "cp273")],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_read_in_its_encoding(tmp_path: Path, text: str, encoding: str, packed: bool) -> None:
    text = text if encoding != "big5hkscs" else "我是學生，這是一個測試。\n"
    data = text.encode(encoding)
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert lines(path, encoding=encoding) == text.splitlines()


def test_the_shared_gb18030_text_is_read_whole() -> None:
    path = shared("cases/gbk.txt")
    right = path.read_bytes().decode("gb18030")
    for how in ({"encoding": "gb18030"}, {"fallback_encoding": "gb18030"}, {"encoding": "gbk"}):
        assert texts(path, documents="lines", **how) == [line for line in right.splitlines() if line.strip()]


def test_lines_that_are_utf8_by_chance_do_not_change_the_encoding(tmp_path: Path) -> None:
    """The bytes of the first line, 目录 in GB18030, are also UTF-8, for something else."""
    assert "目录".encode("gb18030").decode() == "\u013f\xbc"
    (tmp_path / "a.txt").write_bytes(CHINESE.encode("gb18030"))
    assert lines(tmp_path / "a.txt", fallback="gb18030") == CHINESE.splitlines()


def test_the_fallback_is_for_whole_files_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("£1 new", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("£2 old".encode("latin-1"))
    assert texts(tmp_path, fallback_encoding="latin-1") == ["£1 new", "£2 old"]
    (tmp_path / "late.txt").write_bytes(b"plain\n" * 50_000 + "£3\n".encode("latin-1"))
    assert lines(tmp_path / "late.txt", fallback="latin-1")[-1] == "£3"
    assert "line 1: not ASCII (byte 1" in refusal(tmp_path / "b.txt", fallback="ascii")


def test_encoding_and_fallback_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(EunoeError, match="are both given"):
        texts(tmp_path / "a.txt", encoding="gb18030", fallback_encoding="latin-1")


@pytest.mark.parametrize("name", ["utf8x", "base64", "hex", "utf\0-8", "", "idna", "unicode_escape", "ü"])
@pytest.mark.parametrize("key", ["encoding", "fallback_encoding"])
def test_what_is_no_encoding_of_text_is_refused(tmp_path: Path, name: str, key: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(EunoeError, match=rf"^{key}: .* is not an encoding of text"):
        texts(tmp_path / "a.txt", **{key: name})


# -- byte-order marks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
     (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be")],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl.gz"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, mark: bytes, encoding: str, ending: str) -> None:
    text = {
        ".txt": "Käse\r\n目录",
        ".csv": "text\r\nKäse\r\n目录\r\n",
        ".jsonl.gz": '{"text": "Käse"}\n{"text": "目录"}',
    }[ending]
    data = mark + text.encode(encoding)
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    for how in ({}, {"encoding": "cp1252"}, {"fallback_encoding": "cp1252"}):
        assert texts(path, documents="lines", **how) == ["Käse", "目录"]


def test_the_shared_utf16_text_is_read() -> None:
    path = shared("cases/utf16_english.txt")
    assert texts(path, documents="lines") == path.read_text(encoding="utf-16").splitlines()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [GERMAN, "plain English\n" * 9, CHINESE])
def test_utf16_without_a_mark_is_named(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    message = refusal(tmp_path / "a.txt")
    assert f"encoding: {encoding}" in message or "not UTF-8" in message
    assert "binary" not in message


def test_utf16_without_a_mark_asks_for_the_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("plain English".encode("utf-16-be"))
    assert "encoding: utf-16-le or utf-16-be" in refusal(tmp_path / "a.txt", encoding="utf-16")


# -- what the error says ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [(CHINESE * 3, "gb18030", "gb18030"), (JAPANESE * 3, "cp932", "cp932"), (JAPANESE * 3, "euc_jp", "euc-jp"),
     ("Привет, это проверка кодировки текста. Сегодня хорошая погода.\n" * 3, "cp1251", "cp1251")],
)  # fmt: skip
def test_a_guess_is_offered_and_is_right(tmp_path: Path, text: str, encoding: str, guess: str) -> None:
    (tmp_path / "a.txt").write_bytes(("ASCII\n" + text).encode(encoding))
    message = refusal(tmp_path / "a.txt")
    assert f"a.txt, line {3 if text.startswith('目录') else 2}: not UTF-8" in message
    assert f"encoding: {guess} " in message
    assert lines(tmp_path / "a.txt", encoding=guess) == ["ASCII", *text.splitlines()]


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, "猫が\n", "Größe: 3\n", "£5\n"])
@pytest.mark.parametrize("encoding", ["gb18030", "cp932", "cp1252"])
def test_no_advice_is_wrong(tmp_path: Path, text: str, encoding: str) -> None:
    """A short text fits many encodings: then examples are named for their languages, and none is recommended."""
    try:
        (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    except UnicodeEncodeError:
        pytest.skip(f"{text!r} cannot be written in {encoding}")
    message = refusal(tmp_path / "a.txt")
    assert "latin" not in message
    words = message.partition("Set encoding: ")[2].partition(" ")[0]
    assert not words or lines(tmp_path / "a.txt", encoding=words) == text.splitlines()


@pytest.mark.parametrize("before", ["x\n" * 40_000, "x\r\n" * 30_000, "x\r" * 40_000, "é\n" * 40_000])
def test_the_fault_is_named_far_into_a_file(tmp_path: Path, before: str) -> None:
    (tmp_path / "a.txt").write_bytes(before.encode() + b"ab\xffcd")
    number = len(before.splitlines()) + 1
    assert f"line {number}: not UTF-8 (byte 3 of the line is 0xff)" in refusal(tmp_path / "a.txt")


def test_a_character_cut_at_the_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("fine\ncafé".encode()[:-1])
    assert "line 2: not UTF-8 (byte 4 of the line is 0xc3)" in refusal(tmp_path / "a.txt")


# -- lines and their limit -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lines_of_every_system(tmp_path: Path, end: str, encoding: str) -> None:
    text = ["one", "", "two \u2028 \x0b \x85 one line", "three"]
    (tmp_path / "a.txt").write_bytes(end.join(text).encode(encoding))
    assert list(lines_of(tmp_path / "a.txt")) == list(enumerate(text, 1))


def test_the_shared_novel_with_carriage_returns_is_many_documents() -> None:
    assert len(texts(shared("cases/novel_cr.txt"))) == 400


def test_rows_that_end_in_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,label\r"one\nmore",x\rtwo,y\r')
    assert texts(tmp_path / "a.csv") == ["one\nmore", "two"]


def test_the_limit_counts_bytes_of_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd\nfün\nabcde\n", encoding="utf-8")
    assert lines(tmp_path / "a.txt", limit=5) == ["abcd", "fün", "abcde"]
    assert "a.txt, line 3: the line has more than 4 bytes" in refusal(tmp_path / "a.txt", limit=4)
    assert "a.txt, line 1: the line has more than 3 bytes" in refusal(tmp_path / "a.txt", limit=3)
    assert LINE_LIMIT == 16 * 2**20


@pytest.mark.parametrize("fill", [b"\0", b"a", b"word ", b"\xe7\x9b\xae"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_packed_line_of_any_size_takes_bounded_memory(tmp_path: Path, fill: bytes, ending: str) -> None:
    """100 MB in one line, 100 KB on disk; measured at a tenth of the default limit so that the test is quick."""
    packer = zlib.compressobj(wbits=31)
    chunk = fill * (10**6 // len(fill))
    (tmp_path / f"a{ending}.gz").write_bytes(b"".join(packer.compress(chunk) for _ in range(100)) + packer.flush())
    limit = 10**6
    tracemalloc.start()
    with pytest.raises(EunoeError, match=r"a NUL byte|more than 1,000,000 bytes"):
        list(read_rows(str(tmp_path / f"a{ending}.gz"), line_limit=limit))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15 * limit
