"""What people see while something long runs: one bar on stderr with the loss, tokens a second and the time left."""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eunoe import ranks

console = Console(stderr=True, quiet=os.environ.get("EUNOE_QUIET") == "1" or not ranks.first(), highlight=False)


def say(text: str) -> None:
    """One line for people, on stderr."""
    console.print(text, markup=False, soft_wrap=True)  # a line of a log is looked for as a whole


@cache
def say_once(text: str) -> None:
    """``say``, but the same line only once a process."""
    say(text)


class Bar:
    """A bar over ``total`` steps of which ``done`` are behind us. On something that is no terminal: a line now and then."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name, self.total, self.done, self.start = name, total, done, done
        self.tokens, self.began, self.spoke = 0, time.monotonic(), time.monotonic()
        self.live = console.is_terminal and not console.quiet
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}  {task.fields[rate]}"), TimeRemainingColumn(),
            console=console, transient=True, expand=True, disable=not self.live,
        )  # fmt: skip
        self.task = self.progress.add_task(name, total=total, completed=done, loss="", rate="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def advance(self, tokens: int, loss: float | None = None) -> None:
        """One step done, which read ``tokens`` tokens."""
        self.done += 1
        self.tokens += tokens
        now = time.monotonic()
        rate = self.tokens / max(now - self.began, 1e-9)
        said = "" if loss is None else f"loss {loss:.3f}"
        self.progress.update(self.task, completed=self.done, loss=said, rate=f"{rate:,.0f} tokens/s")
        if not self.live and not console.quiet and now - self.spoke > 30:
            self.spoke = now
            left = (self.total - self.done) * (now - self.began) / (self.done - self.start)
            print(
                f"{self.name}: step {self.done}/{self.total} {said} {rate:,.0f} tokens/s, {left:,.0f} s left",
                file=sys.stderr,
            )
