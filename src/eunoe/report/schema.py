"""A row: one score of one model state, one JSON object a line in ``rows.jsonl``.

Rows are the record; everything reported is computed from them. They hold nothing that differs between two runs of
the same recipe, so a run that was killed and taken up again ends in the same bytes. (design.md put ``seconds`` into
the row; times differ from run to run, so they live in ``times.jsonl`` beside it.)
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError


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

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a row unique in its file."""
        return (self.method, self.transfer, self.order, self.seed, self.shots_seed, self.learnt, self.task, self.metric,
                self.at)  # fmt: skip


def to_line(row: Row) -> str:
    """The row as one line of JSON, keys in the order of the schema."""
    return json.dumps(asdict(row), ensure_ascii=False, separators=(", ", ": "), allow_nan=False) + "\n"


def from_line(line: str, where: str = "row") -> Row:
    """The row of one line of JSON; raises ``EunoeError`` naming ``where`` if it is none."""
    names = {f.name for f in fields(Row)}
    try:
        data = json.loads(line)
        wrong = set(data) ^ names if isinstance(data, dict) else names
        if wrong - {"detail"}:
            raise ValueError(f"keys {sorted(wrong)} missing or unknown")
        row = Row(**{**data, "learnt": tuple(data["learnt"])})
        _check(row, data)
        return row
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EunoeError(f"{where} is no row of this project ({error}). Delete the line or restore the file.") from None


def _check(row: Row, data: dict[str, Any]) -> None:
    """Refuse a value of the wrong type: a row is read long after it was written, perhaps by hand."""
    texts = [
        row.run,
        row.method,
        row.order,
        row.task,
        row.metric,
        *row.learnt,
        *([] if row.transfer is None else [row.transfer]),
    ]
    counts = [row.seed, row.n, row.steps, *([] if row.shots_seed is None else [row.shots_seed])]
    if not isinstance(data["learnt"], list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is not text, or learnt is no list")
    if not all(isinstance(count, int) and not isinstance(count, bool) for count in counts):
        raise ValueError("a seed or a count is not a whole number")
    if isinstance(row.value, bool) or not isinstance(row.value, int | float) or not math.isfinite(row.value):
        raise ValueError(f"value {row.value!r} is not a finite number")
    if row.detail is not None and not isinstance(row.detail, dict):
        raise ValueError("detail is no mapping")


def read_rows(path: Path) -> list[Row]:
    """All rows of a file. A last line cut short by a kill is left out; any other broken line is an error."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # not splitlines: a class's name may hold U+2028
    except OSError as error:
        raise EunoeError(f"{path} cannot be read: {error.strerror or error}.") from None
    return [from_line(_utf8(line, f"{path}:{i}"), f"{path}:{i}") for i, line in enumerate(lines, 1)]


def _utf8(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EunoeError(f"{where} is not UTF-8 ({error}). Delete the line or restore the file.") from None


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows in one write and fsync; first cut off a line that a kill left unfinished.

    Raises ``EunoeError`` if the disk is full or the file not writable; then no row of this call is in the file.
    """
    text = "".join(to_line(row) for row in rows)
    data = text.encode("utf-8")
    try:
        with open(path, "ab+", buffering=0) as file:
            file.seek(0)
            held = file.read()
            whole = held.rfind(b"\n") + 1
            try:
                if whole < len(held):
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
