"""Records from files: one reader for unlabelled text and labelled rows.

A file is .txt, .jsonl, .csv, .tsv or .parquet, plain or gzip; a folder is all of those below it, in sorted order;
``hub:OWNER/NAME`` is a Hugging Face dataset (``hub:OWNER/NAME#SPLIT`` one split of it). Reading streams: a file larger
than memory is never held whole (a single document is). Whatever is broken (missing, empty, binary, not UTF-8, not
JSON) is an ``EunoeError`` that names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError
from eunoe.lookup import unknown
from eunoe.recipe import expand

Record = dict[str, Any]


def resolve(source: str) -> list[Path]:
    """The files of a source (file, folder or ``package:NAME/path``), sorted; raises if there is none."""
    if not source.strip():
        raise EunoeError("a source is empty. Give a file, a folder, package:NAME/path or hub:OWNER/NAME.")
    if source.startswith("package:"):
        name, _, rest = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None:
            raise EunoeError(
                f"{source!r}: the Python package {name!r} is not installed. Try: pip install 'eunoe[demo]'"
            )
        root = Path(spec.origin).parent
        path = (root / rest).resolve()
        if not path.is_relative_to(root.resolve()):
            raise EunoeError(f"{source!r} points outside the package {name!r}; name a folder inside it.")
    else:
        path = Path(expand(source))
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and kind(p) in _READERS)
        if not files:
            raise EunoeError(f"{path} holds no text files; allowed endings: {_allowed()}, plain or .gz.")
        return files
    if not path.exists():
        held = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, sorted(held), n=5)
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise EunoeError(f"{path} does not exist.{hint} Give a file, a folder, package:NAME/path or hub:OWNER/NAME.")
    if not path.is_file() or kind(path) not in _READERS:
        raise EunoeError(f"{path} ends in {kind(path)!r}; allowed endings: {_allowed()}, plain or .gz.")
    return [path]


def refuse_missing(sources: Iterable[str]) -> None:
    """Raise one ``EunoeError`` that lists every source that is not there or cannot be read; hub datasets are not asked for."""
    told: list[str] = []
    for source in dict.fromkeys(sources):
        if not source.startswith("hub:"):
            try:
                resolve(source)
            except EunoeError as error:
                told.append(str(error))
    told = list(dict.fromkeys(told))
    if len(told) == 1:
        raise EunoeError(told[0])
    if told:
        raise EunoeError(f"{len(told)} sources are not there, or are no text:\n- " + "\n- ".join(told))


def read_rows(
    source: str,
    *,
    documents: str = "paragraphs",
    fallback_encoding: str | None = None,
    config: str | None = None,
    split: str = "train",
) -> Iterator[tuple[str, Record]]:
    """Rows of a file, folder, package path or hub dataset, each with where it stands (``FILE, row 3``) for error messages.

    A row is a dict; a document of a .txt file is ``{"text": ...}``. ``documents`` says what one document of a .txt file
    is: ``paragraphs`` (blank lines part them), ``lines`` or ``file``. A line of a text file that
    is not UTF-8 is read in ``fallback_encoding`` or, without one, refused. ``config`` and ``split`` are for hub datasets. Raises
    ``EunoeError`` where nothing can be read.
    """
    codecs = _codecs(fallback_encoding)
    if source.startswith("hub:"):
        name, _, own = source.removeprefix("hub:").partition("#")
        for number, record in enumerate(read_hub(name, config, own or split), 1):
            yield f"{source} ({own or split}), row {number}", record
        return
    files = resolve(source)
    empty = True
    for path in files:
        for number, record in enumerate(_READERS[kind(path)](path, documents, codecs), 1):
            empty = False
            yield f"{path}, row {number}", record
    if empty:
        raise EunoeError(
            f"{source} is empty: no text in {len(files)} file{'s' * (len(files) != 1)}. Give text to learn from."
        )


def read_records(
    source: str, *, documents: str = "paragraphs", fallback_encoding: str | None = None
) -> Iterator[Record]:
    """The rows of ``read_rows`` without their places."""
    return (record for _, record in read_rows(source, documents=documents, fallback_encoding=fallback_encoding))


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
        raise EunoeError(f"{where}: column {column!r} holds {value!r}, not text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half a character: no tokenizer reads it
        raise EunoeError(f"{where}: column {column!r} holds half a character (a lone surrogate, "
                         f"\\u{ord(value[error.start]):04x}) at place {error.start + 1}. Mend or drop it.") from None  # fmt: skip
    return value


def content_hash(source: str) -> str:
    """SHA-256 over the names and bytes of the source's files: the key under which tokenised text is cached."""
    total = hashlib.sha256()
    for path in resolve(source):
        try:
            with open(path, "rb") as file:
                total.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise EunoeError(f"{path} cannot be read: {error.strerror or error}.") from None
    return total.hexdigest()


