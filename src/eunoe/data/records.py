"""Records from files: one reader for unlabelled text and labelled rows.

Plain text, .jsonl, .csv, .tsv and .parquet, plain or gzip, and Hugging Face datasets become rows, each with its place for
error messages. Reading streams: a file larger than memory is never held whole, and no line, row or document above ``line_limit``
is held at all. Whatever is broken is an ``EunoeError`` that names the file and the line.
"""

from __future__ import annotations

import csv
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eunoe import stop
from eunoe.data.encoding import LINE_LIMIT, checked_encoding, lines_of, too_long
from eunoe.data.files import kind, resolve
from eunoe.errors import EunoeError
from eunoe.foreign import first_line, reading, visible
from eunoe.lookup import unknown

Record = dict[str, Any]
Placed = Iterator[tuple[str, Record]]
"""Rows, each with its place in the file: ``line 3`` (its first) or ``row 3``."""
_SHORTER = "Separate documents by blank lines, set documents: lines"
_LOOK = 256
"""Rows between two looks at whether a signal came."""
_BATCH = 64
"""Rows of a parquet file that are decoded at once: some hold pictures beside the text."""


@dataclass(frozen=True)
class _How:
    """How files are read."""

    documents: str
    encoding: str | None
    fallback: str | None
    limit: int

    def lines(self, path: Path) -> Iterator[tuple[int, str]]:
        return lines_of(path, self.encoding, self.fallback, self.limit)


