"""A row: one score of one model state, one JSON object a line in ``rows.jsonl``.

Rows are the record; everything reported is computed from them. They hold nothing that differs between two runs of
the same recipe, so a run that was killed and resumed ends in the same bytes. (design.md put ``seconds`` into
the row; times differ from run to run, so they live in ``times.jsonl`` beside it.)

A field that was added later has a default, and rows from before it are read with that. A field that this version does not
know is refused, not ignored: it may change what a value is. (``at`` did: whoever had ignored it would have averaged the
best score with the last one.)
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from io import RawIOBase
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError
from eunoe.report.files import COUNTS, LARGEST, clean, is_count, is_number, parse_json, read_lines

MOMENTS = ("last", "best")
NAME = 10_000
"""Characters of the longest name."""
LONGEST = 1000
"""Domains of the longest sequence: a matrix of scores has its square of cells."""
ADVICE = "Restore the file, or delete the line and run the same command again."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score. ``learnt`` are the domains the model had learnt when it was measured, in order."""

    run: str
    """Name of the recipe."""
    method: str
    """Method that learnt the domains; ``base`` is the pretrained model before any domain."""
    transfer: str | None
    """Transfer recipe that fine-tuned the copy; None where the language model itself was scored."""
    order: str
    """Name of the domain order."""
    seed: int
    shots_seed: int | None
    """Seed that drew the few-shot sample; None where no labelled rows were read."""
    learnt: tuple[str, ...]
    task: str
    """What was scored: a domain's name (its held-out text or its end task), or ``general``."""
    metric: str
    """``lm_loss`` (nats a scored token), ``accuracy``, ``macro_f1``, ``pearson`` (fractions in [0, 1] or [-1, 1])."""
    value: float
    n: int
    """How many items the value is a mean over: scored tokens or test rows."""
    steps: int
    """Optimizer steps that led to this score (of the last domain, or of the fine-tuning)."""
    at: str = "last"
    """``last`` step of the fine-tuning, or the ``best`` of its evaluations, as the papers' scripts report."""
    detail: dict[str, Any] | None = None
    """Per-class counts of an end task: {class: {"support": .., "predicted": .., "correct": ..}}."""
    short_shots: dict[str, int] | None = None
    """Class -> how many rows the few-shot draw took, for those that have fewer rows than were asked for; None: no such class."""
    at_once: int | None = None
    """How many domains, the last ones of ``learnt``, were learnt at once; None: one."""

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a row unique in its file."""
        return (self.method, self.transfer, self.order, self.seed, self.shots_seed, self.learnt, self.task, self.metric,
                self.at)  # fmt: skip


REQUIRED = {field.name for field in fields(Row) if field.default is MISSING}


LATER = ("short_shots", "at_once")
"""Fields that were added since rows were first written: left out where they say nothing, so that older rows keep their bytes."""


def to_line(row: Row) -> str:
    """The row as one line of JSON, keys in the order of the schema. Raises ``ValueError`` for one that could not be read again."""
    data = asdict(row)
    _check({**data, "learnt": list(row.learnt)})
    data = {key: value for key, value in data.items() if value is not None or key not in LATER}
    return json.dumps(data, ensure_ascii=False, separators=(", ", ": "), allow_nan=False) + "\n"


def from_line(line: str, where: str = "row") -> Row:
    """The row of one line of JSON; raises ``EunoeError`` naming ``where`` if it is none."""
    try:
        data = parse_json(line)
        if not isinstance(data, dict):
            raise ValueError("it is not a JSON object")
        missing, unknown = sorted(REQUIRED - set(data)), sorted(set(data) - {field.name for field in fields(Row)})
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if unknown:
            raise ValueError(f"this version does not know its field {', '.join(map(ascii, unknown[:5]))}: a later version of eunoe wrote "
                             "it, or another program. Make the report with that version")  # fmt: skip
        _check(data)
    except ValueError as error:
        raise EunoeError(f"{where} is not a row of this project ({error}). {ADVICE}") from None
    return Row(**{**data, "learnt": tuple(data["learnt"]), "value": float(data["value"])})


def _check(data: dict[str, Any]) -> None:
    """Refuse a value of the wrong type or size: a row is read long after it was written, perhaps by hand."""
    learnt = data["learnt"]
    if not isinstance(learnt, list) or len(learnt) > LONGEST:
        raise ValueError(f"learnt is not a list of at most {LONGEST:,} names")
    named = {key: data[key] for key in ("run", "method", "order", "task", "metric")}
    for key, name in [*named.items(), ("transfer", data["transfer"]), *(("learnt", name) for name in learnt)]:
        if not (key == "transfer" and name is None) and not (isinstance(name, str) and len(name) <= NAME):
            raise ValueError(f"{key} is not text of at most {NAME:,} characters")
    for key in ("n", "steps"):
        if not is_count(data[key]):
            raise ValueError(f"{key} is not a whole number between 0 and {COUNTS:,}")
    for key in ("seed", "shots_seed"):
        value = data[key]
        if not (key == "shots_seed" and value is None) and not (isinstance(value, int) and is_count(abs(value))):
            raise ValueError(f"{key} is not a whole number between -{COUNTS:,} and {COUNTS:,}")
    if not is_number(data["value"]):
        raise ValueError(f"value is not a finite number between -{LARGEST:g} and {LARGEST:g}")
    if data.get("at", "last") not in MOMENTS:
        raise ValueError(f"at is none of {', '.join(MOMENTS)}")
    for key in ("detail", "short_shots"):
        if data.get(key) is not None and not isinstance(data[key], dict):
            raise ValueError(f"{key} is not a mapping")
    together = data.get("at_once")
    if together is not None and not (is_count(together) and 2 <= together <= len(learnt)):
        raise ValueError("at_once is not a whole number from 2 to the number of domains in learnt")
    if not all(map(is_count, (data.get("short_shots") or {}).values())):
        raise ValueError("short_shots does not map classes to counts")


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, [] where there is none. A last line cut short by a kill is left out; any other broken line raises
    ``EunoeError``."""
    if not os.path.lexists(path):
        return []
    return [from_line(line, f"{clean(str(path))}:{i}") for i, line in read_lines(path, ADVICE, appended=True)]


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows in one write and fsync; first cut off a line that a kill left unfinished.

    Raises ``EunoeError`` if the disk is full or the file not writable; then no row of this call is in the file.
    """
    text = "".join(to_line(row) for row in rows)
    data = text.encode("utf-8")
    try:
        with open(path, "ab+", buffering=0) as file:
            whole, size = _whole_lines(file), file.seek(0, os.SEEK_END)
            try:
                if whole < size:
                    file.truncate(whole)
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise EunoeError(f"{path} could not be written: {error.strerror or error}. Its earlier rows are whole; free space and "
                         "run the same command again.") from None  # fmt: skip


def _whole_lines(file: RawIOBase) -> int:
    """Where the last whole line ends, sought from the end: a file that grows by many calls is not read in each."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        at = (file.read(end - start) or b"").rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


__all__ = ["MOMENTS", "Row", "append_rows", "from_line", "read_rows", "to_line"]
