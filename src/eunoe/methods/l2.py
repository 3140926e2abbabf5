"""L2: hold the weights to where they were, all of them alike.

Paper: Li et al. 2018, *Explicit Inductive Bias for Transfer Learning* (L2-SP, https://arxiv.org/abs/1802.01483). While a domain is learnt,

    L = L_lm + (lambda / 2) sum_i (theta_i - theta*_i)^2

over all trainable weights, theta* those of the start of the stage (``anchor: stage``) or the pretrained ones (``anchor: base``).
It is EWC with every importance 1, and weight decay with another centre.

Different here: the pull lambda (theta - theta*) is added to the finished gradient, one weight after the other, before clipping. That
is the same gradient as through the loss, but no graph holds copies of all weights. The paper's second coefficient, for the new
weights of an end task, has no place in post-training. lambda = 0.1 is the paper's in most of its experiments, with SGD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.methods.base import Method, Stage, bytes_of, nothing_to_keep, trainable
from eunoe.methods.store import Keep, kept, named_place


@dataclass(kw_only=True)
class L2Settings:
    """How strong the pull is, and where to."""

    strength: Annotated[float, Field(ge=0)] = 0.1
    """lambda, the weight of half the squared distance."""
    anchor: Literal["stage", "base"] = "stage"
    """Pull to the weights at the start of the ``stage``, or to the pretrained ones: ``base``."""
    keep: Keep = "device"
    """Where the anchor lies: on the model's ``device``, in main memory (``cpu``) or in a mapped file on ``disk``."""


class L2(Method):
    """Learn each domain with all weights, pulled to where they were."""

    pulls = True
    returns = True

    def __init__(self, model: nn.Module, settings: L2Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.anchor = Anchor(model, settings.anchor, settings.keep)

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    def begin(self, stage: Stage) -> None:
        self.anchor.begin(stage)

    def on_gradients(self) -> None:
        pull(dict(trainable(self.model)), self.anchor.tensors, self.settings.strength)

    def sizes(self) -> dict[str, int]:
        return self.anchor.sizes()


class Anchor:
    """The trainable weights of ``model``, as they were: when the running stage began, or (``at`` base) now.

    ``tensors``: by name, each of its weight's shape, where ``keep`` says.
    """

    def __init__(self, model: nn.Module, at: Literal["stage", "base"], keep: Keep) -> None:
        self.model, self.at, self.keep = model, at, keep
        self.tensors = kept(dict(trainable(model)), keep) if at == "base" else {}

    def begin(self, stage: Stage) -> None:
        """A stage begins; the model is on its device."""
        named = dict(trainable(self.model))
        lacking = sorted(set(named) - set(self.tensors)) if self.at == "base" else []
        if lacking:
            raise EunoeError(f"anchor: base holds the pretrained weights, and {lacking[0]} is not one of them: another method added it. "
                             "Use anchor: stage, or name this method after the other.")  # fmt: skip
        device = next(iter(named.values())).device
        self.tensors = kept(self.tensors if self.at == "base" else named, self.keep, stage.folder, device)

    def sizes(self) -> dict[str, int]:
        """As ``Method.sizes``: what it holds while a stage is learnt."""
        return {named_place("anchor", self.keep): bytes_of(dict(trainable(self.model)))}


@torch.no_grad()
def pull(
    named: Mapping[str, nn.Parameter],
    anchor: Mapping[str, Tensor],
    strength: float,
    importance: Mapping[str, Tensor] | None = None,
) -> None:
    """Add ``strength * importance * (weight - anchor)`` to the gradients of those of ``named`` that have an anchor.

    It is the gradient of ``strength / 2 * sum(importance * (weight - anchor)^2)``; ``importance`` None is 1 everywhere. Anchors and
    importances have their weight's shape; they are brought to its device one at a time.
    """
    for name, p in named.items():
        if name not in anchor or (importance is not None and name not in importance):
            continue
        change = (p - anchor[name].to(p)).mul_(strength)
        if importance is not None:
            change.mul_(importance[name].to(p))
        p.grad = change if p.grad is None else p.grad.add_(change)


__all__ = ["L2", "Anchor", "L2Settings", "pull"]