def read_rows(
    source: str,
    *,
    documents: str = "paragraphs",
    encoding: str | None = None,
    fallback_encoding: str | None = None,
    line_limit: int | None = None,
    files: str | None = None,
    labelled: bool = False,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Iterator[tuple[str, Record]]:
    """Rows of a file, folder, package path or hub dataset, each with where it stands (``FILE, line 3``) for error messages.

    A row is a dict; a document of a plain-text file is ``{"text": ...}``. ``documents`` says what one document of such a file
    is: ``paragraphs`` (blank lines separate them), ``lines`` or ``file``. ``encoding``: that of every file without a byte-order mark
    (default UTF-8); ``fallback_encoding``: that of a file that is not UTF-8, the whole of it. ``line_limit``: bytes that a line, row
    or document may have. ``files`` and ``labelled`` are for folders, see ``resolve``; ``config``, ``split`` and
    ``revision`` for hub datasets.
    Raises ``EunoeError`` where nothing can be read.
    """
    limit = LINE_LIMIT if line_limit is None else line_limit
    if limit < 1:
        raise EunoeError(f"line_limit must be at least 1 byte, received {limit}.")
    if encoding is not None and fallback_encoding is not None:
        raise EunoeError(
            f"encoding ({encoding}) and fallback_encoding ({fallback_encoding}) are both given: the first reads every file, so "
            "nothing is left for the second. Give one."
        )
    for key, name in (("encoding", encoding), ("fallback_encoding", fallback_encoding)):
        if name is not None:
            checked_encoding(name, key)
    how = _How(documents, encoding, fallback_encoding, limit)
    if source.startswith("hub:"):
        name, _, own = source.removeprefix("hub:").partition("#")
        for number, record in enumerate(_looking(read_hub(name, config, own or split, revision), source), 1):
            where = f"{source} ({own or split}), row {number}"
            yield where, _bounded(record, where, limit)
        return
    paths = resolve(source, files, labelled)
    # over all files: a folder may hold an empty one
    empty = True
    for path in paths:
        shown = visible(path)
        with reading(shown, "Is it the file that you mean?"):
            for place, record in _looking(_READERS[kind(path)](path, how), shown):
                empty = False
                yield f"{shown}, {place}", record
    if empty:
        raise EunoeError(
            f"{visible(source)} is empty: no text in {len(paths)} file{'s' * (len(paths) != 1)}. Give text to learn from."
        )


def cell(record: Record, column: str, where: str) -> Any:
    """What a row holds in a column; raises ``EunoeError`` naming the place and close matches if it has none or null."""
    if column not in record:
        raise EunoeError(f"{where}: {unknown(column, record, 'column')}")
    if record[column] is None:
        raise EunoeError(f"{where}: column {column!r} is null. Fill it in or leave the row out.")
    return record[column]


def text_cell(record: Record, column: str, where: str) -> str:
    """The text in a column of a row; raises ``EunoeError`` where there is none."""
    value = cell(record, column, where)
    if not isinstance(value, str):
        raise EunoeError(f"{where}: column {column!r} holds {shown_value(value)} ({type(value).__name__}), not text. "
                         f"{_advice(value)}")  # fmt: skip
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half a character: no tokenizer reads it
        raise EunoeError(f"{where}: column {column!r} holds half a character (a lone surrogate, "
                         f"\\u{ord(value[error.start]):04x}) at place {error.start + 1}. Correct or drop it.") from None  # fmt: skip
    return value


def shown_value(value: object) -> str:
    """A value as it can stand in a message: its Python form, on one line, cut after 80 characters, however large it is."""
    return visible(_SHORT.repr(value), 80)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxdict = 3
_SHORT.maxlevel = 3


def _advice(value: object) -> str:
    if isinstance(value, list | tuple):
        return "Join its parts to one text first, for a conversation as in 'user: ...\\nassistant: ...', or name another column."
    return "Name another column, or write it as text."


def _looking(rows: Iterable[Any], shown: str) -> Iterator[Any]:
    """The rows as they are; now and then a look at whether the command was asked to stop."""
    for number, row in enumerate(rows):
        if number % _LOOK == 0:
            stop.check(f"reading {shown}")
        yield row


def _bounded(record: Record, where: str, limit: int) -> Record:
    """A row that did not come from lines, after refusing text above the limit."""
    for column, value in record.items():
        if isinstance(value, str) and 4 * len(value) > limit and len(value.encode("utf-8", "surrogatepass")) > limit:
            raise too_long(where, limit, f"column {column!r}")
    return record


# -- the readers --------------------------------------------------------------------------------------------------------
def _read_text(path: Path, how: _How) -> Placed:
    if how.documents == "lines":
        for number, line in how.lines(path):
            if line.strip():
                yield f"line {number}", {"text": line}
        return
    # one document at a time is held, however large the file is
    lines: list[str] = []
    first, size, blank = 1, 0, True
    for number, line in how.lines(path):
        if how.documents == "paragraphs" and not line.strip():
            if lines:
                yield f"line {first}", {"text": "\n".join(lines)}
            lines, size, blank = [], 0, True
            continue
        if not lines:
            first = number
        blank = blank and not line.strip()
        lines.append(line)
        size += len(line) + 1
        if size > how.limit:
            raise too_long(f"{visible(path)}, line {first}", how.limit, "the document that begins here", _SHORTER)
    if not blank:
        yield f"line {first}", {"text": "\n".join(lines)}


def _read_jsonl(path: Path, how: _How) -> Placed:
    for number, line in how.lines(path):
        if not line.strip():
            continue
        where = f"{visible(path)}, line {number}"
        try:
            record = json.loads(line)
        except RecursionError:
            raise EunoeError(
                f"{where}: not JSON that can be read: lists or objects nested too deeply. Flatten it."
            ) from None
        except ValueError as error:
            raise EunoeError(
                f"{where}: not JSON ({first_line(error).rstrip('.')}). Each line holds one JSON object."
            ) from None
        if not isinstance(record, dict):
            raise EunoeError(f"{where}: {type(record).__name__}, not a JSON object with columns.")
        yield f"line {number}", record


def _read_separated(path: Path, how: _How, separator: str) -> Placed:
    # ours is below; the library's 128 KiB is less than a long document, its type a C long
    csv.field_size_limit(2**31 - 1)
    first = number = size = 0

    def lines() -> Iterator[str]:
        nonlocal first, number, size
        for number, line in how.lines(path):
            first = first or number
            size += len(line) + 1
            if size > how.limit:  # a quote that is never closed takes in the rest of the file
                raise too_long(
                    f"{visible(path)}, line {first}", how.limit, "the row that begins here", "Close its quote"
                )
            yield line + "\n"

    source = lines()
    try:
        start = next(source, None)
        if start is None:
            return
        named = re.fullmatch(r'"?sep=(.)"?\n', start, re.IGNORECASE) if separator == "," else None
        if named:  # Excel's way to name the separator
            separator, start = named.group(1), ""
        if separator in '"\r\n ':
            raise EunoeError(
                f"{visible(path)}, line 1: {separator!r} cannot separate columns. Write the file with commas."
            )
        rows = csv.reader(
            _then(start, source),
            delimiter=separator,
            strict=kind(path) == ".csv",
            quoting=csv.QUOTE_MINIMAL if kind(path) == ".csv" else csv.QUOTE_NONE,
        )
        header = next((row for row in rows if row), None)
        if header is None:
            return
        _check_header(header, separator, f"{visible(path)}, line {first}")
        first = size = 0
        for row in rows:
            at, first, size = first, 0, 0
            if not row:
                continue
            if len(row) != len(header):
                raise EunoeError(f"{visible(path)}, line {at}: {len(row)} fields, but the header has {len(header)}.")
            yield f"line {at}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise EunoeError(
            f"{visible(path)}, line {number}: {error}. Quote fields that hold quotes or separators."
        ) from None


