"""Name -> entry, or an error with the close matches.

Every table of the project (methods, transfers, optimizers, families, recipes, columns) is read through
``lookup``, so a mistyped name always ends in the same helpful sentence.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from eunoe.errors import EunoeError
from eunoe.foreign import visible

Entry = TypeVar("Entry")


def lookup(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry called ``name``; raises ``EunoeError`` naming close matches and what there is.

    >>> lookup({"ncl": 1, "cpt": 2}, "cpt", "method")
    2
    """
    if name in table:
        return table[name]
    raise unknown(name, table, kind)


SHOWN = 20
"""Names of what is allowed that a message lists; a file can have 200,000 columns."""
_COMPARED = 2_000


def unknown(name: str, known: Iterable[str], kind: str) -> EunoeError:
    """The error for a name that is not among ``known``: what was given, the close matches, what is allowed (20 of them at most)."""
    names = sorted(str(entry) for entry in known)
    folded = {entry.lower(): entry for entry in names}
    if len(folded) > _COMPARED:  # letter by letter takes minutes for all; those that begin alike stand around its place
        order = sorted(folded)
        place = bisect(order, str(name).lower())
        folded = {low: folded[low] for low in order[max(0, place - _COMPARED // 2) : place + _COMPARED // 2]}
    close = [visible(folded[match], 80) for match in get_close_matches(str(name).lower(), folded, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    allowed = ", ".join(visible(entry, 80) for entry in names[:SHOWN]) if names else "none"
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return EunoeError(f"unknown {kind} {visible(repr(name), 80)}.{hint} Allowed: {allowed}{more}.")
