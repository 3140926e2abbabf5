"""What the columns of a file with rows are: which holds the text, a second text, the label; by their names and by what they hold.

A name that people use for it decides; else the only column that can be it, and that is said. Where two can, none is chosen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eunoe.data.records import read_rows
from eunoe.foreign import visible

_TEXTS = """
text sentence review headline content body document article abstract passage question query tweet comment message post utterance
description summary title sentences texts reviews
"""
TEXTS = frozenset(_TEXTS.split())
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("question1", "question2"),
    ("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b"), ("question", "sentence"), ("question", "passage"),
    ("query", "passage"), ("text", "pair"), ("text", "text_pair"), ("text", "aspect"),
)  # fmt: skip
_LABELS = """
label labels class classes category categories sentiment target topic polarity intent rating stars score quality gold similarity
stance emotion
"""
LABELS = frozenset(_LABELS.split())
ROWS = 20_000
"""Rows that are looked at."""
MOST_CLASSES = 50


@dataclass
class Look:
    """A file with rows, looked at."""

    path: Path
    columns: list[str]
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    regression: bool = False
    """Are the labels numbers on a scale?"""
    said: list[str] = field(default_factory=list)
    """What was decided by more than a common name, or could not be decided."""


def look(path: Path) -> Look:
    """Look at the columns of ``path`` and at its first rows; raises ``EunoeError`` for what cannot be read."""
    seen: dict[str, list[Any]] = {}
    for number, (_, record) in enumerate(read_rows(str(path), labelled=True)):
        for name, value in record.items():
            seen.setdefault(name, []).append(value)
        if number + 1 >= ROWS:
            break
    columns = Look(path, list(seen))
    if any(not name.strip() or len(name.split()) > 6 for name in seen):
        columns.said.append("its first line does not hold names of columns; write a header, as in text,label")
        return columns
    _find_text(columns, seen)
    if columns.text is not None:
        _find_label(
            columns, {name: values for name, values in seen.items() if name not in (columns.text, columns.pair)}
        )
    return columns


def plain(name: str) -> str:
    """A column's name as it is compared: small letters, digits and ``_``."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _find_text(columns: Look, seen: Mapping[str, list[Any]]) -> None:
    names = {plain(name): name for name in seen if _sentences(seen[name], least=1)}
    pairs = [(names[a], names[b]) for a, b in PAIRS if a in names and b in names]
    if len(pairs) == 1:
        columns.text, columns.pair = pairs[0]
        columns.said.append(f"its texts are pairs: {_quoted(pairs[0])}")
        return
    if len(pairs) > 1:
        columns.said.append(f"several columns can be its texts: {' or '.join(_quoted(pair) for pair in pairs)}")
        return
    named = [name for key, name in names.items() if key in TEXTS or key.removesuffix("_text") in TEXTS]
    columns.text = _only(named, "text", columns.said, "text")
    if columns.text is None and not named:
        columns.text = _only([name for name in seen if _sentences(seen[name])], "", columns.said, "text")
        if columns.text is not None:
            columns.said.append(f"the text is {_quoted([columns.text])}, the only column that holds sentences")
        elif not columns.said:
            columns.said.append("no column holds sentences")


def _find_label(columns: Look, seen: Mapping[str, list[Any]]) -> None:
    named = [name for name in seen if plain(name) in LABELS]
    label = _only(named, "label", columns.said, "label")
    if label is None and not named:
        label = _only([name for name, values in seen.items() if _classes(values)], "", columns.said, "label")
        if label is not None:
            columns.said.append(f"the label is {_quoted([label])}, the only column with few different values")
    if label is None:
        return
    values = [value for value in seen[label] if value is not None]
    numbers = [_number(value) for value in values]
    kinds = len({str(value) for value in values})
    if numbers and all(n is not None for n in numbers) and any(n != math.floor(n) for n in numbers if n is not None):
        columns.label, columns.regression = label, True
        columns.said.append(f"{_quoted([label])} holds numbers on a scale, not classes: regression")
    elif kinds > MOST_CLASSES and kinds > len(values) / 4:
        columns.said.append(
            f"{_quoted([label])} has {kinds:,} different values in {len(values):,} rows, too many to be classes"
        )
    else:
        columns.label = label


def _only(names: Sequence[str], usual: str, said: list[str], what: str) -> str | None:
    """The one name, or the usual one among several, which is said; None where several are possible."""
    exact = [name for name in names if plain(name) == usual]
    if len(names) <= 1:
        return names[0] if names else None
    if len(exact) == 1:
        said.append(f"not read as the {what}: {_quoted([name for name in names if name != exact[0]])}")
        return exact[0]
    said.append(f"several columns can be the {what}: {_quoted(names)}")
    return None


def _sentences(values: Sequence[Any], least: float = 3) -> bool:
    """Text of ``least`` words or more on average, or of a script that needs no spaces?"""
    some = [value for value in values[:200] if isinstance(value, str) and value.strip()]
    if not some or len(some) < len(values[:200]) / 2 or all(_number(value) is not None for value in some):
        return False
    return sum(max(len(value.split()), len(value) / 12) for value in some) / len(some) >= least


def _classes(values: Sequence[Any]) -> bool:
    kinds = {str(value) for value in values}
    return 2 <= len(kinds) <= 20 and len(kinds) <= len(values) / 4


def _number(value: Any) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(visible(repr(name), 40) for name in names)


__all__ = ["Look", "look", "plain"]
