"""One flag for the whole command: SIGINT and SIGTERM ask it to stop; whatever is running looks between two pieces of work.

A handler only sets the flag, so no write is torn and no library is interrupted inside. ``check`` is called between steps,
batches, documents and cells, and raises ``Interrupted`` where the flag is set; who has a place to save looks at ``asked``
first, saves it and then raises. A second signal ends the process at once.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, BinaryIO

from eunoe.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: str | None = None
_watching = False
_at_once = False
"""Has nobody looked yet? Then the command imports, or does something that has no place to save."""


def asked() -> str | None:
    """The name of the signal that asked to stop, or None."""
    return _asked


def ask(who: str | None) -> None:
    """Ask this process to stop, as a signal would, in the name of ``who``; None takes it back. For one that works for another."""
    global _asked
    _asked = who


def check(doing: str, place: str = "") -> None:
    """Raise ``Interrupted`` if a signal came: ``stopped by SIGINT while DOING; PLACE. Run the same command to resume.``"""
    global _at_once
    _at_once = False
    if _asked is not None:
        saved = f"; {place}" if place else ""
        raise Interrupted(f"stopped by {_asked} while {doing}{saved}. Run the same command to resume.")


def digest(file: BinaryIO, doing: str) -> str:
    """SHA-256 of an open file, as ``hashlib.file_digest`` gives it, with a look at the flag after every 16 MB."""
    total = hashlib.sha256()
    while part := file.read(1 << 24):
        check(doing)
        total.update(part)
    return total.hexdigest()


@contextmanager
def watching(command: bool = False, at_once: bool = False) -> Iterator[None]:
    """Within the block signals set the flag. Nested blocks, and blocks outside the main thread, change nothing.

    ``command``: this is the whole program, so a second signal ends the process (exit code 130, nothing is torn: files
    appear whole or not at all), also while it says what stopped it; one that comes once all is done changes nothing. In a
    library's use a second signal goes to the handlers that stood before.
    ``at_once`` (of a command): until the first ``check`` a signal ends the process right away; imports take seconds.
    A signal that came in the block and that nobody looked at is not lost: of the command it raises ``Interrupted``, in a
    library's use it is sent again to the handlers that stood before.
    """
    global _watching, _asked, _at_once
    if _watching or threading.current_thread() is not threading.main_thread():
        yield
        return
    standing = {s: signal.getsignal(s) for s in _SIGNALS}
    # a background job of the shell ignores SIGINT, and so do we; None: the handler is none of Python's, and cannot be put back
    before: dict[int, Any] = {s: h for s, h in standing.items() if h is not None and h is not signal.SIG_IGN}

    def note(number: int, _frame: FrameType | None) -> None:
        global _asked
        if command and _asked is not None:
            os.write(2, b"\neunoe: stopped at once by a second signal. Run the same command to resume.\n")
            os._exit(130)
        _asked = signal.Signals(number).name
        if _at_once:  # no exception: what is being imported could take it for its own
            os.write(
                2, f"eunoe: stopped by {_asked} before it had anything to save. Run the same command again.\n".encode()
            )
            os._exit(130)
        if not command:
            _restore(before)

    _watching, _asked, _at_once = True, None, at_once
    if command:  # the handlers stay: until the interpreter is gone, a signal must not turn a clean end into another
        atexit.register(_restore, dict.fromkeys(before, signal.SIG_IGN))
    _restore(dict.fromkeys(before, note))
    heard = False
    try:
        yield
    except Interrupted:
        heard = True
        raise
    finally:
        if not command:
            _restore(before)  # first: whatever comes now is for others
        lost, _watching, _at_once = None if heard else asked(), False, False
        if not command:
            _asked = None
            if lost is not None:
                signal.raise_signal(signal.Signals[lost])
    if command and lost is not None:
        raise Interrupted(f"stopped by {lost}, which came when the work was already done.")


def _restore(before: dict[int, Any]) -> None:
    for s, handler in before.items():
        signal.signal(s, handler)


__all__ = ["ask", "asked", "check", "digest", "watching"]
