"""Learning-rate schedules: pure functions of progress, with a warm-up before them and a thin ``LRScheduler`` around.

The shapes are the usual ones: ``linear`` falls to 0 on a straight line (BERT, RecAdam and CPT all use it), ``cosine`` on half
a wave. Two things differ.

A warm-up of W steps gives step t = 0, 1, ... the share (t + 1) / W. ``get_linear_schedule_with_warmup`` of transformers gives
t / W, so its first step has the learning rate 0: a batch is read and nothing is learnt. Here step W - 1 is the only one with
the highest learning rate (with transformers it is step W), and the fall over the steps from there to the end of the run begins at step
W; step ``steps``, which no run takes, would be the first at the end value, in both.

And the learning rate is computed from the step's number and never from the one before, so a resumed run has the same learning
rates to the bit, and the saved state is plain values, no function. Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, cos, pi
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


class Schedule(LRScheduler):
    """Sets every group's learning rate to its first one times ``multiplier``; state_dict holds numbers and names only.

    A group that is added to the optimizer later has, from its first step on, its own first learning rate times the multiplier of
    that step: torch's own schedulers keep to the groups they were made with and fail at their next step.
    """

    def __init__(self, optimizer: Optimizer, name: str, steps: int, warmup: float) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise ValueError(f"steps {steps!r}: give the length of the run as a number of optimizer steps (int >= 0)")
        self.name, self.steps, self.warmup = name, steps, warmup
        super().__init__(optimizer)
        # Weak, so that a schedule that is no longer wanted has no say; accelerate's wrapper has no hooks, what it wraps has.
        take_in = WeakMethod(self._take_in)
        getattr(optimizer, "optimizer", optimizer).register_step_pre_hook(lambda *_: (take_in() or (lambda: None))())

    def get_lr(self) -> list[float]:  # type: ignore[override]
        self._take_in()
        factor = multiplier(self.name, self.last_epoch, self.steps, self.warmup)
        return [float(base) * factor for base in self.base_lrs]

    def _take_in(self) -> None:
        """Groups that were added since the last step."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        for group in groups[len(self.base_lrs) :]:
            base = float(group.setdefault("initial_lr", float(group["lr"])))
            self.base_lrs.append(base)
            rate = base * multiplier(self.name, self.last_epoch, self.steps, self.warmup)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


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
