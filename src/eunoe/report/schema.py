"""A row: one score of one model state, one JSON object a line in ``rows.jsonl``.

Rows are the record; everything reported is computed from them. They hold nothing that differs between two runs of
the same recipe, so a run that was killed and taken up again ends in the same bytes. (design.md put ``seconds`` into
the row; times differ from run to run, so they live in ``times.jsonl`` beside it.)
"""

from __future__ import annotations

import json
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
    detail: dict[str, Any] | None = None
    """Per-class counts of an end task: {class: {"support": .., "predicted": .., "correct": ..}}."""

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a row unique in its file."""
        return (self.method, self.transfer, self.order, self.seed, self.shots_seed, self.learnt, self.task, self.metric)


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
        return Row(**{**data, "learnt": tuple(data["learnt"])})
    except (ValueError, TypeError, KeyError) as error:
        raise EunoeError(f"{where} is no row of this project ({error}). Delete the line or restore the file.") from None


def read_rows(path: Path) -> list[Row]:
    """All rows of a file. A last line cut short by a kill is left out; any other broken line is an error."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    return [from_line(line, f"{path}:{i}") for i, line in enumerate(whole.splitlines(), 1)]


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows in one write and fsync; first cut off a line that a kill left unfinished."""
    text = "".join(to_line(row) for row in rows)
    with open(path, "ab+") as file:
        file.seek(0)
        held = file.read()
        whole = held.rfind(b"\n") + 1
        if whole < len(held):
            file.truncate(whole)
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
