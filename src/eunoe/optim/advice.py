"""What RecAdam's settings will do over a run, shown before anything trains.

RecAdam (https://arxiv.org/abs/2004.12651) has three knobs, k, t0 and gamma, that act together with the learning rate, its schedule
and the length of the run. A wrong choice is silent: with the defaults of the released script a run of 200 steps learns
nothing, and with a small learning rate nothing is pulled. Both follow from the settings alone. Here the numbers of each step are
those that the optimizer itself takes (``step.numbers``).

Pure functions of plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import ceil, log, prod
from typing import Literal, NamedTuple

from eunoe.optim.refuse import refuse_settings
from eunoe.optim.schedules import multiplier
from eunoe.optim.step import numbers
from eunoe.optim.table import RecAdamSettings

NEVER_PULLED = 0.99
"""More than this share of a distance to the anchor left after the whole run: the pull did nothing."""
NEVER_LEARNT = 0.01
"""Less than this share of the sum of rates goes to the target task: the weights stood still."""
REBUILT = 1e-3
"""A random start has reached its anchor when this share of the distance is left."""


class Point(NamedTuple):
    """One optimizer step, as ``lambda_curve`` tells it."""

    step: int
    """From 1."""
    lam: float
    """lambda: what Adam's direction is multiplied by, besides the learning rate."""
    pull: float
    """The share of the distance to the anchor that the step takes away: lr (w - lambda) gamma as released."""
    rate: float
    """lr lambda: the learning rate of the target task."""


def lambda_curve(
    settings: RecAdamSettings, lr: float, steps: int, schedule: str = "linear", warmup: float = 0
) -> list[Point]:
    """The course of a run: a ``Point`` for each of its ``steps``.

    lr: the highest learning rate. schedule, warmup: as for ``make_scheduler``. Raises ``EunoeError`` and ``ValueError`` as the
    optimizer and the schedule do.

    >>> lambda_curve(RecAdamSettings(k="inf", t0=1), lr=2e-5, steps=3, schedule="constant")[2]
    Point(step=3, lam=1.0, pull=0.0, rate=2e-05)
    """
    return curve(settings, lr, [multiplier(schedule, t, steps, warmup) for t in range(steps)])


def curve(settings: RecAdamSettings, lr: float, shares: Sequence[float]) -> list[Point]:
    """As ``lambda_curve``, with any schedule: ``shares`` holds what ``lr`` is multiplied by in each step of the run.

    >>> [point.rate for point in curve(RecAdamSettings(anneal="constant"), 2e-5, [0.5, 1.0])]
    [1e-05, 2e-05]
    """
    k, t0 = settings.in_steps(len(shares))
    group = {**asdict(settings), "k": k, "t0": t0, "lr": lr, "initial_lr": lr, "anchor": []}
    refuse_settings(group)
    points = []
    for t, share in enumerate(shares, 1):
        n = numbers({**group, "lr": lr * share}, t, anchored=True)
        points.append(Point(t, n.lam, n.pull, n.lr * n.lam))
    return points


def warnings(
    settings: RecAdamSettings,
    lr: float,
    steps: int,
    schedule: str = "linear",
    warmup: float = 0,
    start: Literal["pretrained", "random"] = "pretrained",
) -> list[str]:
    """What will not work, in sentences with the numbers and a way out; an empty list where all is well.

    start: whether the weights begin at the anchor or must be pulled there first.

    >>> warnings(RecAdamSettings(), lr=2e-5, steps=7800)
    []
    """
    return foreseen(settings, lr, [multiplier(schedule, t, steps, warmup) for t in range(steps)], start)


def foreseen(
    settings: RecAdamSettings, lr: float, shares: Sequence[float], start: Literal["pretrained", "random"] = "pretrained"
) -> list[str]:
    """As ``warnings``, with any schedule (see ``curve``)."""
    points, steps = curve(settings, lr, shares), len(shares)
    if not points:
        return []
    lines = []
    hint = " t0 and rise may be shares of the run, as in t0: 0.25, rise: 0.2."
    left = prod(abs(1 - point.pull) for point in points)
    if left > NEVER_PULLED:
        strongest = max(points, key=lambda point: point.pull)
        lines.append(
            f"nothing is ever pulled: after all {steps:,} steps {left:.2%} of a distance to the pretrained weights would be "
            f"left (the strongest pull, at step {strongest.step:,}, takes away {strongest.pull:.2g} of it), so this is Adam. "
            f"For a noticeable pull raise t0 or gamma.{hint}"
        )
    k, t0 = settings.in_steps(steps)
    total = lr * sum(shares)
    learnt = sum(point.rate for point in points)
    if learnt < NEVER_LEARNT * total:
        lines.append(
            f"nothing is ever learnt: the target task gets {learnt / total:.2%} of the learning rate over the {steps:,} steps (lambda is "
            f"{points[-1].lam:.2g} at the last one; t0 is {t0:g}, k {k:.3g}), so the trunk stays where its anchor "
            f"is and only the head trains. Lower t0.{hint}"
        )
    if start == "random":
        reached = prod(abs(1 - point.pull) for point in points if point.step <= t0)
        if reached > REBUILT:
            best = min(abs(1 - point.pull) for point in points)
            needed = (
                "Nothing pulls here at all."
                if best >= 1
                else f"At the strongest pull of this run it takes {ceil(log(REBUILT) / log(best)) if best else 1:,} steps."
            )
            lines.append(
                f"the random start does not reach the pretrained weights: at t0, step {min(t0, steps):,g}, {reached:.2%} of "
                f"the distance is left (wanted: at most {REBUILT:.1%}). {needed} Raise t0, gamma or the learning rate, or start "
                "from the pretrained weights."
            )
    return lines
