"""Plots with one line a system or method: numbers over optimizer steps, over layers, and score against what was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, log
from typing import Any

from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from eunoe.report import draw
from eunoe.report.curves import Curve
from eunoe.report.draw import INK, RULE, Style
from eunoe.report.metrics import Estimate, Metric
from eunoe.report.study import Spot
from eunoe.report.tradeoff import undominated

BINS = 60


def over_steps(
    curves: Sequence[Curve], looks: Mapping[str, Style], name: str, what: str = "training loss, nats",
    scale: float = 1.0, *, log_steps: bool = False, limits: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """One line a label: the mean over its seeds, and the range of the seeds as a band; in the order of ``looks``.

    Steps fall into bins of which the mean is drawn, so that a long run stays a small file: equal ones, with
    ``log_steps`` ones of equal ratio. ``what`` names the vertical axis; values are multiplied by ``scale``.
    ``limits``: ends of that axis, where several plots share them.
    """
    figure, ax = draw.axes(330, 230, left=50, right=10, top=10, bottom=38)
    last = max((curve.steps[-1] for curve in curves if curve.steps), default=1)
    for label, look in looks.items():
        drawn = [curve for curve in curves if curve.label == label and curve.steps]
        if not drawn:
            continue
        at: dict[int, list[tuple[float, float]]] = {}
        for curve in drawn:
            for k, points in _binned(curve, last, log_steps).items():
                at.setdefault(k, []).append(points)
        bins = [at[k] for k in sorted(at)]
        xs = [fsum(x for x, _ in points) / len(points) for points in bins]
        means = [scale * fsum(y for _, y in points) / len(points) for points in bins]
        if len(drawn) > 1:
            low, high = ([scale * pick(y for _, y in points) for points in bins] for pick in (min, max))
            ax.fill_between(xs, low, high, color=look.light, alpha=0.16, linewidth=0)
        mark = look.mark if len(xs) <= 12 else {"color": look.light}
        ax.plot(xs, means, linewidth=1.8, linestyle=look.line, markersize=4, **mark)
    if log_steps:
        ax.set_xscale("log")
        ax.set_xlim(0.9, 1.1 * last)  # all panels alike, whenever their first number was seen
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if limits:
        ax.set_ylim(*limits)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    axis_names(ax, "step" + (" (logarithmic)" if log_steps else ""), what)
    return draw.svg(figure, name)


def together(steps: Sequence[int], lines: Mapping[str, Sequence[float]], name: str) -> str:
    """Several numbers between 0 and about 1 over the same steps in one plot, each with its label above it."""
    figure, ax = draw.axes(520, 250, left=46, right=10, top=26, bottom=38)
    for i, (label, values) in enumerate(lines.items()):
        look = draw.style(i)
        ax.plot(steps, values, color=look.light, linewidth=1.8, linestyle=look.line)
        ax.annotate(label, xy=(0.03 + i / len(lines), 1.04), xycoords="axes fraction", fontsize=10.5, color=look.light)
    ax.set_ylim(-0.03, max(1.03, *(value for values in lines.values() for value in values)) if steps else 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("step", fontsize=10.5, color=draw.INK)
    return draw.svg(figure, name)


def _binned(curve: Curve, last: int, log_steps: bool) -> dict[int, tuple[float, float]]:
    """Bin -> the mean step and the mean value in it."""
    bins: dict[int, list[tuple[int, float]]] = {}
    for step, value in zip(curve.steps, curve.loss, strict=True):
        share = log(max(step, 1)) / log(max(last, 2)) if log_steps else (step - 1) / max(last, 1)
        bins.setdefault(min(BINS - 1, int(share * BINS)), []).append((max(step, 1) if log_steps else step, value))
    return {k: (fsum(s for s, _ in v) / len(v), fsum(y for _, y in v) / len(v)) for k, v in bins.items()}


def over_layers(
    values: Mapping[str, Mapping[str, float]], looks: Mapping[str, Style], metric: Metric, name: str
) -> str:
    """One line a label: label -> layer -> value; layers from the embeddings upward, as they come in the mapping."""
    layers = list(dict.fromkeys(layer for of_label in values.values() for layer in of_label))
    figure, ax = draw.axes(330, 200, left=50, right=12, top=10, bottom=38)
    for label, look in looks.items():
        if label in values:
            points = [(k, values[label][layer]) for k, layer in enumerate(layers) if layer in values[label]]
            ax.plot([k for k, _ in points], [v for _, v in points], linewidth=1.8, linestyle=look.line, markersize=4,
                    **look.mark)  # fmt: skip
    every = -(-len(layers) // 13)
    ax.set_xticks(range(0, len(layers), every), [layer_name(layer) for layer in layers[::every]],
                  parse_math=False)  # fmt: skip
    ax.set_xlim(-0.4, len(layers) - 0.6)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    axis_names(ax, "layer", metric.title if metric.title.startswith("CKA") else "distance")
    return draw.svg(figure, name)


def layer_name(layer: str) -> str:
    """The number in a layer's name; what has none keeps its first letters.

    >>> [layer_name(name) for name in ("embeddings", "encoder.layer.11", "transformer.h.0", "3", "other")]
    ['emb', '11', '0', '3', 'oth']
    """
    numbers = [part for part in layer.split(".") if part.isdecimal()]
    return numbers[-1] if numbers else layer[:3]


def frontier(spots: Sequence[Spot], looks: Mapping[str, Style], metric: Metric, name: str) -> str:
    """Score over what general text lost: a small mark a point of the search, a large one a reported system with intervals.

    Up is better at the task, left keeps more. A line joins the points of a system that no other point of it beats in both.
    ``looks`` are by system.
    """
    figure, ax = draw.axes(430, 300, left=54, right=14, top=12, bottom=40)
    for system, look in looks.items():
        own = [spot for spot in spots if spot.system == system]
        tried = [spot for spot in own if spot.searched] or own
        edge = undominated([(spot.lost.mean, spot.score.mean) for spot in tried])
        if len(edge) > 1:
            ax.plot([x for x, _ in edge], [metric.scale * y for _, y in edge], color=look.light, linewidth=1.3, linestyle=look.line,
                    alpha=0.8)  # fmt: skip
        for spot in own:
            x, y = spot.lost.mean, metric.scale * spot.score.mean
            if spot.searched:
                ax.plot([x], [y], markersize=4.5, linestyle="none", alpha=0.85, **look.mark)
                continue
            for across, (middle, estimate, scale) in enumerate(((y, spot.lost, 1.0), (x, spot.score, metric.scale))):
                if span := ends(estimate, scale):
                    ax.plot(*((span, [middle] * 2) if not across else ([middle] * 2, span)), color=look.light, linewidth=1.6,
                            solid_capstyle="butt")  # fmt: skip
            ax.plot(
                [x], [y], markersize=10, linestyle="none", **look.mark | ({} if look.open else {"markeredgecolor": INK})
            )
    if not ax.get_xlim()[0] < 0 < ax.get_xlim()[1] and min(spot.lost.mean for spot in spots) > 0:
        ax.set_xlim(left=0)  # nothing lost is where the axis begins, so that distances can be read as shares
    ax.axvline(0, color=RULE, linewidth=1.2)
    ax.margins(x=0.06, y=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_locator(MaxNLocator(6))
    axis_names(ax, "rise of the LM loss of general text, nats", f"{metric.title}, points")
    return draw.svg(figure, name)


def ends(estimate: Estimate, scale: float) -> list[float]:
    """Both ends of an estimate's interval; [] where it has none, or no width."""
    interval = estimate.interval
    return [scale * end for end in interval] if interval and interval[0] < interval[1] else []


def line_look(look: Style) -> dict[str, Any]:
    """A line with marks as keywords of matplotlib's ``plot``."""
    return {"linestyle": look.line, **look.mark}


def axis_names(ax: Any, x: str, y: str) -> None:
    """Names of both axes."""
    # parse_math: a `$` in somebody's name is a dollar, not a formula
    ax.set_xlabel(x, fontsize=10.5, color=INK, parse_math=False)
    ax.set_ylabel(y, fontsize=10.5, color=INK, parse_math=False)


__all__ = [
    "axis_names",
    "ends",
    "frontier",
    "layer_name",
    "line_look",
    "over_layers",
    "over_steps",
    "together",
]
