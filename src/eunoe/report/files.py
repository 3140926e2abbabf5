"""Reading a run folder's files: bounded in size, and whatever stands in them ends in one ``EunoeError`` that names the file.

A report is made of files that were written long ago, perhaps on another machine, and cut, edited or mixed up since.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

from eunoe import stop
from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible

LINE = 10_000_000
"""Bytes of the longest line that is read: a row with the counts of some 100,000 classes."""
DOCUMENT = 50_000_000
"""Bytes of the largest file that is read in one piece: the capacity of some 100,000 masks."""
LARGEST = 1e39
"""No number in a run is larger: float32, which everything is computed in, ends at 3.4e38."""
COUNTS = 2**53
"""No count, step or seed is larger: above it a float does not hold every whole number."""


def clean(text: str) -> str:
    """A name or text fit for a terminal, a font and a page: what a terminal would obey, and half surrogates, shown escaped.

    >>> clean("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    return visible(text, max(len(text) * 10, 1))


def is_count(value: object) -> TypeGuard[int]:
    """A whole number that counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < COUNTS


def is_number(value: object) -> TypeGuard[float]:
    """A finite number that a computation in float32 can give."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def finite(text: str) -> float:
    """The number that ``text`` is; raises ``ValueError`` for one that is not finite, or larger than float32 holds."""
    value = float(text)
    if not isfinite(value) or not is_number(value):
        raise ValueError(f"{text} is not a finite number below {LARGEST:g}")
    return value


def step(text: str) -> int:
    """The optimizer step that ``text`` is; raises ``ValueError`` for what counts nothing."""
    value = int(text)
    if not is_count(value):
        raise ValueError(f"step {text} is not between 0 and {COUNTS:,}")
    return value


def read_lines(file: Path, advice: str, *, appended: bool = False) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1. Only a line feed ends a line: a name may hold U+2028.

    ``appended``: the file grows while a run lasts, so a last line that a kill cut short is left out; elsewhere it is an error.
    Raises ``EunoeError`` for a line that is cut short, longer than ``LINE`` or not UTF-8, and for what is not a file.
    """
    with _opened(file, advice) as opened:
        for i in count(1):
            if i % 10_000 == 0:
                stop.check(f"reading {visible(file)}")
            with reading(file, advice):
                line = opened.readline(LINE + 1)
            if not line:
                return
            if not line.endswith(b"\n"):
                if len(line) > LINE:
                    refuse(f"{clean(str(file))}:{i}", f"is longer than {LINE:,} bytes", advice)
                if appended:
                    return
                refuse(f"{clean(str(file))}:{i}", "is cut short: the line has no end", advice)
            try:
                yield i, line[:-1].decode("utf-8")
            except UnicodeDecodeError as error:
                refuse(f"{clean(str(file))}:{i}", f"is not UTF-8 ({error})", advice)


def read_document(file: Path, advice: str, limit: int = DOCUMENT) -> str:
    """The whole text; raises ``EunoeError`` if it is larger than ``limit`` bytes, not UTF-8 or not a file."""
    with _opened(file, advice) as opened, reading(file, advice):
        data = opened.read(limit + 1)
        if len(data) > limit:
            refuse(clean(str(file)), f"is larger than {limit:,} bytes", advice)
        return data.decode("utf-8")


def read_json(file: Path, advice: str) -> Any:
    """The data of a JSON file; raises ``EunoeError`` if it is not JSON, or larger than ``DOCUMENT`` bytes."""
    text = read_document(file, advice)
    with reading(file, advice):
        return parse_json(text)


def parse_json(text: str) -> Any:
    """JSON as data; NaN and infinity, which are none of JSON, raise ``ValueError``, as does what is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def read_table(file: Path, columns: Sequence[str], advice: str) -> Iterator[dict[str, str]]:
    """Each line of a CSV file that has at least ``columns``, as a mapping; raises ``EunoeError`` for one that lacks a cell."""
    lines = (f"{line}\n" for _, line in read_lines(file, advice))
    with reading(file, advice):
        table = csv.DictReader(lines, strict=True)
        missing = [name for name in columns if name not in (table.fieldnames or ())]
        if missing:
            refuse(clean(str(file)), f"lacks the column {missing[0]}", advice)
    while True:
        with reading(file, advice):
            cells = next(table, None)
            if cells is None:
                return
            if any(cells[name] is None for name in columns):
                refuse(f"{clean(str(file))}:{table.line_num}", "lacks a cell", advice)
        yield cells


def refuse(where: str, why: str, advice: str) -> NoReturn:
    """Raise ``EunoeError`` with the place, the fault and the next step."""
    raise EunoeError(f"{where} {why}. {advice}".rstrip())


@contextmanager
def _opened(file: Path, advice: str) -> Iterator[BinaryIO]:
    """The file, opened; a pipe or a device, which may never end, is refused."""
    with reading(file, advice):
        if not stat.S_ISREG(os.stat(file).st_mode):
            refuse(clean(str(file)), "is not a regular file", advice)
        opened = open(file, "rb")  # noqa: SIM115 - closed below; errors of whoever reads the lines are not the file's
    with opened:
        yield opened


__all__ = [
    "COUNTS", "DOCUMENT", "LARGEST", "LINE", "clean", "finite", "is_count", "is_number", "parse_json", "read_document",
    "read_json", "read_lines", "read_table", "refuse", "step",
]  # fmt: skip
