"""The plug-ins' capacity: which units each learnt domain uses, shares with earlier ones, and leaves free.

CPT (Ke et al. 2022, https://arxiv.org/abs/2210.05549) keeps a domain's units for good. Its release has no regulariser and
starts the masks so that about half of the free units are taken by each domain: capacity halves with every domain, silently.
Here it is counted, and said before it runs out.

``capacity`` reads the masks of a model; ``capacity_report`` sums its rows up and warns (``plugins/capacity_report.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eunoe.plugins.capacity_report import SCARCE, capacity_report
from eunoe.plugins.inject import adapters


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


__all__ = ["SCARCE", "capacity", "capacity_report"]