def _then(start: str, rest: Iterator[str]) -> Iterator[str]:
    if start:
        yield start
    yield from rest


def _check_header(header: list[str], separator: str, where: str) -> None:
    names: set[str] = set()
    for name in header:
        if name in names:
            raise EunoeError(
                f"{where}: duplicate column {visible(repr(name), 80)}. Give each column a name of its own."
            )
        names.add(name)
    other = next((mark for mark in ";\t|," if mark != separator and mark in header[0]), None)
    if len(header) == 1 and other is not None:
        remedy = "name the file .tsv" if other == "\t" else f"put the line sep={other} before it"
        raise EunoeError(f"{where}: one column named {visible(repr(header[0]), 80)}, because columns are separated by {separator!r} here. "
                         f"If {other!r} separates them, {remedy}; else rename the column.")  # fmt: skip


def _read_parquet(path: Path, how: _How) -> Placed:
    import pyarrow.parquet as pq  # a second of import that only parquet files need

    with reading(path, "Is it a whole parquet file?"):
        file = pq.ParquetFile(path, pre_buffer=False)
        number = 0
        for group in range(file.metadata.num_row_groups):
            size, rows = file.metadata.row_group(group).total_byte_size, file.metadata.row_group(group).num_rows
            if rows and size > rows * how.limit:
                raise too_long(f"{visible(path)}, row {number + 1}", how.limit, "a row from here on")
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group]):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", _bounded(record, f"{visible(path)}, row {number}", how.limit)


_READERS: dict[str, Callable[[Path, _How], Placed]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": lambda path, how: _read_separated(path, how, ","),
    ".tsv": lambda path, how: _read_separated(path, how, "\t"),
    ".parquet": _read_parquet,
}


def read_hub(name: str, config: str | None, split: str, revision: str | None = None) -> Iterator[Record]:
    """Rows of a Hugging Face dataset, streamed: nothing is held in memory and nothing beyond what is read is fetched."""
    with reading(f"the Hugging Face dataset {name!r} (config {config}, split {split})"):
        from datasets import load_dataset  # a second of import that only hub names need

        own = None if Path(name).is_dir() else revision  # a folder has no revisions
        yield from load_dataset(name, config, split=split, streaming=True, revision=own)


__all__ = ["Record", "cell", "read_hub", "read_rows", "shown_value", "text_cell"]
