"""The counts of ``plugins/capacity.py`` summed up, and the warning before capacity runs out; needs no torch, as reports do not.

One rule and one wording: a run says it in the terminal and its report on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SCARCE = 0.1
"""Below this share of free inner units of attention or feed-forward plug-ins there is a warning."""
ADVICE = (
    "The next domain can still read what was learnt but has little to write to. Give the plug-ins more inner units (grow), "
    "or learn the sequence again with sparsity (HAT: 0.75) or larger attention_size and ffn_size."
)
"""How a warning ends."""
_COUNTS = ("size", "used", "shared", "free")
BY_DOMAIN = ("domains", "new", "shared_with")


def capacity_report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of ``capacity`` summed up, as a plain dict:

    - ``domains``: the learnt domains in order
    - ``kinds``: one row per kind of mask, ``part`` and ``units``, summed over the layers: ``size``, ``used``, ``shared``,
      ``free``, ``domains``, ``new`` and ``shared_with`` as in ``capacity``
    - ``masks``: the rows themselves
    - ``warning``: a sentence when capacity runs out, else None: where less than ``SCARCE`` of a kind's inner units are free, or
      less than half of what the last domain newly took. Outer units are counted too, but do not limit: a weight is closed
      where both of its units are taken, so free inner units may write to outer units that are taken

    >>> row = {"layer": "0", "part": "attention", "units": "inner", "size": 20, "used": 19, "shared": 0, "free": 1,
    ...        "domains": {"a": 19}, "new": {"a": 19}, "shared_with": {}}
    >>> capacity_report([row])["kinds"][0]["free"]
    1
    """
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        kind = kinds.setdefault(
            (row["part"], row["units"]),
            {
                "part": row["part"],
                "units": row["units"],
                **dict.fromkeys(_COUNTS, 0),
                **{key: {} for key in BY_DOMAIN},
            },
        )
        for key in _COUNTS:
            kind[key] += row[key]
        for key in BY_DOMAIN:
            for domain, units in row[key].items():
                kind[key][domain] = kind[key].get(domain, 0) + units
    domains = list(rows[0]["domains"]) if rows else []
    summed = list(kinds.values())
    return {"domains": domains, "kinds": summed, "masks": list(rows), "warning": _warning(summed, domains)}


def _warning(kinds: Sequence[dict[str, Any]], domains: Sequence[str]) -> str | None:
    if not domains:
        return None
    last = domains[-1]
    inner = [k for k in kinds if k["units"] == "inner"]
    low = [k for k in inner if k["free"] < SCARCE * k["size"] or 2 * k["free"] < k["new"].get(last, 0)]
    if not low:
        return None
    listed = "; ".join(
        f"{k['part'].replace('_', '-')} {k['units']}: {k['free']} of {k['size']} ({100 * k['free'] / k['size']:.0f} %), "
        f"{last} newly took {k['new'].get(last, 0)}"
        for k in low
    )
    after = f"{len(domains)} domain{'s' * (len(domains) > 1)} ({last})"
    return f"capacity runs out after {after}. Free units: {listed}. {ADVICE}"


__all__ = ["ADVICE", "BY_DOMAIN", "SCARCE", "capacity_report"]
