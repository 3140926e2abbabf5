"""The one table of methods: command line, recipes, tests, docs and reports all read it.

A new method is one file, one row here, one test file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eunoe.methods.base import Method
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.methods.ncl import Ncl, NclSettings


@dataclass(frozen=True)
class Entry:
    """A method, the dataclass of its settings, and what it does in one line."""

    method: type[Method]
    settings: type[Any]
    summary: str


METHODS: dict[str, Entry] = {
    "ncl": Entry(Ncl, NclSettings, "train all weights on each domain in turn and protect nothing; forgets"),
    "cpt": Entry(
        Cpt, CptSettings, "plug-ins with hard masks per domain on a frozen model; forgets nothing (EMNLP 2022)"
    ),
}

__all__ = ["METHODS", "Entry", "Method"]
