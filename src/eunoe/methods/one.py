"""ONE: of each domain a whole model of its own, learnt from the pretrained one; the upper bound of "no forgetting".

Minimise the LM loss of domain t over all weights, theta_t = argmin L_lm(theta; D_t) started at the pretrained theta_0, T models for T
domains. Nothing is shared, so nothing is forgotten and nothing is transferred: a continual method is worth its trouble where it comes near
it, or above it by transfer, with less to keep. A baseline of Ke et al. 2022 (CPT, https://arxiv.org/abs/2210.05549), who fine-tune every
end task from the model of its own domain, as is done here. The domain must be known when text is read; text of none is read by theta_0.
"""

from __future__ import annotations

from dataclasses import dataclass

from eunoe.methods.own import Own


@dataclass(kw_only=True)
class OneSettings:
    """Nothing to set."""


class One(Own):
    """A model per domain, each from the pretrained one."""


__all__ = ["One", "OneSettings"]
