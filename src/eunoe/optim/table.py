"""The one table of optimizers: a name, its settings, and how it is built for a model.

Everything else (recipes, command line, transfers, docs) reads ``OPTIMIZERS``; a new optimizer is a new row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from math import ceil, inf, log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.errors import EunoeError
from eunoe.optim.groups import anchored_groups, param_groups
from eunoe.optim.recadam import RecAdam
from eunoe.optim.refuse import refuse_betas, refuse_numbers


@dataclass(kw_only=True)
class AdamWSettings:
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101), torch's own."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Pull toward zero, times the learning rate; biases and norm weights have none."""


@dataclass(kw_only=True)
class BertAdamSettings:
    """The Adam of BERT's release, which CPT trains with: AdamW without bias correction."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Pull toward zero, times the learning rate; biases and norm weights have none."""


@dataclass(kw_only=True)
class RecAdamSettings:
    """RecAdam (https://arxiv.org/abs/2004.12651), defaults as in its GLUE script; anchored to the model as it starts."""

    gamma: float = 5000.0
    """Strength of the pull toward the pretrained weights; lr * gamma above 2 diverges."""
    anneal: Literal["sigmoid", "linear", "constant"] = "sigmoid"
    """How lambda, the share of the target task, grows; constant is Adam without any pull."""
    k: float | Literal["inf"] = 0.5
    """How fast lambda grows, per step; the paper tried 0.05 to 1. ``inf`` is a step from 0 to 1 at ``t0``. Sigmoid only."""
    rise: float | None = None
    """Instead of ``k``: the share of the run in which lambda climbs from 0.05 to 0.95."""
    t0: float = 250
    """The step at which lambda is 1/2 (linear: 1); below 1 a share of the run. The paper tried 100 to 1000 steps."""
    weight: float = 1.0
    """Multiplies lambda and stands for the 1 in 1 - lambda; 0 is Adam without any pull."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Pull toward zero, times the learning rate; biases and norm weights have none."""
    correct_bias: bool = True
    """Whether the moments are corrected for their start at zero."""
    form: Literal["released", "paper"] = "released"
    """The authors' code, which the published numbers come from, or Algorithm 1 as printed."""

    def __post_init__(self) -> None:
        if (
            isinstance(self.k, float) and self.k == inf
        ):  # one spelling, which a recipe may hold: YAML's own .inf is refused there as a slip
            self.k = "inf"

    def in_steps(self, steps: int | None) -> tuple[float, float]:
        """``k`` per step and ``t0`` in steps, for a run of ``steps``; raises ``EunoeError`` where shares do not add up, and for
        what ``anneal`` would not read.

        The logistic curve goes from 0.05 to 0.95 in 2 ln 19 / k steps, so ``rise`` is k = 2 ln 19 / (rise * steps).

        >>> RecAdamSettings(k="inf", t0=0.25).in_steps(1000)
        (inf, 250)
        >>> round(RecAdamSettings(rise=0.1).in_steps(1000)[0], 6)
        0.058889
        """
        given = {"k": inf if self.k == "inf" else self.k, "t0": self.t0}
        refuse_numbers({**given, **({} if self.rise is None else {"rise": self.rise})}, "recadam")
        unread = {"sigmoid": (), "linear": ("k", "rise"), "constant": ("k", "rise", "t0")}.get(self.anneal, ())
        for name in unread:
            if getattr(self, name) != getattr(RecAdamSettings, name):
                raise EunoeError(
                    f"{name} is {getattr(self, name)}, but anneal is {self.anneal}, which does not read it: leave {name} out."
                )
        if self.rise is None:
            return float(self.k), steps_of(self.t0, steps)
        if not 0 < self.rise <= 1:
            raise EunoeError(
                f"rise is {self.rise:g}; it is a share of the run, above 0 and up to 1. For a slower lambda give k."
            )
        if self.k != RecAdamSettings.k:
            raise EunoeError(f"k {self.k} and rise {self.rise:g} say the same thing twice: give one of the two.")
        if steps is None:
            raise EunoeError(
                f"rise is {self.rise:g}, a share of the run, but the length of the run is not known here. Give k."
            )
        # lambda rises from 5 % to 95 % over that share: sigmoid(x) is 0.95 at x = log 19
        return 2 * log(19) / (self.rise * steps), steps_of(self.t0, steps)


@dataclass(frozen=True)
class Entry:
    """A row: the settings class, and how the optimizer is made."""

    settings: type[Any]
    make: Callable[[nn.Module, Any, float, int | None, Mapping[str, Tensor] | None, Collection[str]], Optimizer]

    def build(
        self,
        model: nn.Module,
        settings: Any,
        lr: float,
        steps: int | None = None,
        anchor: Mapping[str, Tensor] | None = None,
        free: Collection[str] = (),
    ) -> Optimizer:
        """The optimizer for the trainable weights of ``model``.

        ``steps``: the length of the run. ``anchor``: pretrained weights by name, for optimizers that recall them; None
        is the model as it is now. ``free``: names without one (see ``anchored_groups``). AdamW and its kin recall nothing.
        """
        return self.make(model, settings, lr, steps, anchor, free)


def _adamw(
    model: nn.Module, settings: AdamWSettings, lr: float, steps: int | None, anchor: Mapping[str, Tensor] | None,
    free: Collection[str],
) -> Optimizer:  # fmt: skip
    named = {"lr": lr, "eps": settings.eps, "weight_decay": settings.weight_decay}
    refuse_numbers(named, "adamw")  # torch's AdamW takes infinities
    refuse_betas(settings.betas, "adamw")
    groups = param_groups(model, settings.weight_decay)
    # The kernel exists for these two; elsewhere torch chooses.
    fused = True if all(p.device.type in ("cpu", "cuda") for p in model.parameters() if p.requires_grad) else None
    return torch.optim.AdamW(groups, lr=lr, betas=settings.betas, eps=settings.eps, fused=fused)


def _bert_adam(
    model: nn.Module, settings: BertAdamSettings, lr: float, steps: int | None, anchor: Mapping[str, Tensor] | None,
    free: Collection[str],
) -> Optimizer:  # fmt: skip
    groups = param_groups(model, settings.weight_decay)
    return RecAdam(groups, lr, betas=settings.betas, eps=settings.eps, correct_bias=False, anchor=None)


def _recadam(
    model: nn.Module, settings: RecAdamSettings, lr: float, steps: int | None, anchor: Mapping[str, Tensor] | None,
    free: Collection[str],
) -> Optimizer:  # fmt: skip
    named = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "rise"}
    named["k"], named["t0"] = settings.in_steps(steps)
    groups = anchored_groups(model, anchor=anchor, weight_decay=named.pop("weight_decay"), free=free)
    return RecAdam(groups, lr, **named)


def steps_of(t0: float, steps: int | None) -> float:
    """``t0`` in steps: a number above 0 and below 1 is a share of the run, rounded up to a step.

    >>> steps_of(250, None), steps_of(0.25, 1000)
    (250, 250)
    """
    if not 0 < t0 < 1:
        return t0
    if steps is None:
        raise EunoeError(
            f"t0 is {t0:g}, a share of the run, but the length of the run is not known here. Give t0 in steps."
        )
    return ceil(t0 * steps)


OPTIMIZERS: dict[str, Entry] = {
    "adamw": Entry(AdamWSettings, _adamw),
    "bert_adam": Entry(BertAdamSettings, _bert_adam),
    "recadam": Entry(RecAdamSettings, _recadam),
}
