"""Records from files: one reader for unlabelled text and labelled rows.

A file is .txt, .jsonl, .csv, .tsv or .parquet, plain or gzip; a folder is all of those below it, in sorted order.
Reading streams: a file larger than memory is never held whole. Whatever is broken (missing, empty, binary, not
UTF-8, not JSON) is an ``EunoeError`` that names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError
from eunoe.recipe import expand

Record = dict[str, Any]


def resolve(source: str) -> list[Path]:
    """The files of a source (file, folder or ``package:NAME/path``), sorted; raises if there is none."""
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
        files = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in _READERS)
        if not files:
            raise EunoeError(f"{path} holds no text files; allowed endings: {_allowed()}, plain or .gz.")
        return files
    if not path.exists():
        near = [p.name for p in path.parent.glob(f"{path.name.split('.')[0]}*")] if path.parent.is_dir() else []
        hint = f" Near it: {', '.join(sorted(near)[:5])}." if near else ""
        raise EunoeError(f"{path} does not exist.{hint} Give a file, a folder, package:NAME/path or hub:OWNER/NAME.")
    if _kind(path) not in _READERS:
        raise EunoeError(f"{path} ends in {_kind(path)!r}; allowed endings: {_allowed()}, plain or .gz.")
    return [path]


def read_records(source: str, *, documents: str = "paragraphs") -> Iterator[Record]:
    """Records of a file, folder or package path, one dict a row; a .txt document is ``{"text": ...}``.

    ``documents`` says what one document of a .txt file is: ``paragraphs`` (blank lines part them), ``lines`` or
    ``file``. Raises ``EunoeError`` where nothing can be read.
    """
    empty = True
    files = resolve(source)
    for path in files:
        for record in _READERS[_kind(path)](path, documents):
            empty = False
            yield record
    if empty:
        raise EunoeError(
            f"{source} is empty: no text in {len(files)} file{'s' * (len(files) != 1)}. Give text to learn from."
        )


def content_hash(source: str) -> str:
    """SHA-256 over the names and bytes of the source's files: the key under which tokenised text is cached."""
    total = hashlib.sha256()
    for path in resolve(source):
        with open(path, "rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _kind(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _allowed() -> str:
    return ", ".join(_READERS)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; broken UTF-8, NUL bytes and broken gzip are named."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if b"\0" in raw:
                    raise EunoeError(f"{path}, line {number}: a NUL byte; this is a binary file, not text.")
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise EunoeError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line is "
                                     f"0x{raw[error.start]:02x}). Convert it: iconv -f latin1 -t utf8") from None  # fmt: skip
                yield number, line.rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise EunoeError(f"{path}, after line {number}: broken gzip ({error}). Compress it again.") from None
    except PermissionError:
        raise EunoeError(f"{path} may not be read: permission denied.") from None


def _read_txt(path: Path, documents: str) -> Iterator[Record]:
    if documents == "lines":
        for _, line in _lines(path):
            if line.strip():
                yield {"text": line}
        return
    held: list[str] = []
    for _, line in _lines(path):
        if documents == "paragraphs" and not line.strip():
            if held:
                yield {"text": "\n".join(held)}
            held = []
        else:
            held.append(line)
    if any(line.strip() for line in held):
        yield {"text": "\n".join(held)}


def _read_jsonl(path: Path, _documents: str) -> Iterator[Record]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise EunoeError(f"{path}, line {number}: not JSON ({error}). Each line holds one JSON object.") from None
        if not isinstance(record, dict):
            raise EunoeError(f"{path}, line {number}: {type(record).__name__}, not a JSON object with columns.")
        yield record


def _read_separated(path: Path, separator: str) -> Iterator[Record]:
    lines = (line + "\n" for _, line in _lines(path))
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


def _read_parquet(path: Path, _documents: str) -> Iterator[Record]:
    import pyarrow as pa  # a second of import that only parquet files need
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise EunoeError(f"{path} cannot be read as parquet: {error}") from None


_READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": lambda path, _: _read_separated(path, ","),
    ".tsv": lambda path, _: _read_separated(path, "\t"),
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
