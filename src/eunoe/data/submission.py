"""What GLUE's server takes: one file a task, ``index`` and ``prediction``, in one zip (https://gluebenchmark.com/faq).

``write_submission`` writes them from predictions in the test files' order; ``validate_submission`` tells every fault of a zip or
folder by file and line. Names, row counts and labels stand in ``glue.GLUE``; the server's own checker is not public, so what
it wants is from its instructions as remembered. The same predictions give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from eunoe.atomic import write_bytes
from eunoe.data.glue import GLUE, GlueTask
from eunoe.data.records import shown_value
from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.lookup import unknown

HEADER = "index\tprediction"
OLDEST = (1980, 1, 1, 0, 0, 0)
"""The first date a zip can hold; all files have it, so that equal predictions are equal bytes."""
LARGEST = 64 * 2**20
"""Bytes of a whole submission at most; GLUE's have about 5 MB."""
SHOWN = 5
"""Faults listed of one file; the rest are counted."""
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", re.IGNORECASE)
"""A number as every reader takes it: Python's own also takes ``1_0``, blanks and other digits."""

FILES: dict[str, tuple[str, str, int]] = {
    name: (task, split, rows) for task, spec in GLUE.items() for split, name, rows in spec.submit
}
"""File -> task, split, official number of rows."""


def submission_file(task: str, split: str = "test") -> str:
    """The server's name for the predictions of a split.

    >>> submission_file("mnli", "test_mismatched")
    'MNLI-mm.tsv'
    """
    return next(name for name, (t, s, _) in FILES.items() if (t, s) == (task, split))


def write_submission(
    file: Path, predictions: Mapping[tuple[str, str], Sequence[str | float]], fill: bool = False
) -> list[str]:
    """Write ``file`` (a zip) from predictions by (task, split), in the test files' order; returns the files it lacks.

    Classes are given by GLUE's names, numbers are clipped to [0, 5]. ``fill``: the server wants all files; those that
    are lacking are answered with the first class (or 2.5), so that the rest can be handed in.
    Raises ``EunoeError`` for an unknown task, class or number.
    """
    texts: dict[str, str] = {}
    for (task, split), answers in predictions.items():
        if task not in GLUE or split not in {s for s, _, _ in GLUE[task].submit}:
            raise unknown(f"{task} {split}", [f"{t} {s}" for t, s, _ in FILES.values()], "test set of GLUE")
        texts[submission_file(task, split)] = _text(GLUE[task], answers, f"{task} {split}")
    lacking = [name for name in FILES if name not in texts]
    _write(file, {name: text.encode() for name, text in texts.items()} | (_constant(lacking) if fill else {}))
    return lacking


def fill_submission(file: Path) -> list[str]:
    """Add to a zip the files that it lacks, as ``write_submission`` with ``fill``; returns their names.

    What is in the zip stays as it is. Raises ``EunoeError`` if ``file`` is no zip.
    """
    if file.is_dir():
        raise EunoeError(f"{file} is a folder; only a zip is filled. Give the zip.")
    existing = _read(file)
    lacking = [name for name in FILES if name not in existing]
    if lacking:
        _write(file, existing | _constant(lacking))
    return lacking


def _constant(names: Sequence[str]) -> dict[str, bytes]:
    """Files that answer every row alike."""
    texts = {}
    for name in names:
        task, _, rows = FILES[name]
        texts[name] = _text(GLUE[task], [GLUE[task].labels[0] if GLUE[task].labels else 2.5] * rows, name).encode()
    return texts


