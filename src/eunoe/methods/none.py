"""No post-training: the pretrained model as it is, the line that every method must beat to be worth a step.

It learns no stage. Its LM losses are those of the pretrained model, and end tasks are fine-tuned from it with all weights: the row
"RoBERTa" of Ke et al. 2022 (CPT, https://arxiv.org/abs/2210.05549).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eunoe.methods.base import Method


@dataclass(kw_only=True)
class NoneSettings:
    """Nothing to set."""


class NoMethod(Method):
    """The pretrained model; learns no stage."""

    forgets = False
    returns = True

    @classmethod
    def stages(cls, domains: Sequence[str], settings: Any) -> list[tuple[str, ...]]:
        return []

    def clashes(self, other: Method) -> str | None:
        return "it learns nothing"


__all__ = ["NoMethod", "NoneSettings"]
