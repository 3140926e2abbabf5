"""RecAdam's annealing as a picture: lambda, the pull and the rate over the steps, before anything trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from eunoe.report import draw

SHOWN = ("lambda", "pull a step", "rate of the task")
"""lambda: the task's share; pull: share of the distance taken away in a step; rate: lambda times the schedule, of its highest."""


def annealing_plot(points: Sequence[tuple[int, float, float, float]], name: str) -> str:
    """SVG of (step, lambda, pull, rate) over the steps; the rate is drawn as a share of its highest."""
    figure, ax = draw.axes(520, 250, left=46, right=10, top=26, bottom=38)
    steps = [step for step, *_ in points]
    highest = max((rate for *_, rate in points), default=0) or 1.0
    lines = ([p[1] for p in points], [p[2] for p in points], [p[3] / highest for p in points])
    for i, (label, values) in enumerate(zip(SHOWN, lines, strict=True)):
        look = draw.style(i)
        dash: Any = (0, look.dash) if look.dash else "solid"
        ax.plot(steps, values, color=look.light, linewidth=1.8, linestyle=dash)
        ax.annotate(label, xy=(0.03 + 0.33 * i, 1.04), xycoords="axes fraction", fontsize=10.5, color=look.light)
    ax.set_ylim(-0.03, max(1.03, *lines[1]) if lines[1] else 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("step", fontsize=10.5, color=draw.INK)
    return draw.svg(figure, name)


__all__ = ["SHOWN", "annealing_plot"]
