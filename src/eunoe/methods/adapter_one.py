"""Adapter-ONE: of each domain adapters of its own, on one frozen model.

Papers: the adapters are those of ``plugins/bottleneck.py`` (Houlsby et al. 2019, Pfeiffer et al. 2021); a baseline of Ke et al. 2022
(CPT, https://arxiv.org/abs/2210.05549), with the settings of the authors' later release ContinualLM: after the feed-forward sub-layer
alone, reduction 16, ReLU.

Minimise L_lm(theta_0, a_t; D_t) over the adapters a_t alone, a_t starting fresh; the pretrained weights theta_0 are frozen. In an end task
the adapters of its domain and the classifier train (ContinualLM); ``backbone: trained`` trains theta_0 too. Text is read with the
adapters of its domain; text of none is read by the pretrained model.
"""

from __future__ import annotations

from collections.abc import Sequence

from eunoe.methods.own import Own, Plug
from eunoe.plugins.bottleneck import AdapterSettings, attach


class AdapterOne(Own):
    """Adapters per domain on a frozen model."""

    settings: AdapterSettings

    def attach(self) -> Sequence[Plug]:
        return attach(self.model, self.settings)


__all__ = ["AdapterOne"]
