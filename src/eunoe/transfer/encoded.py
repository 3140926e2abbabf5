"""The token ids of the last few tasks: ``check`` makes them, and every seed and system of a study asks for them again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from eunoe.data.collate import Rows
from eunoe.data.tasks import Task

MOST = 32
"""Tasks whose rows are kept."""
_KEPT: dict[Hashable, tuple[Any, Task, tuple[Rows, Rows]]] = {}


def encoded(tokenizer: Any, task: Task, how: Hashable, make: Callable[[], tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    """The training and test rows of ``task``; ``make`` makes them unless they are kept. ``how``: all that they depend on besides."""
    key = (id(tokenizer), id(task), how)
    if key not in _KEPT:
        rows = make()
        while len(_KEPT) >= MOST:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = (tokenizer, task, rows)  # what the ids name is kept, so they stay theirs
    return _KEPT[key][2]


__all__ = ["encoded"]
