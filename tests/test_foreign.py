"""Whatever a library raises on a foreign file becomes one error of one line that names the file."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
import safetensors

from eunoe.errors import EunoeError, Interrupted
from eunoe.foreign import first_line, reading, visible

RAISED: dict[str, tuple[Exception, str]] = {
    "a text": (RuntimeError("the header is too large"), "the header is too large."),
    "several lines": (RuntimeError("\n  first\nsecond\n"), "first."),
    "a reason below": (ValueError("2 errors:\n  name is missing\nmore"), "2 errors: name is missing."),
    "a key": (KeyError("sha256"), "KeyError: 'sha256'."),
    "no text": (RuntimeError(), "RuntimeError."),
    "an assertion without one": (AssertionError(), "AssertionError."),
    "a division": (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero."),
    "an index": (IndexError("list index out of range"), "IndexError: list index out of range."),
    "of the system": (PermissionError(13, "Permission denied", "/etc/x"), "Permission denied."),
    "a codec": (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "'utf-8' codec can't decode byte 0xff",
    ),
    "too deep": (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth exceeded."),
    "steering the terminal": (RuntimeError("bad \x1b[2J\x07 name"), r"bad \x1b[2J\x07 name."),
    "already a sentence": (RuntimeError("It is empty."), "It is empty."),
}


@pytest.mark.parametrize("case", RAISED)
def test_any_exception_becomes_one_line_that_names_the_file(case: str) -> None:
    error, message = RAISED[case]
    with pytest.raises(EunoeError) as caught, reading("a.json", "Write it again."):
        raise error
    text = str(caught.value)
    assert text.startswith(f"a.json cannot be read: {message}")
    assert text.endswith(" Write it again.")
    assert text.isprintable()
    assert caught.value.__cause__ is error  # for who looks for it


@pytest.mark.parametrize("error", [
    EunoeError("b.json has no rows."), Interrupted("stopped by SIGINT"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(),
], ids=repr)  # fmt: skip
def test_what_is_no_fault_of_the_file_passes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading("a.json"):
        raise error
    assert caught.value is error


def test_too_little_memory_is_not_told_as_a_damaged_file() -> None:
    with (
        pytest.raises(EunoeError, match=r"^a\.json needs more memory than there is\. Take a smaller one\.$"),
        reading("a.json", "Take a smaller one."),
    ):
        raise MemoryError


def test_libraries_on_damaged_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad\x1b[31m\nname"
    bad.write_bytes(b"\xff\xfe not what it says {")
    for read in (
        lambda: json.loads(bad.read_bytes()),
        lambda: safetensors.safe_open(str(bad), "pt"),
        lambda: (bad / "x").read_text(),
    ):
        with pytest.raises(EunoeError) as caught, reading(bad):
            read()
        assert r"bad\x1b[31m\nname cannot be read: " in str(caught.value)
        assert str(caught.value).isprintable()
        assert "Traceback" in "".join(traceback.format_exception(caught.value))  # and the cause is kept


def test_without_advice_it_ends_in_one_full_stop() -> None:
    with pytest.raises(EunoeError, match=r"^a\.json cannot be read: it ends early\.$"), reading("a.json"):
        raise ValueError("it ends early...")


@pytest.mark.parametrize(("text", "shown"), [
    ("plain text", "plain text"), ("Käse 漢字 ✓", "Käse 漢字 ✓"), ("a\tb\r\nc", r"a\tb\r\nc"), ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("right\u202eleft", r"right\u202eleft"), ("\u2028", r"\u2028"), ("\ud800", r"\ud800"), (Path("a/b"), "a/b"), (7, "7"), ("", ""),
])  # fmt: skip
def test_visible_escapes_what_a_terminal_would_obey(text: object, shown: str) -> None:
    assert visible(text) == shown
    assert visible(text).isprintable()


def test_visible_and_first_line_cut_what_is_long() -> None:
    assert visible("a" * 300) == "a" * 300
    assert visible("a" * 301) == "a" * 299 + "…"
    assert visible("\x00" * 10**6, 20) == (r"\x00" * 5)[:19] + "…"
    assert first_line(RuntimeError("b" * 10**6), 40) == "b" * 39 + "…."
