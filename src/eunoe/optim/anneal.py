"""Objective shifting: how much of the loss is the target task's after t steps.

Source: RecAdam ("Recall and Learn", EMNLP 2020, https://arxiv.org/abs/2004.12651) and its released
``anneal_function``. The paper has the sigmoid alone; the release adds ``linear`` and ``constant``. Different here:
``exp`` never overflows (the release fails on k = 1, t0 = 1000), k = infinity is a step, and an unknown name is an
error where it is given.

Pure functions of plain numbers, so that a curve can be plotted without an optimizer. They import nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp


def sigmoid(t: float, k: float, t0: float) -> float:
    """1 / (1 + exp(-k (t - t0))). k = 0 gives 1/2 at every step; k = infinity gives 0 before ``t0`` and 1 after it.

    At ``t0`` itself every k gives 1/2, infinity included, because that is the limit.

    >>> sigmoid(1, 1.0, 1000), sigmoid(250, 0.5, 250), sigmoid(2, float("inf"), 1)
    (0.0, 0.5, 1.0)
    """
    if k == 0 or t == t0:  # infinity times zero is no number
        return 0.5
    x = k * (t - t0)
    if x >= 0:
        return 1 / (1 + exp(-x))
    e = exp(x)  # below 1, so it may vanish but cannot overflow
    return e / (1 + e)


def linear(t: float, k: float, t0: float) -> float:
    """min(1, t / t0); ``k`` is not read. ``t0`` = 0 means 1 from the start."""
    return 1.0 if t >= t0 else max(0.0, t / t0)


def constant(t: float, k: float, t0: float) -> float:
    """1: nothing is ever pulled, so the optimizer is plain Adam. ``k`` and ``t0`` are not read."""
    return 1.0


ANNEALINGS: dict[str, Callable[[float, float, float], float]] = {
    "sigmoid": sigmoid,
    "linear": linear,
    "constant": constant,
}


def anneal(name: str, t: float, k: float, t0: float) -> float:
    """lambda in [0, 1]: the share of the target task in the objective at step ``t`` (the first step is 1).

    ``k`` is the rate per step, ``t0`` the centre (sigmoid) or the end (linear) in steps.
    Raises ``ValueError`` for a name not in ``ANNEALINGS``.

    >>> anneal("linear", 3, 0.5, 12)
    0.25
    """
    if name not in ANNEALINGS:
        raise ValueError(f"unknown annealing {name!r}; allowed: {', '.join(ANNEALINGS)}")
    return ANNEALINGS[name](t, k, t0)