def _write(file: Path, texts: Mapping[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in [*(n for n in FILES if n in texts), *(n for n in texts if n not in FILES)]:
            entry = zipfile.ZipInfo(name, OLDEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, texts[name])
    write_bytes(file, buffer.getvalue())


def _text(spec: GlueTask, answers: Sequence[str | float], what: str) -> str:
    lines = [HEADER]
    for i, answer in enumerate(answers):
        if spec.labels:
            if answer not in spec.labels:
                raise EunoeError(
                    f"{what}, row {i}: the prediction is {answer!r}; GLUE's {spec.folder} has {', '.join(spec.labels)}."
                )
            lines.append(f"{i}\t{answer}")
        else:
            try:
                number = float(answer)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise EunoeError(f"{what}, row {i}: the prediction is {answer!r}, expected a number from 0 to 5.")
            lines.append(f"{i}\t{min(max(number, 0.0), 5.0):.3f}")
    return "\n".join(lines) + "\n"


def validate_submission(path: Path, rows: Mapping[str, int] | None = None) -> list[str]:
    """Everything that is wrong with a submission (a zip, or a folder with its files); an empty list if it can be handed in.

    ``rows``: numbers of rows by file instead of the official ones. Raises ``EunoeError`` if ``path`` is neither.
    """
    existing = _read(path)
    problems = [
        f"{path}: {name} is missing; the server wants all {len(FILES)} files" for name in FILES if name not in existing
    ]
    problems += [f"{path}: {unknown(name, FILES, 'file')}" for name in existing if name not in FILES]
    for name in FILES:
        if name in existing:
            problems += _faults(
                name, existing[name], {**{n: r for n, (_, _, r) in FILES.items()}, **(rows or {})}[name]
            )
    return problems


def _read(path: Path) -> dict[str, bytes]:
    """The files of a zip or folder; raises ``EunoeError`` if it is neither, or larger than any submission, before that takes memory."""
    with reading(path, "Give the zip, or the folder with its .tsv files."):
        if path.is_dir():
            return _whole((p.name, p.open("rb")) for p in sorted(path.iterdir()) if p.is_file())
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            return _whole((entry.filename, archive.open(entry)) for entry in entries)


def _whole(files: Iterable[tuple[str, IO[bytes]]]) -> dict[str, bytes]:
    texts: dict[str, bytes] = {}
    left = LARGEST
    for name, file in files:
        with file:
            texts[name] = file.read(left + 1)  # what a zip says of a size may not be so
        left -= len(texts[name])
        if left < 0:
            raise EunoeError(
                f"more than {LARGEST // 2**20} MiB up to its file {visible(name)}, which no submission has. Leave that file out."
            )
    return texts


def _faults(name: str, data: bytes, rows: int) -> list[str]:
    """What is wrong with one file, by line."""
    spec, faults = GLUE[FILES[name][0]], []
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        return [f"{name}: not UTF-8 at byte {error.start + 1}"]
    if not lines[-1]:
        lines.pop()
    crlf = [place for place, line in enumerate(lines, 1) if line.endswith("\r")]
    if crlf:
        lines = [line.removesuffix("\r") for line in lines]
        faults.append(
            f"{name}, line {crlf[0]}: {len(crlf):,} lines end as on Windows (CRLF), expected a line feed alone"
        )
    if not lines or lines[0] != HEADER:
        faults.append(f"{name}, line 1: the header is {shown_value(lines[0] if lines else '')}, expected {HEADER!r}")
    for place, line in enumerate(lines[1:]):
        cells = line.split("\t")
        where = f"{name}, line {place + 2}"
        if len(cells) != 2:
            faults.append(f"{where}: {len(cells)} columns, expected an index, a tab and a prediction")
        elif cells[0] != str(place):
            faults.append(
                f"{where}: the index is {shown_value(cells[0])}, expected {place}: rows stand in the test file's order"
            )
        elif spec.labels and cells[1] not in spec.labels:
            faults.append(
                f"{where}: the prediction is {shown_value(cells[1])}, expected one of {', '.join(spec.labels)}"
            )
        elif not spec.labels and not _score(cells[1]):
            faults.append(f"{where}: the prediction is {shown_value(cells[1])}, expected a number from 0 to 5")
    more = len(faults) - SHOWN
    faults = faults[:SHOWN] + ([f"{name}: {more} more faults"] if more > 0 else [])
    if len(lines) - 1 != rows:
        faults.append(f"{name}: {max(len(lines) - 1, 0):,} predictions, expected {rows:,}")
    return faults


def _score(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and float(text) <= 5


__all__ = [
    "FILES",
    "HEADER",
    "fill_submission",
    "submission_file",
    "validate_submission",
    "write_submission",
]
