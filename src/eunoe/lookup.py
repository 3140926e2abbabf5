"""Name -> entry, or an error with the close matches.

Every table of the project (methods, transfers, optimizers, families, recipes, columns) is read through
``lookup``, so a mistyped name always ends in the same helpful sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from eunoe.errors import EunoeError

Entry = TypeVar("Entry")


def lookup(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry called ``name``; raises ``EunoeError`` naming close matches and what there is.

    >>> lookup({"ncl": 1, "cpt": 2}, "cpt", "method")
    2
    """
    if name in table:
        return table[name]
    raise unknown(name, table, kind)


def unknown(name: str, known: Iterable[str], kind: str) -> EunoeError:
    """The error for a name that is not among ``known``: what was given, the close matches, all that is allowed."""
    names = sorted(str(entry) for entry in known)
    folded = {known.lower(): known for known in names}
    close = [folded[match] for match in get_close_matches(str(name).lower(), folded, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    allowed = ", ".join(names) if names else "none"
    return EunoeError(f"unknown {kind} {name!r}.{hint} Allowed: {allowed}.")
