"""What people see while something long runs: bars on stderr with the loss, tokens a second and the time left.

On a terminal one bar, or one a job. In a log one line every half minute. In a job (jobs.py) one line of JSON on stdout, which
the process that started it turns into its bar.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from eunoe.foreign import visible

EVERY = 30.0
"""Seconds between two lines of a log."""


def _quiet() -> bool:
    return os.environ.get("EUNOE_QUIET") == "1" or os.environ.get("RANK", "0") not in ("0", "")


console = Console(stderr=True, quiet=_quiet(), highlight=False)
_spoke = time.monotonic()  # when the log last had a line: one clock for all bars of the process


_hear: Callable[[dict[str, Any]], object] | None = None


def _job() -> bool:
    return _hear is not None or os.environ.get("EUNOE_PROGRESS") == "json"


@contextmanager
def telling(hear: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Within the block this process is a job, and what it tells goes to ``hear``."""
    global _hear
    _hear = hear
    try:
        yield
    finally:
        _hear = None


def tell(event: dict[str, Any]) -> None:
    """In a job: one line for the process that started it, and ends it when it is gone itself (worker.py)."""
    if _hear is not None:
        _hear(event)
        return
    with suppress(BrokenPipeError):
        print(json.dumps(event), flush=True)


_said: set[str] = set()


def say(text: str) -> None:
    """One line for people, on stderr."""
    if _job():
        tell({"say": text})
    else:
        _said.add(text)
        console.print(text, markup=False, soft_wrap=True)  # a line of a log is looked for as a whole


@cache
def say_once(text: str) -> None:
    """``say``, but the same line only once a process."""
    say(text)


class _Live:
    """What is on the screen within a ``with`` block."""

    progress: Progress

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


class Bar(_Live):
    """A bar over ``total`` steps of which ``done`` are behind us."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name, self.total, self.done, self.start = name, total, done, done
        self.tokens, self.began, self.sent = 0, time.monotonic(), 0.0
        self.live = console.is_terminal and not console.quiet and not _job()
        self.progress = _progress(self.live)
        self.task = self.progress.add_task(visible(name), total=total, completed=done, loss="", rate="")

    def advance(self, tokens: int, loss: float | None = None) -> None:
        """One step done, which read ``tokens`` tokens."""
        self.done += 1
        self.tokens += tokens
        now = time.monotonic()
        rate = self.tokens / max(now - self.began, 1e-9)
        left = (self.total - self.done) * (now - self.began) / max(1, self.done - self.start)
        shown = {"name": self.name, "done": self.done, "total": self.total, "rate": f"{rate:,.0f} tokens/s", "left": left,
                 "loss": "" if loss is None else f"loss {loss:.3f}"}  # fmt: skip
        if _job():
            if now - self.sent > 0.5 or self.done == self.total:
                self.sent = now
                tell(shown)
        elif self.live:
            self.progress.update(self.task, completed=self.done, loss=shown["loss"], rate=shown["rate"])
        elif not console.quiet and _due():
            _log(shown)


class Lines(_Live):
    """What several jobs are at: one bar a job on a terminal, else a line for each every half minute.

    A job is a number from 0, or the key of a cell that runs elsewhere, whose bar comes with its first event and goes by ``drop``.
    What one of them says is said once, though each says it: they all read and check the same recipe.
    """

    def __init__(self, track: Callable[[Any], None], count: int = 0) -> None:
        self.track = track
        self.live = console.is_terminal and not console.quiet
        self.progress = _progress(self.live)
        self.tasks: dict[int | str, TaskID] = {}
        for k in range(count):
            self._add(k)
        self.errors: dict[int | str, str] = {}
        self.latest: dict[int | str, dict[str, Any]] = {}
        self.lock = threading.Lock()  # each job is read by a thread of its own

    def _add(self, k: int | str) -> None:
        name = f"job {k + 1}" if isinstance(k, int) else visible(k)
        self.tasks[k] = self.progress.add_task(name, total=None, loss="", rate="")

    def drop(self, k: str) -> None:
        """The cell has ended: it has no line any more."""
        with self.lock:
            self.latest.pop(k, None)
            if k in self.tasks:
                self.progress.remove_task(self.tasks.pop(k))

    def take(self, k: int | str, event: Any) -> None:
        """What job ``k`` sent: progress, a line to say, numbers for trackers, or the error that it ended with."""
        with self.lock:
            if "say" in event:
                if event["say"] not in _said:
                    say(event["say"])
            elif "track" in event:
                self.track(event["track"])
            elif "error" in event:
                self.errors[k] = event["error"]
            elif self.live:
                if k not in self.tasks:
                    self._add(k)
                name = visible(event["name"])
                self.progress.update(self.tasks[k], description=f"{k + 1}: {name}" if isinstance(k, int) else name,
                                     total=event["total"], completed=event["done"], loss=event["loss"],
                                     rate=event["rate"])  # fmt: skip
            elif not console.quiet:
                self.latest[k] = {**event, "name": f"job {k + 1}: {event['name']}"} if isinstance(k, int) else event
                if _due():
                    for _, shown in sorted(self.latest.items(), key=lambda item: str(item[0]).rjust(4)):
                        _log(shown)
                    self.latest.clear()


def _due() -> bool:
    """Is the log's last line half a minute ago? Then it is now."""
    global _spoke
    now = time.monotonic()
    if now - _spoke < EVERY:
        return False
    _spoke = now
    return True


def _log(shown: dict[str, Any]) -> None:
    place = f"{visible(shown['name'])}: step {shown['done']}/{shown['total']}"
    print(f"{place} {shown['loss']} {shown['rate']}, {shown['left']:,.0f} s left", file=sys.stderr)


def _progress(live: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}  {task.fields[rate]}"), TimeRemainingColumn(),
        console=console, transient=True, expand=True, disable=not live,
    )  # fmt: skip


__all__ = ["Bar", "Lines", "console", "say", "say_once", "tell", "telling"]
