"""Names that become parts of paths and keys of rows: safe, different on every file system, and not those of other rows."""

from __future__ import annotations

import re
from collections.abc import Iterable

from eunoe.errors import EunoeError
from eunoe.foreign import visible

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}")
RESERVED = {"domain": ("general", "base"), "method label": ("base", "head-start", "head-trained")}
"""Kind of name -> what rows call something else: general text, the pretrained model, the LM head before and after training."""


def safe_name(name: object, kind: str = "") -> str:
    """``name`` itself; raises ``EunoeError`` unless it is 1 to 64 letters, digits, ``-`` and ``_``, the first no sign.

    A ``method label`` may have ``+`` too (der++); in other names it would read as several domains learnt at once.
    """
    method = kind == "method label"
    if not isinstance(name, str) or not (_METHOD if method else _SAFE).fullmatch(name):
        signs = "-, + and _" if method else "- and _"
        raise EunoeError(f"the name {visible(repr(name), 100)} is not allowed: use 1 to 64 letters, digits, {signs}, in quotes where "
                         "YAML would read a number.")  # fmt: skip
    return name


def check_names(names: Iterable[object], kind: str) -> None:
    """Refuse names of one kind (``domain``, ``method label``, ``order``, ``task``, ``system``, ``retention text``) that cannot
    stand beside each other: unsafe ones, duplicates, those that differ in case alone, and those that rows use otherwise.

    >>> check_names(["News", "news"], "domain")
    Traceback (most recent call last):
    eunoe.errors.EunoeError: the domain names 'News' and 'news' differ in case alone: on some file systems they are one folder. Rename one.
    """
    seen: dict[str, str] = {}
    for name in [safe_name(name, kind) for name in names]:
        folded = name.lower()
        if folded in RESERVED.get(kind, ()):
            raise EunoeError(f"the name {name!r} is not allowed for a {kind}: rows use it for something else. Not allowed are "
                             f"{', '.join(RESERVED[kind])}, in upper or lower case.")  # fmt: skip
        other = seen.get(folded)
        seen[folded] = name
        if other == name:
            raise EunoeError(f"duplicate {kind} names: {name}. Give each a name of its own.")
        if other is not None:
            raise EunoeError(f"the {kind} names {other!r} and {name!r} differ in case alone: on some file systems they are one folder. "
                             "Rename one.")  # fmt: skip
