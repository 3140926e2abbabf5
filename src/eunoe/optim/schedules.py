"""Learning-rate schedules: pure functions of progress, with a warm-up before them and a thin ``LRScheduler`` around.

The shapes are the usual ones: ``linear`` with a warm-up is ``get_linear_schedule_with_warmup`` of transformers (BERT,
RecAdam and CPT all use it), ``cosine`` is half a wave. Different from torch's own schedulers: the rate is computed from
the step's number and never from the rate before, so a resumed run has the same rates to the bit, and the saved state is
plain values, no function. Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, cos, pi

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
    if count < 0:
        raise ValueError(
            f"warmup {warmup!r}: give a number of steps (int >= 0) or a share of the run (float in [0, 1])"
        )
    return count


def multiplier(name: str, step: int, steps: int, warmup: float = 0) -> float:
    """What the highest rate is multiplied by in step ``step`` (from 0) of ``steps``.

    Rises from 0 over the warm-up (see ``warmup_steps``), then follows ``SCHEDULES[name]`` over the steps that are left,
    and stays at its end value after them. Raises ``ValueError`` for an unknown name.

    >>> [multiplier("linear", t, 6, 2) for t in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; allowed: {', '.join(SCHEDULES)}")
    rise = warmup_steps(warmup, steps)
    if step < rise:
        return step / rise
    return SCHEDULES[name](min(1.0, (step - rise) / max(1, steps - rise)))


class Schedule(LRScheduler):
    """Sets every group's rate to its first rate times ``multiplier``; state_dict holds numbers and names only."""

    def __init__(self, optimizer: Optimizer, name: str, steps: int, warmup: float) -> None:
        self.name, self.steps, self.warmup = name, steps, warmup
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        factor = multiplier(self.name, self.last_epoch, self.steps, self.warmup)
        return [float(base) * factor for base in self.base_lrs]


def make_scheduler(optimizer: Optimizer, name: str, steps: int, warmup: float = 0) -> Schedule:
    """A scheduler over ``steps`` optimizer steps: call its ``step()`` after each ``optimizer.step()``.

    ``warmup`` is a number of steps (int) or a share of the run (float). Raises ``ValueError`` for an unknown name.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    >>> scheduler = make_scheduler(optimizer, "linear", steps=4, warmup=0.5)
    >>> optimizer.step(); scheduler.step(); optimizer.param_groups[0]["lr"]
    1.0
    """
    return Schedule(optimizer, name, steps, warmup)
