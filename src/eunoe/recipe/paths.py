"""Paths in recipes and on the command line: ``$VARIABLES`` and ``~``, and folders that must not lie in each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError
from eunoe.foreign import visible

LONGEST = 255
"""Bytes in the name of a file or folder, on every file system in use."""


def usable(path: str) -> str:
    """``path`` itself; raises ``EunoeError`` for a NUL and for names that no file system holds, which every look at it would trip over."""
    if "\0" in path:
        raise EunoeError(f"the path {visible(path, 80)!r} holds a NUL character. Give it without.")
    long = next((part for part in path.split("/") if len(os.fsencode(part)) > LONGEST), None)
    if long is not None or len(os.fsencode(path)) > 4096:
        raise EunoeError(
            f"the path {visible(path, 80)!r} has a name of more than {LONGEST} bytes, or more than 4,096 in all, which no file system "
            "holds. Give a shorter one."
        )
    return path


def as_path(value: Any, what: str) -> Path:
    """A path given as text or as a path; raises ``EunoeError`` naming ``what`` for anything else, and for empty text."""
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and path:
            return Path(usable(path))
    raise EunoeError(f"{what} is given as {value!r}; give a path, as text or as pathlib.Path.")


def expand(text: str) -> str:
    """``~`` and variables (``$NAME``, ``${NAME}``) in a path; raises ``EunoeError`` for an unset variable.

    What exists as it stands, or with the variables that are set, is taken so: a file may be called ``costs$2024.csv``.
    Otherwise ``$$`` is one ``$``, as in a makefile, and a ``$`` before anything but a name is itself. What a variable holds is not
    expanded again.
    """
    if os.path.lexists(usable(text)):
        return text

    unset: list[str] = []

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is not None and name not in os.environ:
            unset.append(name)
        return "$" if name is None else os.environ.get(name, match[0])

    out = re.sub(r"\$(?:\$|(\w+)|\{(\w+)\})", value, os.path.expanduser(text))
    if unset and not os.path.lexists(usable(out)):
        raise EunoeError(f"{text!r} names the environment variable {unset[0]}, which is not set. Set it: "
                         f"export {unset[0]}=/path/to/folder; or write $$ for a $ that is part of the name.")  # fmt: skip
    return usable(out)


def refuse_inside(out: Path, sources: Iterable[str]) -> None:
    """Raise ``EunoeError`` if the folder ``out`` lies in a folder that is read (it would be read as text), or holds what is read.

    ``sources``: as in recipes; ``hub:`` and ``package:`` ones are no places of the user's. Links are followed.
    """
    folder = Path(os.path.realpath(out))
    for source in dict.fromkeys(sources):
        if source.startswith(("hub:", "package:")):
            continue
        read = Path(os.path.realpath(expand(source)))
        if read.is_dir() and folder.is_relative_to(read):
            raise EunoeError(
                f"{out} lies in {source}, which is read: what the run writes would be read as text. Choose an --out outside."
            )
        if read.is_relative_to(folder):
            raise EunoeError(f"{source} lies in {out}, the folder that the run writes to. Choose another --out.")
