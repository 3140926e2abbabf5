"""WiSE: between the weights of before and after a domain lie some that are good at both.

Paper: Wortsman et al. 2022, *Robust fine-tuning of zero-shot models* (WiSE-FT, https://arxiv.org/abs/2109.01903). When a domain has been
learnt with all weights and nothing else,

    theta <- (1 - alpha) theta_old + alpha theta_new                      alpha in [0, 1], for all weights alike

theta_old: the weights at the start of the stage, or (``anchor: base``) the pretrained ones, which is the paper's zero-shot model.
alpha = 0.5 is the paper's advice where nothing is known. ``alpha: null`` chooses it: of 0, 0.1, ..., 1 the one with the lowest
mean, over the new and all earlier domains, of the LM loss on held-out text (of equal ones the largest). In a first stage there is no
earlier domain, so it is then the best for the new one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.methods.base import Method, Stage, not_its_state, nothing_to_keep, trainable
from eunoe.methods.l2 import Anchor
from eunoe.methods.store import Keep, kept

GRID = tuple(i / 10 for i in range(11))
"""What ``alpha: null`` chooses from."""


@dataclass(kw_only=True)
class WiseSettings:
    """How far to go from the old weights to the new ones."""

    alpha: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    """Share of the new weights; null: chosen after each domain, on held-out text of it and of the earlier domains."""
    anchor: Literal["stage", "base"] = "stage"
    """The old weights: those at the start of the ``stage``, or the pretrained ones: ``base``."""
    keep: Keep = "device"
    """Where the old weights lie: on the model's ``device``, in main memory (``cpu``) or in a mapped file on ``disk``."""


@torch.no_grad()
def interpolate(into: Mapping[str, Tensor], old: Mapping[str, Tensor], new: Mapping[str, Tensor], alpha: float) -> None:
    """Write ``(1 - alpha) old + alpha new`` into the tensors of the same names; at 0 and 1 to the bit."""
    for name, tensor in into.items():
        start, end = old[name].to(tensor), new[name].to(tensor)
        tensor.copy_(end if alpha == 1 else torch.lerp(start, end, alpha))


class Wise(Method):
    """Learn each domain with all weights, then go back a part of the way."""

    returns = True

    def __init__(self, model: nn.Module, settings: WiseSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.old = Anchor(model, settings.anchor, settings.keep)
        self.alphas: dict[str, float] = {}
        """Stage -> the alpha that it ended with."""

    @classmethod
    def reads_again(cls, settings: WiseSettings) -> frozenset[str]:
        return frozenset({"earlier"} if settings.alpha is None else ())

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    def begin(self, stage: Stage) -> None:
        self.old.begin(stage)

    def end(self, stage: Stage) -> None:
        named: dict[str, Tensor] = {name: p.detach() for name, p in trainable(self.model)}
        alpha = self.settings.alpha
        new = kept(named, self.settings.keep, stage.folder)
        if alpha is None:
            losses = {at: self._loss(stage, named, new, at) for at in GRID}
            alpha = max(at for at in GRID if losses[at] == min(losses.values()))
        interpolate(named, self.old.tensors, new, alpha)
        self.alphas[stage.name] = alpha

    @torch.no_grad()
    def _loss(self, stage: Stage, named: Mapping[str, Tensor], new: Mapping[str, Tensor], alpha: float) -> float:
        """Mean over the domains of the LM loss on their held-out text, at ``alpha``."""
        if not stage.valid:
            raise EunoeError("alpha: null chooses on held-out text, and this stage has none. Give alpha a number.")
        interpolate(named, self.old.tensors, new, alpha)
        self.model.eval()
        means = []
        for batches in stage.valid.values():
            sums = [stage.loss(batch) for batch in batches]
            means.append(sum(float(s.total) for s in sums) / sum(s.items for s in sums))
        return sum(means) / len(means)

    def sizes(self) -> dict[str, int]:
        """The old weights; beside them the new ones as well while a stage ends."""
        return self.old.sizes()

    def state_dict(self) -> dict[str, Any]:
        return {"alphas": dict(self.alphas)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"alphas"} or not isinstance(state["alphas"], Mapping):
            raise not_its_state("wise", state, "is alphas")
        self.alphas = dict(state["alphas"])

    def notes(self) -> dict[str, Any]:
        said = ", ".join(f"{alpha:g} after {stage}" for stage, alpha in self.alphas.items())
        return {"lines": [f"Share of the new weights (alpha): {said}."]} if said else {}


__all__ = ["GRID", "Wise", "WiseSettings", "interpolate"]
