"""Adapter: no post-training; fresh adapters and a classifier are fine-tuned on each end task, on the frozen pretrained model.

The line that adapters learnt from a domain's text (``adapter-one``) must beat. It learns no stage. A baseline of Ke et al. 2022 (CPT,
https://arxiv.org/abs/2210.05549); the adapters are those of ``plugins/bottleneck.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eunoe.methods.own import Own, Plug
from eunoe.plugins.bottleneck import AdapterSettings, attach


class AdapterOnly(Own):
    """Fresh adapters for every end task; learns no stage."""

    needs_domain = False
    returns = True
    settings: AdapterSettings

    @classmethod
    def stages(cls, domains: Sequence[str], settings: Any) -> list[tuple[str, ...]]:
        return []

    def attach(self) -> Sequence[Plug]:
        return attach(self.model, self.settings)


__all__ = ["AdapterOnly"]
