"""How every plot is drawn: looks of lines, axes, text, and the figure as SVG text for a page.

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
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib import colormaps
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eunoe import stop
from eunoe.report.metrics import typeset

# Stand-ins that become CSS in the finished text; no plot may use these colours for anything else.
INK, RULE = "#010203", "#040506"


@dataclass(frozen=True)
class Style:
    """How the lines of one method look. ``dash`` is SVG's stroke-dasharray, in line widths."""

    name: str
    light: str
    dark: str
    dash: tuple[float, ...]
    marker: str


# Blue and orange come late: in the matrices they mean better and worse.
STYLES = (
    Style("line-0", "#4a4e9e", "#a6a9f2", (), "o"),
    Style("line-1", "#00855f", "#2ec99b", (4, 1.6), "s"),
    Style("line-2", "#a3447d", "#e59cc6", (1.2, 1.4), "^"),
    Style("line-3", "#8a6d00", "#e3c04a", (6, 1.6, 1.2, 1.6), "D"),
    Style("line-4", "#0072b2", "#56a8e6", (3, 1.2, 1.2, 1.2, 1.2, 1.2), "v"),
    Style("line-5", "#d55e00", "#ff8a3d", (8, 2), "P"),
)


def _ramp(i: int) -> Style:
    """The ``i``-th look of the ramp: from violet to orange in dark enough tones, on a dark page in bright ones."""
    light, dark = (to_hex(colormaps["plasma"](a + (b - a) * i / (RAMPED - 1))) for a, b in ((0.0, 0.7), (0.36, 0.97)))
    return Style(f"ramp-{i}", light, dark, STYLES[i % len(STYLES)].dash, STYLES[i % len(STYLES)].marker)


RAMPED = 12
RAMP = tuple(_ramp(i) for i in range(RAMPED))
LOOKS = (*STYLES, *RAMP)


def style(index: int) -> Style:
    """The look of the ``index``-th method; they come round again after the last."""
    return STYLES[index % len(STYLES)]


def ramp(count: int) -> list[Style]:
    """Looks of ``count`` points that follow each other, such as a grid's: their order is seen in their colours.

    >>> [look.name for look in ramp(3)]
    ['ramp-0', 'ramp-6', 'ramp-11']
    """
    return [RAMP[round(i * (RAMPED - 1) / max(count - 1, 1))] for i in range(count)]


def short(name: str, most: int) -> str:
    """The name, cut to ``most`` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """A figure whose data units are pixels, y downward; a pixel is a point, so font sizes are pixels too."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.axis("off")
    return figure, ax


def axes(width: float, height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Any]:
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


def text(ax: Any, x: float, y: float, text: str, *, size: float, ha: str = "center", color: str = INK) -> None:
    # parse_math: a `$` in somebody's domain name is a dollar, not a formula
    ax.text(x, y, typeset(text), fontsize=size, ha=ha, va="center", color=color, parse_math=False)


def colour_bar(colours: Colormap, words: tuple[str, str, str], name: str) -> str:
    """What colours mean: all of them in a row, with words at the left, in the middle and at the right."""
    width, height, left = 330.0, 40.0, 4.0
    figure, ax = canvas(width, height)
    steps, span = 60, width - 2 * left
    for k in range(steps):  # each reaches to the end and is painted over: side by side they would show seams
        x = left + span * k / steps
        ax.add_patch(Rectangle((x, 4), width - left - x, 12, facecolor=colours((k + 0.5) / steps), edgecolor="none"))
    for x, said, ha in zip((left, width / 2, width - left), words, ("left", "center", "right"), strict=True):
        text(ax, x, 29, said, ha=ha, size=10)
    return svg(figure, name)


def svg(figure: Figure, name: str) -> str:
    """The figure as one ``<svg>`` element. ``name`` salts and prefixes its ids, so many plots can share a page."""
    stop.check("drawing the report")
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
    for look in LOOKS:
        body = body.replace(look.light, f"var(--{look.name}, {look.light})")
    return f"{head}>{body.strip()}"


__all__ = [
    "INK", "LOOKS", "RAMP", "RULE", "STYLES", "Style", "axes", "canvas", "colour_bar", "ramp", "short", "style", "svg", "text",
]  # fmt: skip
