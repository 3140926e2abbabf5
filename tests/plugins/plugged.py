"""Models with plug-ins, as the tests of this folder need them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eunoe.models.anatomy import FAMILIES, anatomy
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.inject import PLACEMENTS, Site, adapters, inject
from eunoe.plugins.task_mask import Active
from tests.models.families import tokens

families = pytest.mark.parametrize("family", sorted(FAMILIES))
placements = pytest.mark.parametrize("placement", sorted(PLACEMENTS))


def plug(model: nn.Module, placement: str = "sequential", skip: bool | None = None, **how: str) -> Active:
    active = Active(domains=("a", "b"))

    def make(site: Site) -> Adapter:
        size = 12 if site.part == "attention" else 14
        return Adapter(site.width, size, active, out=site.out, skip=site.skip, **how)  # type: ignore[arg-type]

    inject(model, anatomy(model), make, placement=placement, skip=skip)
    return active


def finish(model: nn.Module, *domains: int) -> None:
    draw = torch.Generator().manual_seed(0)
    for adapter in adapters(model).values():
        for domain in domains:
            for mask in adapter.masks().values():
                mask.begin(draw)
                mask.keep(domain)
    adapter.active.finished += domains


def run_first(active: Active, s: float = 400.0) -> None:
    active.running, active.domain, active.s = 0, 0, s


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits
