"""Adapter-NCL: one set of adapters learns all domains in turn, on a frozen model; it forgets, but only as far as adapters can.

Minimise L_lm(theta_0, a; D_t) over the adapters a alone, starting from what the domain before left in them; the pretrained weights
theta_0 are frozen. Naive continual learning (``ncl``) in the few weights of ``plugins/bottleneck.py``; a baseline of Ke et al. 2022 (CPT,
https://arxiv.org/abs/2210.05549), settings as in ContinualLM. No domain is needed when text is read. In an end task adapters and
classifier train; ``backbone: trained`` trains theta_0 too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from eunoe.methods.base import Method, freeze, trainable
from eunoe.plugins.bottleneck import AdapterSettings, Bottleneck, attach


class AdapterNcl(Method):
    """One set of adapters for all domains on a frozen model."""

    trains = "own"
    returns = True

    def __init__(self, model: nn.Module, settings: AdapterSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        freeze(model)
        self.freezes_backbone = settings.backbone == "frozen"
        self.adapters = attach(model, settings)
        for one in self.adapters:
            one.requires_grad_(True)

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """Adapters and head train; with ``backbone: trained`` the pretrained weights too."""
        super().for_end_task(model, domain, freeze)
        for part in model.modules():
            if isinstance(part, Bottleneck):
                part.requires_grad_(True)
        return {}

    def clashes(self, other: Method) -> str | None:
        if other.needs_domain or not other.forgets:
            return "each wants to attach weights of its own to the frozen model"
        inside = {p for one in self.adapters for p in one.parameters()}
        trains_more = any(p not in inside for _, p in trainable(self.model))
        return "the other trains weights that adapter-ncl keeps frozen" if trains_more else None


__all__ = ["AdapterNcl"]
