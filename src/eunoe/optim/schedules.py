"""Learning-rate schedules: pure functions of progress, with a warm-up before them and a thin ``LRScheduler`` around.

The shapes are the usual ones: ``linear`` falls to 0 on a straight line (BERT, RecAdam and CPT all use it), ``cosine`` on half
a wave. Two things differ.

A warm-up of W steps gives step t = 0, 1, ... the share (t + 1) / W. ``get_linear_schedule_with_warmup`` of transformers gives
t / W, so its first step has the learning rate 0: a batch is read and nothing is learnt. Here step W - 1 is the only one with
the highest learning rate (with transformers it is step W), and the fall over the steps from there to the end of the run begins at step
W; step ``steps``, which no run takes, would be the first at the end value, in both.

``slanted_triangle`` is ULMFiT's (ACL 2018, https://arxiv.org/abs/1801.06146), a function of the step and not of progress, because its
formula rounds the number of rising steps.

And the learning rate is computed from the step's number and never from the one before, so a resumed run has the same learning
rates to the bit, and the saved state is plain values, no function. Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, cos, floor, pi
from typing import Any
from weakref import WeakMethod

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def constant(progress: float) -> float:
    """1."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 down to 0 on a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 down to 0 on half a wave."""
    return 0.5 * (1.0 + cos(pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine}


def warmup_steps(warmup: float, steps: int) -> int:
    """A warm-up as a number of steps: an ``int`` is that many, a ``float`` in [0, 1] a share of ``steps``, rounded up.

    >>> warmup_steps(0.1, 25), warmup_steps(10, 25)
    (3, 10)
    """
    count = warmup if isinstance(warmup, int) else ceil(warmup * steps) if 0 <= warmup <= 1 else -1
    if count < 0 or isinstance(warmup, bool):
        raise ValueError(
            f"warmup {warmup!r}: give a number of steps (int >= 0) or a share of the run (float in [0, 1])"
        )
    return count


def multiplier(name: str, step: int, steps: int, warmup: float = 0) -> float:
    """What the highest learning rate is multiplied by in step ``step`` (from 0) of ``steps``.

    Rises over the W steps of the warm-up (see ``warmup_steps``) from 1/W to 1, then follows ``SCHEDULES[name]`` from there to
    the end of the run, and stays at its end value after it. Raises ``ValueError`` for an unknown name.

    >>> [multiplier("linear", t, 6, 3) for t in range(7)]
    [0.3333333333333333, 0.6666666666666666, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; allowed: {', '.join(SCHEDULES)}")
    rise = warmup_steps(warmup, steps)
    if step < rise:
        return (step + 1) / rise
    top = max(0, rise - 1)
    return SCHEDULES[name](min(1.0, (step - top) / max(1, steps - top)))


def slanted_triangle(step: int, steps: int, cut_frac: float = 0.1, ratio: float = 32.0) -> float:
    """What the highest learning rate is multiplied by in step ``step`` (from 0) of ``steps``: (1 + p (ratio - 1)) / ratio.

    With cut = floor(steps * cut_frac), p rises from 0 in step 0 to 1 in step cut and falls to 0 in step ``steps``, which no run
    takes; the lowest share is 1 / ratio. The formula of the paper, with two differences. It divides the fall by
    cut (1 / cut_frac - 1), which is steps - cut where steps * cut_frac is whole; elsewhere p would fall below 0 (15 steps at
    0.1: the learning rate would end at -0.52 of its highest), so here it is always steps - cut. And cut is 1 at least: in runs
    shorter than 1 / cut_frac the paper's divides by 0. Raises ``ValueError`` for numbers out of range.

    >>> [round(slanted_triangle(t, 20, 0.1, 32), 4) for t in (0, 1, 2, 11, 20)]
    [0.0312, 0.5156, 1.0, 0.5156, 0.0312]
    """
    if not 0 < cut_frac < 1 or ratio < 1:
        raise ValueError(f"cut_frac {cut_frac!r} and ratio {ratio!r}: give 0 < cut_frac < 1 and ratio >= 1")
    cut = max(1, floor(steps * cut_frac))
    p = step / cut if step < cut else 1 - min(1.0, (step - cut) / max(1, steps - cut))
    return (1 + p * (ratio - 1)) / ratio


class ByStep(LRScheduler):
    """Sets every group's learning rate to its first one times ``factor(step)``; state_dict holds numbers and names only.

    A group that is added to the optimizer later has, from its first step on, its own first learning rate times the factor of
    that step: torch's own schedulers keep to the groups they were made with and fail at their next step.
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise ValueError(f"steps {steps!r}: give the length of the run as a number of optimizer steps (int >= 0)")
        self.steps = steps
        super().__init__(optimizer)
        # Weak, so that a schedule that is no longer wanted has no say; accelerate's wrapper has no hooks, what it wraps has.
        take_in = WeakMethod(self._take_in)
        getattr(optimizer, "optimizer", optimizer).register_step_pre_hook(lambda *_: (take_in() or (lambda: None))())

    def factor(self, step: int) -> float:
        """What the highest learning rate is multiplied by in step ``step`` (from 0)."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:  # type: ignore[override]
        self._take_in()
        factor = self.factor(self.last_epoch)
        return [float(base) * factor for base in self.base_lrs]

    def _take_in(self) -> None:
        """Groups that were added since the last step."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        for group in groups[len(self.base_lrs) :]:
            base = float(group.setdefault("initial_lr", float(group["lr"])))
            self.base_lrs.append(base)
            rate = base * self.factor(self.last_epoch)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class Schedule(ByStep):
    """The factor is ``multiplier``."""

    def __init__(self, optimizer: Optimizer, name: str, steps: int, warmup: float) -> None:
        self.name, self.warmup = name, warmup
        super().__init__(optimizer, steps)

    def factor(self, step: int) -> float:
        return multiplier(self.name, step, self.steps, self.warmup)


class SlantedTriangle(ByStep):
    """The factor is ``slanted_triangle``."""

    def __init__(self, optimizer: Optimizer, steps: int, cut_frac: float = 0.1, ratio: float = 32.0) -> None:
        self.cut_frac, self.ratio = cut_frac, ratio
        super().__init__(optimizer, steps)

    def factor(self, step: int) -> float:
        return slanted_triangle(step, self.steps, self.cut_frac, self.ratio)


def make_scheduler(optimizer: Optimizer, name: str, steps: int, warmup: float = 0) -> Schedule:
    """A scheduler over ``steps`` optimizer steps: call its ``step()`` after each ``optimizer.step()``.

    ``warmup`` is a number of steps (int) or a share of the run (float). Raises ``ValueError`` for an unknown name, for
    ``steps`` that is no number of steps, and for a warm-up that is neither.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    >>> scheduler = make_scheduler(optimizer, "linear", steps=4, warmup=0.5)
    >>> optimizer.param_groups[0]["lr"]
    1.0
    >>> optimizer.step(); scheduler.step(); optimizer.param_groups[0]["lr"]
    2.0
    """
    return Schedule(optimizer, name, steps, warmup)
