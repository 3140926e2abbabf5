"""Plots as SVG text for a page: matrices, learning curves, forgetting.

Made with matplotlib's object interface (no pyplot, no global figure). The same numbers give the same bytes: no
date, ids salted by the plot's name. Text stays text, in the reader's own sans-serif. Ink is ``currentColor`` and the
lines are CSS variables with a fallback, so a page can turn dark without a second set of plots.

Colours are chosen so that the colour-blind can tell neighbours apart (after Okabe and Ito,
https://jfly.uni-koeln.de/color/); every line also has its own dash and marker, and every coloured cell its number, so
nothing is lost in a grey print.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from eunoe.report.tables import Line, Metric, Scores, metric, number, shown, typeset

# Stand-ins that become CSS in the finished text; no plot may use these colours for anything else.
INK, RULE = "#010203", "#040506"


@dataclass(frozen=True)
class Style:
    """How the lines of one method look. ``dash`` is SVG's stroke-dasharray, in line widths."""

    light: str
    dark: str
    dash: tuple[float, ...]
    marker: str


# Blue and orange come late: in the matrices they mean better and worse.
STYLES = (
    Style("#4a4e9e", "#a6a9f2", (), "o"),
    Style("#00855f", "#2ec99b", (4, 1.6), "s"),
    Style("#a3447d", "#e59cc6", (1.2, 1.4), "^"),
    Style("#8a6d00", "#e3c04a", (6, 1.6, 1.2, 1.6), "D"),
    Style("#0072b2", "#56a8e6", (3, 1.2, 1.2, 1.2, 1.2, 1.2), "v"),
    Style("#d55e00", "#ff8a3d", (8, 2), "P"),
)

# Better is blue, worse is orange, unchanged is nearly white. The ends are as dark as black text on them allows.
CHANGE = LinearSegmentedColormap.from_list("change", ["#6aaed8", "#f4f3f0", "#f0953f"])


def style(index: int) -> Style:
    """The look of the ``index``-th method; they come round again after the last."""
    return STYLES[index % len(STYLES)]


# -- matrices ---------------------------------------------------------------------------------------------------
def heat_maps(all_scores: Sequence[Scores], name: str) -> list[str]:
    """One SVG for each of several matrices of one metric, all on one colour scale.

    A cell shows the score (mean over seeds) and, below the diagonal, how far it moved since the domain was learnt;
    the colour shows that move, as domains differ far more in their level than in what is forgotten of them. The row on
    top, uncoloured, is the pretrained model.
    """
    limit = colour_limit(all_scores)
    return [_heat_map(scores, limit, f"{name}-{i}") for i, scores in enumerate(all_scores)]


def colour_limit(all_scores: Sequence[Scores]) -> float:
    """The largest move of any cell, in the metric's stored unit: the end of the colour scale (0: nothing moved)."""
    moves = [change[0] for scores in all_scores for change in _changes(scores).values()]
    return max((abs(move) for move in moves), default=0.0)


def _changes(scores: Scores) -> dict[tuple[int, int], tuple[float, bool]]:
    """(i, j) below the diagonal -> the mean move since j was learnt, above 0 if the score rose; and whether all are 0."""
    found = {}
    size = len(scores.domains)
    for i in range(size):
        for j in range(i):
            pairs = [(R[i][j], R[j][j]) for R in scores.seeds.values()]
            moves = [now - then for now, then in pairs if now is not None and then is not None]
            if moves:
                found[(i, j)] = (fsum(moves) / len(moves), all(move == 0 for move in moves))
    return found


