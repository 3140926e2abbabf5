"""Reading what others wrote: whatever a library raises on a foreign file becomes one error that names the file.

transformers, pyarrow, tokenizers, json and torch raise anything between ``KeyError`` and ``ZeroDivisionError`` on a
damaged file. None of that may reach a user as a traceback, so every read of a foreign file stands inside ``reading``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from eunoe.errors import EunoeError


@contextmanager
def reading(what: object, advice: str = "") -> Iterator[None]:
    """Turn any exception of the block into an ``EunoeError``: ``WHAT cannot be read: FIRST LINE. ADVICE``.

    ``what``: the file, or the model's name; it is shown with control characters escaped. An ``EunoeError`` of the block
    passes as it is, and so do ``KeyboardInterrupt`` and ``SystemExit``.

    >>> with reading("numbers.json", "Write it again."):
    ...     {}["sha256"]
    Traceback (most recent call last):
    eunoe.errors.EunoeError: numbers.json cannot be read: KeyError: 'sha256'. Write it again.
    """
    try:
        yield
    except EunoeError:
        raise
    except MemoryError as error:
        raise EunoeError(f"{visible(what)} needs more memory than there is. {advice}".rstrip()) from error
    except Exception as error:  # a damaged file can raise anything
        raise EunoeError(f"{visible(what)} cannot be read: {first_line(error)} {advice}".rstrip()) from error


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an exception's text, with its type where the text alone says little, ending in a full stop."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else ""
    if text.endswith(":") and len(lines) > 1:  # pydantic and others put the reason below
        text = f"{text} {lines[1].strip()}"
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif not text or isinstance(
        error, KeyError | AttributeError | TypeError | AssertionError | IndexError | ZeroDivisionError
    ):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{visible(text, limit).rstrip('.')}."


def visible(text: object, limit: int = 300) -> str:
    """``text`` fit for one line of a terminal: control characters (escapes too) are shown as ``\\x1b``, and what is long is cut.

    >>> visible("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: 4 * limit])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


__all__ = ["first_line", "reading", "visible"]
