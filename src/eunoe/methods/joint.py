"""Joint training: the text of all domains at once, in one stage; the upper bound that methods without old text are held against.

Minimise L_lm over the union of the domains' text, theta = argmin L_lm(theta; D_1 + ... + D_T) started at the pretrained weights, all
weights training. Blocks are drawn without replacement from all domains together, so a domain's share of a batch is its share of the
text. There is one stage, so there is nothing before it to forget, and no rate of forgetting. With ``steps`` in the recipe's training the
stage has that many for each of its domains: as many in all as a method that learns one domain after another.

A common practice; the upper bound of multi-task learning in the continual-learning literature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from eunoe.methods.base import Method


@dataclass(kw_only=True)
class JointSettings:
    """Nothing to set."""


class Joint(Method):
    """All weights learn all domains' text in one stage."""

    trains = "all"

    def __init__(self, model: nn.Module, settings: JointSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        model.requires_grad_(True)

    @classmethod
    def stages(cls, domains: Sequence[str], settings: Any) -> list[tuple[str, ...]]:
        return [tuple(domains)]

    def clashes(self, other: Method) -> str | None:
        all_train = all(p.requires_grad for p in self.model.parameters())
        return None if all_train and other.forgets else "joint trains weights that the other keeps still"


__all__ = ["Joint", "JointSettings"]
