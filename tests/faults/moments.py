"""Moments of a run that no clock tells: the n-th thing that it does to the files of its folder, which is the same in every run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
_heard: list[Callable[[], None]] = []
_hooked: list[bool] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _heard and event in _EVENTS and isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith("out"):
        _heard[0]()


def _listen(then: Callable[[], None]) -> None:
    if not _hooked:  # a hook stays for as long as the process
        _hooked.append(True)
        sys.addaudithook(_hook)
    _heard[:] = [then]


def signal_at(moment: int, which: int) -> None:
    """Send this process the signal at that moment (from 1) in the folder ``out`` of the current folder; 0: at none."""
    seen = 0

    def then() -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), which)

    _listen(then)


@contextmanager
def counted(file: Path) -> Iterator[None]:
    """Within the block moments are counted; their number is then written to ``file``."""
    seen = 0

    def then() -> None:
        nonlocal seen
        seen += 1

    _listen(then)
    try:
        yield
    finally:
        _heard.clear()
        file.write_text(str(seen))
