"""NCL, naive continual learning: each domain with all weights and nothing else, the baseline that forgets.

Paper: Ke et al. 2022 (CPT, https://arxiv.org/abs/2210.05549), whose baseline it is. It is plain continued pretraining on
one domain after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from eunoe.methods.base import Method


@dataclass(kw_only=True)
class NclSettings:
    """Nothing to set."""


class Ncl(Method):
    """Minimise the LM loss of the running domain over all weights, starting from the last domain's."""

    naive = True
    trains = "all"
    returns = True

    def clashes(self, other: Method) -> str | None:
        all_train = all(p.requires_grad for p in self.model.parameters())
        fits = all_train and other.forgets and not other.needs_domain
        return None if fits else "ncl trains weights that the other keeps still"

    def __init__(self, model: nn.Module, settings: NclSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        for p in model.parameters():
            p.requires_grad_(True)


__all__ = ["Ncl", "NclSettings"]