def kind(path: Path) -> str:
    """What a file is, by its ending without ``.gz``: ``.txt``, ``.jsonl``, ..."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _codecs(fallback: str | None) -> tuple[str, ...]:
    """Codecs to try on each line, in order; a fallback is refused where unknown or where a line end is not the byte 0x0a."""
    if fallback is None:
        return ("utf-8",)
    try:
        fits = b"\r\n\t ,a".decode(fallback) == "\r\n\t ,a"
    except (LookupError, UnicodeError):
        fits = False
    if not fits:
        raise EunoeError(f"fallback_encoding {fallback!r} is unknown, or does not write plain ASCII as it is. Allowed: latin-1, "
                         "cp1252 and other supersets of ASCII; convert UTF-16 with iconv -f utf-16 -t utf-8.")  # fmt: skip
    return ("utf-8", fallback)


def _allowed() -> str:
    return ", ".join(_READERS)


def lines_of(path: Path, codecs: tuple[str, ...] = ("utf-8",)) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; broken bytes, NUL bytes and broken gzip are named."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if b"\0" in raw:
                    raise EunoeError(f"{path}, line {number}: a NUL byte; this is a binary file, not text.")
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                yield number, _decode(raw, codecs, path, number).rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise EunoeError(f"{path}, after line {number}: broken gzip ({error}). Compress it again.") from None
    except OSError as error:
        raise EunoeError(f"{path} cannot be read: {error.strerror or error}.") from None


def _decode(raw: bytes, codecs: tuple[str, ...], path: Path, number: int) -> str:
    fault: UnicodeDecodeError | None = None
    for codec in codecs:
        try:
            return raw.decode(codec)
        except UnicodeDecodeError as error:
            fault = fault or error
    assert fault is not None
    raise EunoeError(f"{path}, line {number}: not {' nor '.join(c.upper() for c in codecs)} (byte {fault.start + 1} of the line is "
                     f"0x{raw[fault.start]:02x}). Convert the file: iconv -f latin1 -t utf8; for a corpus you may set "
                     "fallback_encoding: latin-1") from None  # fmt: skip


def _read_txt(path: Path, documents: str, codecs: tuple[str, ...]) -> Iterator[Record]:
    if documents == "lines":
        for _, line in lines_of(path, codecs):
            if line.strip():
                yield {"text": line}
        return
    held: list[str] = []
    for _, line in lines_of(path, codecs):
        if documents == "paragraphs" and not line.strip():
            if held:
                yield {"text": "\n".join(held)}
            held = []
        else:
            held.append(line)
    if any(line.strip() for line in held):
        yield {"text": "\n".join(held)}


def _read_jsonl(path: Path, _documents: str, codecs: tuple[str, ...]) -> Iterator[Record]:
    for number, line in lines_of(path, codecs):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EunoeError(f"{path}, line {number}: not JSON ({error}). Each line holds one JSON object.") from None
        if not isinstance(record, dict):
            raise EunoeError(f"{path}, line {number}: {type(record).__name__}, not a JSON object with columns.")
        yield record


def _read_separated(path: Path, codecs: tuple[str, ...], separator: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the library's 128 KiB is less than a long document
    lines = (line + "\n" for _, line in lines_of(path, codecs))
    rows = csv.reader(
        lines,
        delimiter=separator,
        strict=separator == ",",
        quoting=csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE,
    )
    try:
        header = next(rows, None)
        if header is None:
            return
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise EunoeError(
                f"{path}, line 1: the column {twice[0]!r} stands twice. Give each column a name of its own."
            )
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise EunoeError(f"{path}, line {rows.line_num}: {len(row)} fields, but the header has {len(header)}.")
            yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise EunoeError(
            f"{path}, line {rows.line_num}: {error}. Quote fields that hold quotes or separators."
        ) from None


def _read_parquet(path: Path, _documents: str, _codecs: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow as pa  # a second of import that only parquet files need
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise EunoeError(f"{path} cannot be read as parquet: {error}") from None


_READERS: dict[str, Callable[[Path, str, tuple[str, ...]], Iterator[Record]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": lambda path, _, codecs: _read_separated(path, codecs, ","),
    ".tsv": lambda path, _, codecs: _read_separated(path, codecs, "\t"),
    ".parquet": _read_parquet,
}


def read_hub(name: str, config: str | None, split: str) -> Iterator[Record]:
    """Rows of a Hugging Face dataset, streamed: nothing is held in memory and nothing beyond what is read is fetched."""
    from datasets import load_dataset  # a second of import that only hub names need

    try:
        rows = load_dataset(name, config, split=split, streaming=True)
        yield from rows
    except EunoeError:
        raise
    except Exception as error:  # the library raises a dozen unrelated types for "not there" and "no network"
        raise EunoeError(f"the Hugging Face dataset {name!r} (config {config}, split {split}) cannot be read: "
                         f"{type(error).__name__}: {error}") from None  # fmt: skip
