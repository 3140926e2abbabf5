"""RecAdam's annealed pull in post-training, under any optimizer.

Paper: Chen et al. 2020, *Recall and Learn* (EMNLP 2020, https://arxiv.org/abs/2004.12651), written for fine-tuning: the objective shifts
from recalling the old weights theta* to learning the new text,

    lambda(t) L_lm + (1 - lambda(t)) (gamma / 2) sum_i (theta_i - theta*_i)^2,   lambda(t) = 1 / (1 + exp(-k (t - t0))),

and only the first part passes through Adam's scaling. A step t (from 1) of its release, on all trainable weights, is

    theta <- theta - lambda lr u,   theta <- theta - lr (1 - lambda) gamma (theta - theta*)      u: the optimizer's update

with ``theta`` in the second line as the first one left it. Here the optimizer of the recipe makes the first line with its learning rates
multiplied by lambda, and this method the second.

Different here: theta* are the weights at the start of the stage (or the pretrained ones, ``anchor: base``). What is given is ``pull`` =
gamma times the largest learning rate, the share of its way back that a weight goes in a step of lambda 0: gamma = 5000 at 2e-5, the
paper's, is 0.1, and learning rates of post-training vary more. ``t0`` is a share of the stage's steps, as stages are of any length. Weight
decay is part of the optimizer's update, so lambda scales it too. Once lambda is near 1 nothing is pulled any more: ``k: 0``
holds it at 1/2 throughout, which preserves more.

The optimizer ``recadam`` does the same for itself; with it this method is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from eunoe.errors import EunoeError
from eunoe.methods.base import Method, Stage, nothing_to_keep, trainable
from eunoe.methods.l2 import Anchor
from eunoe.methods.store import Keep
from eunoe.optim.anneal import anneal
from eunoe.optim.recadam import RecAdam


@dataclass(kw_only=True)
class AnnealedSettings:
    """How the objective shifts, how strong the pull is, and where to."""

    anneal: Literal["sigmoid", "linear", "constant"] = "sigmoid"
    """The course of lambda: ``sigmoid`` (paper), ``linear`` up to ``t0``, or ``constant`` 1, which pulls nothing."""
    k: Annotated[float, Field(ge=0)] = 0.5
    """How fast a sigmoid rises, per step; 0: lambda is 1/2 throughout."""
    t0: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Where a sigmoid is 1/2, or a line reaches 1: a share of the stage's steps."""
    pull: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the way back to the anchor in a step of lambda 0 at the largest learning rate."""
    anchor: Literal["stage", "base"] = "stage"
    """Pull to the weights at the start of the ``stage``, or to the pretrained ones: ``base``."""
    keep: Keep = "device"
    """Where the anchor lies: on the model's ``device``, in main memory (``cpu``) or in a mapped file on ``disk``."""


class AnnealedPull(Method):
    """Learn each domain with all weights while a pull to where they were fades."""

    pulls = True
    returns = True

    def __init__(self, model: nn.Module, settings: AnnealedSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.anchor = Anchor(model, settings.anchor, settings.keep)
        self.share = 1.0
        """lambda of the running step."""

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    def begin(self, stage: Stage) -> None:
        self.anchor.begin(stage)

    def before_step(self, step: int, steps: int) -> None:
        own = self.settings
        self.share = anneal(own.anneal, step + 1, own.k, own.t0 * steps)

    def on_optimizer(self, optimizer: Optimizer) -> None:
        """Raises ``EunoeError`` for RecAdam, which pulls by itself."""
        if isinstance(optimizer, RecAdam):
            raise EunoeError("the method recadam and the optimizer recadam would both pull the weights back. Leave the method out, or "
                             "choose another optimizer, as adamw.")  # fmt: skip
        largest = [float(group["lr"]) for group in optimizer.param_groups]
        names = {id(p): name for name, p in trainable(self.model)}
        scheduled: list[float] = []

        def before(optimizer: Optimizer, _args: object, _kwargs: object) -> None:
            scheduled[:] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.share

        @torch.no_grad()
        def after(optimizer: Optimizer, _args: object, _kwargs: object) -> None:
            for group, lr, top in zip(optimizer.param_groups, scheduled, largest, strict=True):
                group["lr"] = lr
                share = self.settings.pull * (1 - self.share) * (lr / top if top else 0.0)
                for p in group["params"] if share else ():
                    if id(p) in names:
                        p.lerp_(self.anchor.tensors[names[id(p)]].to(p), share)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def sizes(self) -> dict[str, int]:
        return self.anchor.sizes()


__all__ = ["AnnealedPull", "AnnealedSettings"]
