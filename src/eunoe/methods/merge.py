"""Merging: a full model for each domain, learnt from the pretrained one and all put together in one.

With theta_0 the pretrained weights and tau_d = theta_d - theta_0 the change that domain d makes alone, after T domains the model is

    average            theta_0 + s (1 / T) sum_d tau_d                    s = 1     Wortsman et al. 2022, https://arxiv.org/abs/2203.05482
    task_arithmetic    theta_0 + s sum_d tau_d                            s = 0.4   Ilharco et al. 2022, https://arxiv.org/abs/2212.04089
    ties               theta_0 + s m(tau_1, ..., tau_T)                   s = 1     Yadav et al. 2023, https://arxiv.org/abs/2306.01708

m of TIES, weight by weight: *trim* (of each tau_d only the share ``density`` of largest size stays, over all weights together, the rest is
0); *elect* the sign of the sum of what is left; *merge*: the mean of those that are not 0 and have that sign.

Each stage starts from the pretrained model, so stages may run side by side, and the model after the first one is that domain's own
(times s). No domain needs to be known at use, and no old text is kept.

Different here: where the trimmed changes cancel exactly no sign is elected, and the weight stays as pretrained (the release gives it
the sign of the majority of weights). s of task arithmetic is chosen on held-out data in the paper; 0.4 is TIES' value where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from eunoe.methods.base import Method, bytes_of, nothing_to_keep, restore
from eunoe.methods.store import Keep, kept, named_place

SCALES = {"average": 1.0, "task_arithmetic": 0.4, "ties": 1.0}


@dataclass(kw_only=True)
class MergeSettings:
    """How the domains' models become one."""

    how: Literal["average", "task_arithmetic", "ties"] = "average"
    """Their ``average``; ``task_arithmetic``, the sum of their changes; or ``ties``, large changes that agree in sign."""
    scale: Annotated[float, Field(ge=0)] | None = None
    """s, what the merged change is multiplied by; null: 1 for ``average`` and ``ties``, 0.4 for ``task_arithmetic``."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of each domain's change, the share that ``ties`` keeps."""
    keep: Keep = "device"
    """Where the pretrained weights and the changes lie: on the model's ``device``, in main memory (``cpu``) or on ``disk``."""


def trim(change: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """``change`` with all but the share ``density`` of its numbers of largest size, over all tensors together, set to 0."""
    sizes = torch.cat([tensor.abs().flatten() for tensor in change.values()])
    left = max(1, round(density * len(sizes)))
    edge = sizes.kthvalue(len(sizes) - left + 1).values
    return {
        name: torch.where(tensor.abs() >= edge, tensor, torch.zeros_like(tensor)) for name, tensor in change.items()
    }


def agreed(changes: Sequence[Tensor]) -> Tensor:
    """TIES' elect and merge for one weight: the mean of those that are not 0 and have the sign of the sum; 0 where it has none."""
    stacked = torch.stack(list(changes))
    agree = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


class Merge(Method):
    """Learn each domain from the pretrained model with all weights; the model in use is all of them merged."""

    starts_from = "base"

    def __init__(self, model: nn.Module, settings: MergeSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.base = kept(self.weights(), settings.keep)
        self.changes: list[dict[str, Tensor]] = []
        """Of ``ties`` each domain's trimmed change, of the others their sum so far."""
        self.merged = 0

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    def restore(self, stage: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> None:
        """Add ``stage``, whose own weights these are, to what is merged."""
        own, named = self.settings, self.weights()
        restore(named, weights, where)
        self.load_state_dict(state)
        change = {n: t - self.base[n].to(t) for n, t in named.items()}
        if own.how == "ties":
            change = trim(change, own.density)
        elif self.changes:
            change = {n: t + self.changes[0][n].to(t) for n, t in change.items()}
            self.changes = []
        self.changes.append(kept(change, own.keep))
        self.merged += 1
        scale = (SCALES[own.how] if own.scale is None else own.scale) / (self.merged if own.how == "average" else 1)
        for name, tensor in named.items():
            each = [c[name].to(tensor) for c in self.changes]
            total = agreed(each) if own.how == "ties" else each[0]
            tensor.copy_(self.base[name].to(tensor) + scale * total)

    def sizes(self) -> dict[str, int]:
        """The pretrained weights; what domains changed is needed in use alone, where their finals are merged."""
        return {named_place("pretrained weights", self.settings.keep): bytes_of(self.base)}


__all__ = ["Merge", "MergeSettings", "agreed", "trim"]
