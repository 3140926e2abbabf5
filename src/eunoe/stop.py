"""One flag for the whole command: SIGINT and SIGTERM ask it to stop; whatever is running looks between two pieces of work.

A handler only sets the flag, so no write is torn and no library is interrupted inside. ``check`` is called between steps,
batches, documents and cells, and raises ``Interrupted`` where the flag is set; who has a place to save looks at ``asked``
first, saves it and then raises. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from eunoe.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: str | None = None
_watching = False


def asked() -> str | None:
    """The name of the signal that asked to stop, or None."""
    return _asked


def check(doing: str, place: str = "") -> None:
    """Raise ``Interrupted`` if a signal came: ``stopped by SIGINT while DOING; PLACE. Run the same command to resume.``"""
    if _asked is not None:
        saved = f"; {place}" if place else ""
        raise Interrupted(f"stopped by {_asked} while {doing}{saved}. Run the same command to resume.")


@contextmanager
def watching(command: bool = False) -> Iterator[None]:
    """Within the block signals set the flag. Nested blocks, and blocks outside the main thread, change nothing.

    ``command``: this is the whole program, so a second signal ends the process (exit code 130, nothing is torn: files
    appear whole or not at all). In a library's use a second signal goes to the handlers that stood before.
    A signal that came in the block and that nobody looked at is sent again when the block ends without an error.
    """
    global _watching, _asked
    if _watching or threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {s: signal.getsignal(s) for s in _SIGNALS}

    def ask(number: int, _frame: FrameType | None) -> None:
        global _asked
        if command and _asked is not None:
            os.write(2, b"\neunoe: stopped at once by a second signal. Run the same command to resume.\n")
            os._exit(130)
        _asked = signal.Signals(number).name
        if not command:
            _restore(before)

    _watching, _asked = True, None
    for s, handler in before.items():
        if handler is not signal.SIG_IGN:  # a background job of the shell ignores SIGINT, and so do we
            signal.signal(s, ask)
    lost: str | None = None
    try:
        yield
        lost = asked()
    finally:
        _restore(before)
        _watching, _asked = False, None
    if lost is not None:  # it came after the last look: it must not be lost
        if command:
            raise Interrupted(f"stopped by {lost}, which came when the work was already done.")
        signal.raise_signal(signal.Signals[lost])


def _restore(before: dict[int, Any]) -> None:
    for s, handler in before.items():
        signal.signal(s, handler)


__all__ = ["asked", "check", "watching"]
