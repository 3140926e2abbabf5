"""How much room the plug-ins have left: which units each learnt domain uses, shares with earlier ones, and leaves free.

CPT (Ke et al. 2022, https://arxiv.org/abs/2210.05549) keeps a domain's units for good. Its release has no regulariser and
starts the masks so that about half of the free units are taken by each domain: room halves with every domain, silently.
Here it is counted, and said before it runs out.

``capacity`` reads the masks of a model and needs torch; ``capacity_report`` is arithmetic on its plain rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from eunoe.plugins.inject import adapters

SCARCE = 0.1
"""Below this share of free units in any kind of mask there is a warning."""
_COUNTS = ("size", "used", "shared", "free")
_BY_DOMAIN = ("domains", "new", "shared_with")


def capacity(model: nn.Module) -> list[dict[str, Any]]:
    """One row per layer and mask of a model with plug-ins; plain values only, so it can be written as JSON.

    - ``layer`` (its dotted name), ``part`` (attention | feed_forward), ``units`` (inner: between the two layers of a
      plug-in, grown ones included | outer: after the second)
    - ``size`` units, of which ``used`` by at least one learnt domain, ``shared`` by two or more, ``free``
    - ``domains``: learnt domain -> how many it uses; ``new``: how many of these no domain before it had used
    - ``shared_with``: earlier domain -> how many the last learnt one uses together with it (what earlier ones share
      never changes: it stands in the rows written when they ended)

    Domains come in the order they were learnt. Example: ``capacity_report(capacity(model))["warning"]``.
    """
    rows: list[dict[str, Any]] = []
    for name, adapter in adapters(model).items():
        layer, _, plugin = name.rpartition(".")
        active = adapter.active
        learnt = active.finished
        for units, parts in (("inner", [mask for _, mask in adapter.inner()]), ("outer", [adapter.mask2])):
            size = sum(mask.n for mask in parts)
            masks = torch.zeros(len(learnt), size, dtype=torch.bool)
            for i, domain in enumerate(learnt):
                masks[i] = torch.cat([mask.hard_mask(domain) for mask in parts]).cpu()
            times = masks.sum(0)
            fresh = masks & (masks.cumsum(0) == 1)
            names = [active.domains[i] for i in learnt]
            with_last = (masks[:-1] & masks[-1:]).sum(1).tolist() if learnt else []
            rows.append(
                {
                    "layer": layer,
                    "part": plugin.removesuffix("_plugin"),
                    "units": units,
                    "size": size,
                    "used": int((times > 0).sum()),
                    "shared": int((times > 1).sum()),
                    "free": int((times == 0).sum()),
                    "domains": dict(zip(names, masks.sum(1).tolist(), strict=True)),
                    "new": dict(zip(names, fresh.sum(1).tolist(), strict=True)),
                    "shared_with": dict(zip(names[:-1], with_last, strict=True)),
                }
            )
    return rows


def capacity_report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of ``capacity`` summed up, as a plain dict:

    - ``domains``: the learnt domains in order
    - ``kinds``: one row per kind of mask, ``part`` and ``units``, summed over the layers: ``size``, ``used``, ``shared``,
      ``free``, ``domains``, ``new`` and ``shared_with`` as in ``capacity``
    - ``masks``: the rows themselves
    - ``warning``: a sentence when room runs out, else None: where less than ``SCARCE`` of a kind's units are free, or less
      than half of what the last domain newly took

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
                **{key: {} for key in _BY_DOMAIN},
            },
        )
        for key in _COUNTS:
            kind[key] += row[key]
        for key in _BY_DOMAIN:
            for domain, units in row[key].items():
                kind[key][domain] = kind[key].get(domain, 0) + units
    domains = list(rows[0]["domains"]) if rows else []
    summed = list(kinds.values())
    return {"domains": domains, "kinds": summed, "masks": list(rows), "warning": _warning(summed, domains)}


def _warning(kinds: Sequence[dict[str, Any]], domains: Sequence[str]) -> str | None:
    if not domains:
        return None
    last = domains[-1]
    low = [k for k in kinds if k["free"] < SCARCE * k["size"] or 2 * k["free"] < k["new"][last]]
    if not low:
        return None
    listed = "; ".join(
        f"{k['part'].replace('_', '-')} {k['units']}: {k['free']} of {k['size']} ({100 * k['free'] / k['size']:.0f} %), "
        f"{last} newly took {k['new'][last]}"
        for k in low
    )
    return (
        f"room runs out after {len(domains)} domains ({last}). Free units: {listed}. The next domain can still read what was "
        "learnt but has little to write to. Give the plug-ins more inner units (grow), or learn the sequence again with "
        "sparsity (HAT: 0.75) or larger attention_size and ffn_size."
    )


__all__ = ["SCARCE", "capacity", "capacity_report"]