def _heat_map(scores: Scores, limit: float, name: str) -> str:
    of, domains = metric(scores.key.metric), scores.domains
    mean, before, changes = scores.mean(), scores.mean_before(), _changes(scores)
    with_before = any(value is not None for value in before)
    rows = [f"{i + 1} {_short(domain, 15)}" for i, domain in enumerate(domains)]
    gutter = 14 + 6.0 * max(map(len, [*rows, "after learning"]))
    wide, high, gap = 66.0, 46.0, 10.0 if with_before else 0.0
    top = 40.0
    width = gutter + wide * len(domains) + 2
    height = top + high * len(domains) + (30 + gap if with_before else 0) + 2
    figure, ax = _canvas(width, height)
    _text(ax, gutter - 8, top - 10, "after learning", ha="right", size=10.5)
    _text(ax, gutter + 2, 9, "score on", ha="left", size=10.5)
    for j, domain in enumerate(domains):
        _text(ax, gutter + wide * (j + 0.5), top - 10, f"{j + 1} {_short(domain, 8)}", size=10.5)
    y = top
    if with_before:
        _text(ax, gutter - 8, y + 14, "none yet", ha="right", size=10.5)
        for j, value in enumerate(before):
            if value is not None:
                _text(ax, gutter + wide * (j + 0.5), y + 14, number(value, of), size=11.5)
        y += 30
        ax.plot([gutter, width - 2], [y + gap / 2 - 1] * 2, color=RULE, linewidth=1)
        y += gap
    sign = -1.0 if of.higher_is_better else 1.0
    for i, label in enumerate(rows):
        middle = y + high * (i + 0.5)
        _text(ax, gutter - 8, middle, label, ha="right", size=10.5)
        for j, value in enumerate(mean[i]):
            x = gutter + wide * j
            if value is None:
                if j < i and j in scores.tasks:
                    _text(ax, x + wide / 2, middle, "·", size=12)
                continue
            move, exact = changes.get((i, j), (0.0, False))
            colour = CHANGE(0.5 + 0.5 * sign * move / limit) if limit else CHANGE(0.5)
            ax.add_patch(Rectangle((x + 1, y + high * i + 1), wide - 2, high - 2, facecolor=colour, edgecolor=RULE,
                                   linewidth=1.6 if i == j else 0.4))  # fmt: skip
            lift = 7 if (i, j) in changes else 0
            _text(ax, x + wide / 2, middle - lift, number(value, of), size=12.5, color="#0c0d0e")
            if lift:
                said = "same" if exact else number(move, of, signed=True)
                _text(ax, x + wide / 2, middle + 10, said, size=10.5, color="#0c0d0e")
    return _svg(figure, name)


def colour_bar(limit: float, of: Metric, name: str) -> str:
    """The legend of ``heat_maps``: what the colours mean, with the ends of the scale in the metric's unit."""
    width, height, left = 330.0, 40.0, 4.0
    figure, ax = _canvas(width, height)
    steps, span = 60, width - 2 * left
    for k in range(steps):  # each reaches to the end and is painted over: side by side they would show seams
        x = left + span * k / steps
        ax.add_patch(Rectangle((x, 4), width - left - x, 12, facecolor=CHANGE((k + 0.5) / steps), edgecolor="none"))
    end = number(limit, of)
    _text(ax, left, 29, f"better by {end}" if limit else "better", ha="left", size=10)
    _text(ax, width / 2, 29, "as when learnt", size=10)
    _text(ax, width - left, 29, f"forgotten: {end} {of.unit}" if limit else "forgotten", ha="right", size=10)
    return _svg(figure, name)


# -- learning curves --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Curve:
    """Training loss (nats) over optimizer steps of one domain in one sequence."""

    label: str
    seed: int
    steps: tuple[int, ...]
    loss: tuple[float, ...]


