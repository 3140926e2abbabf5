"""Small multiples: a panel a method, all on one scale, so that panels can be compared by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from eunoe.report import draw
from eunoe.report.curves import Curve
from eunoe.report.draw import INK, RULE, Style
from eunoe.report.matrices import Scores
from eunoe.report.metrics import Metric

WIDTH, HEIGHT = 176.0, 132.0
BINS = 24
"""Points of a stage's curve."""


class Path(NamedTuple):
    """How one domain fared: after how many domains, and by how much it is worse there than right after it was learnt."""

    domain: str
    steps: list[int]
    forgot: list[float]


def forgotten(scores: Scores, metric: Metric) -> list[Path]:
    """Of each domain that others were learnt after, in the metric's stored unit: the mean over the seeds; above 0 is worse."""
    sign = 1.0 if metric.higher_is_better else -1.0
    paths = []
    for j in scores.columns:
        start = scores.learnt_at[j]
        steps, forgot = [start + 1], [0.0]
        for i in range(start + 1, len(scores.domains)):
            pairs = [(R[start][j], R[i][j]) for R in scores.seeds.values()]
            moves = [sign * (then - now) for then, now in pairs if then is not None and now is not None]
            if moves:
                steps.append(i + 1)
                forgot.append(fsum(moves) / len(moves) + 0.0)
        if len(steps) > 1:
            paths.append(Path(scores.domains[j], steps, forgot))
    return paths


def forgotten_panel(
    paths: Sequence[Path],
    looks: Mapping[str, Style],
    metric: Metric,
    limits: tuple[float, float],
    stages: int,
    name: str,
) -> str:
    """One line a domain over the domains learnt so far; ``limits`` of all panels, in the metric's stored unit."""
    figure, ax = draw.axes(WIDTH, HEIGHT, left=36, right=6, top=6, bottom=22)
    ax.axhline(0, color=RULE, linewidth=1.2)
    for path in paths:
        look = looks[path.domain]
        ax.plot(path.steps, [metric.scale * value for value in path.forgot], linewidth=1.6, linestyle=look.line, markersize=3.5,
                **look.mark)  # fmt: skip
    ax.set_xlim(0.8, stages + 0.2)
    ax.set_ylim(*(metric.scale * end for end in limits))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    return draw.svg(figure, name)


def limits(values: Sequence[float], least: float) -> tuple[float, float]:
    """One scale for all panels: from the lowest to the highest, with a margin; at least ``least`` wide.

    >>> limits([0.0, 1.0], 0.1), limits([0.0, 0.0], 1.0)
    ((-0.06, 1.06), (-0.5, 0.5))
    """
    low, high = min(values), max(values)
    if high - low < least:
        return (low + high - least) / 2, (low + high + least) / 2
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


class Stretch(NamedTuple):
    """One stage of a method's training: points between ``place`` and ``place`` + 1, the mean over the seeds."""

    place: int
    xs: list[float]
    ys: list[float]


def stretches(curves: Mapping[int, Sequence[Curve]]) -> list[Stretch]:
    """Place -> the curves of one method, one a seed; each stage is as wide as another, however many steps it has."""
    made = []
    for place, seeds in sorted(curves.items()):
        bins: dict[int, list[float]] = {}
        for curve in seeds:
            last = max(curve.steps[-1], 1) if curve.steps else 1
            own: dict[int, list[float]] = {}
            for step, loss in zip(curve.steps, curve.loss, strict=True):
                own.setdefault(min(BINS - 1, int((step - 1) / last * BINS)), []).append(loss)
            for k, losses in own.items():
                bins.setdefault(k, []).append(fsum(losses) / len(losses))
        if bins:
            ks = sorted(bins)
            made.append(
                Stretch(place, [place + (k + 0.5) / BINS for k in ks], [fsum(bins[k]) / len(bins[k]) for k in ks])
            )
    return made


def curve_panel(
    own: Sequence[Stretch], behind: Sequence[Stretch], look: Style, limits: tuple[float, float], stages: int, name: str
) -> str:
    """The training loss of one method, domain after domain, with another's in grey behind it."""
    figure, ax = draw.axes(WIDTH, HEIGHT, left=36, right=6, top=6, bottom=22)
    for border in range(1, stages):
        ax.axvline(border, color=RULE, linewidth=0.6)
    for stretch in behind:
        ax.plot(stretch.xs, stretch.ys, color=RULE, linewidth=1.1)
    for stretch in own:
        ax.plot(stretch.xs, stretch.ys, color=look.light, linewidth=1.6)
    ax.grid(visible=False, axis="x")
    ax.set_xlim(0, stages)
    ax.set_ylim(*limits)
    every = -(-stages // 6)
    ax.set_xticks([k + 0.5 for k in range(0, stages, every)], [str(k + 1) for k in range(0, stages, every)], color=INK)
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    return draw.svg(figure, name)


__all__ = ["Path", "Stretch", "curve_panel", "forgotten", "forgotten_panel", "limits", "stretches"]