def learning_curves(curves: Sequence[Curve], looks: Mapping[str, Style], name: str, bins: int = 60) -> str:
    """All curves of one domain: for each method the mean over its seeds, and the range of the seeds as a band.

    Steps fall into ``bins`` equal bins of which the mean is drawn, so that a long run stays a small file.
    """
    figure, ax = _axes(330, 230, left=46, right=10, top=10, bottom=38)
    for label in dict.fromkeys(curve.label for curve in curves):
        look = looks[label]
        mine = [curve for curve in curves if curve.label == label and curve.steps]
        last = max((curve.steps[-1] for curve in mine), default=0)
        at: dict[int, list[float]] = {}
        for curve in mine:
            held: dict[int, list[float]] = {}
            for step, loss in zip(curve.steps, curve.loss, strict=True):
                held.setdefault(min(bins - 1, (step - 1) * bins // max(last, 1)), []).append(loss)
            for k, values in held.items():
                at.setdefault(k, []).append(fsum(values) / len(values))
        xs = [last * (k + 0.5) / bins for k in sorted(at)]
        means = [fsum(at[k]) / len(at[k]) for k in sorted(at)]
        if len(mine) > 1:
            ax.fill_between(xs, [min(at[k]) for k in sorted(at)], [max(at[k]) for k in sorted(at)],
                            color=look.light, alpha=0.16, linewidth=0)  # fmt: skip
        dash: Any = (0, look.dash) if look.dash else "solid"
        ax.plot(
            xs, means, color=look.light, linewidth=1.8, linestyle=dash, marker=look.marker if len(xs) == 1 else None
        )
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("step", fontsize=10.5, color=INK)
    ax.set_ylabel("training loss, nats", fontsize=10.5, color=INK)
    return _svg(figure, name)


# -- forgetting -------------------------------------------------------------------------------------------------
def forgetting_plot(lines: Sequence[Line], looks: Mapping[str, Style], name: str) -> str:
    """A point for each method's forgetting with its 95 % interval, a small dot for each sequence; right of 0 is worse."""
    told = [line for line in lines if line.forgetting is not None]
    gutter = 16 + 6.2 * max(len(_short(line.label, 20)) for line in told)
    row, right = 34.0, 96.0
    figure, ax = _axes(
        max(330.0, gutter + right + 190), 46 + row * len(told), left=gutter, right=right, top=6, bottom=40
    )
    of = told[0].metric
    ax.axvline(0, color=RULE, linewidth=1.4)
    for k, line in enumerate(told):
        assert line.forgetting is not None
        look, estimate = looks[line.label], line.forgetting
        values = [value * of.scale for value in estimate.values]
        if estimate.interval:
            ax.plot(
                [end * of.scale for end in estimate.interval],
                [k, k],
                color=look.light,
                linewidth=2.2,
                solid_capstyle="butt",
            )
            ax.plot(
                values,
                [k + 0.27] * len(values),
                linestyle="none",
                marker="o",
                markersize=3,
                color=look.light,
                alpha=0.75,
            )
        ax.plot([estimate.mean * of.scale], [k], marker=look.marker, markersize=8, color=look.light, linestyle="none")
        ax.text(-8 / ax.bbox.width, k, _short(line.label, 20), transform=ax.get_yaxis_transform(), ha="right", va="center",
                fontsize=11, color=INK, parse_math=False)  # fmt: skip
        ax.text(1 + 8 / ax.bbox.width, k, typeset(shown(estimate, of)), transform=ax.get_yaxis_transform(), ha="left", va="center",
                fontsize=11, color=INK)  # fmt: skip
    ax.set_ylim(len(told) - 0.4, -0.6)
    ax.set_yticks([])
    if ax.get_xlim()[1] - ax.get_xlim()[0] < 10**-of.decimals:
        ax.set_xlim(-1, 1)  # nothing moved: any scale would be made of rounding
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"forgotten, {of.unit}", fontsize=10.5, color=INK)
    return _svg(figure, name)


# -- drawing ----------------------------------------------------------------------------------------------------
def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    """A figure whose data units are pixels, y downward; a pixel is a point, so font sizes are pixels too."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.axis("off")
    return figure, ax


def _axes(width: float, height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Any]:
    """A figure with one plain plot in it; margins in pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    ax = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    ax.patch.set_visible(False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for spine in ax.spines.values():
        spine.set_edgecolor(RULE)
    ax.tick_params(colors=RULE, labelcolor=INK, labelsize=10)
    ax.grid(axis="both", color=RULE, linewidth=0.4, alpha=0.5)
    return figure, ax


def _text(ax: Any, x: float, y: float, text: str, *, size: float, ha: str = "center", color: str = INK) -> None:
    # parse_math: a `$` in somebody's domain name is a dollar, not a formula
    ax.text(x, y, typeset(text), fontsize=size, ha=ha, va="center", color=color, parse_math=False)


def _svg(figure: Figure, name: str) -> str:
    """The figure as one ``<svg>`` element. ``name`` salts and prefixes its ids, so many plots can share a page."""
    figure.patch.set_visible(False)
    out = io.StringIO()
    quiet = logging.getLogger("matplotlib.font_manager")
    level = quiet.level
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's own font draws the text
        quiet.setLevel(logging.ERROR)
        try:
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
        finally:
            quiet.setLevel(level)
    return _for_a_page(out.getvalue(), name)


def _for_a_page(text: str, name: str) -> str:
    """Without prolog and comments, ids prefixed, colours as CSS, fonts left to the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None  # matplotlib always writes one
    _, _, width, height = box.group(1).split()
    size = f'viewBox="{box.group(1)}" width="{float(width):g}" height="{float(height):g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"'
    # This rule would reach beyond its plot; what it says stands in the page's own style as well.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, count=1, flags=re.DOTALL)
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    body = re.sub(r'(?<=\sid=")', f"{safe}-", body)
    body = re.sub(r'(?<=url\(#)|(?<=href="#)', f"{safe}-", body)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r"""(font: [^;"]*?px) [^;"]*""", r"\1 sans-serif", body)
    body = re.sub(r"""font-family: [^;"]*""", "font-family: sans-serif", body)
    body = body.replace(INK, "currentColor").replace(RULE, "var(--rule, #8a8f98)")
    for i, look in enumerate(STYLES):
        body = body.replace(look.light, f"var(--line-{i}, {look.light})")
    return f"{head}>{body.strip()}"


__all__ = [
    "STYLES",
    "Curve",
    "Style",
    "colour_bar",
    "colour_limit",
    "forgetting_plot",
    "heat_maps",
    "learning_curves",
    "style",
]
