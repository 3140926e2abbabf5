"""How every plot is drawn: looks of lines, axes, text, and the figure as SVG text for a page.

Made with matplotlib's object interface (no pyplot, no global figure). The same numbers give the same bytes: no
date, ids salted by the plot's name. Text stays text, in the reader's own sans-serif. Ink is ``currentColor`` and the
lines are CSS variables with a fallback, so a page can turn dark without a second set of plots.

The first colours are chosen so that the colour-blind can tell neighbours apart (after Okabe and Ito,
https://jfly.uni-koeln.de/color/); every look also has its own dash and shape, and every coloured cell its number.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from dataclasses import dataclass, replace
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
    """How the lines and marks of one method look. ``dash`` is SVG's stroke-dasharray, in line widths."""

    name: str
    light: str
    dark: str
    dash: tuple[float, ...]
    shape: str
    """A key of ``SHAPES``."""
    open: bool
    """Is only the mark's outline drawn?"""

    @property
    def line(self) -> Any:
        """The dash as matplotlib's ``linestyle``."""
        return (0, self.dash) if self.dash else "solid"

    @property
    def mark(self) -> dict[str, Any]:
        """The mark as keywords of matplotlib's ``plot``."""
        return {"marker": SHAPES[self.shape], "color": self.light, "markeredgewidth": 1.5 if self.open else 1.0,
                "markerfacecolor": "none" if self.open else self.light}  # fmt: skip


# Custom ones where the next of matplotlib's would look like another at 8 pixels.
SHAPES: dict[str, Any] = {
    "circle": "o", "square": "s", "up": "^", "diamond": "D", "down": "v", "plus": "P", "cross": "X", "star": "*", "left": "<",
    "right": ">", "thin": "d", "bow": [(-1, -0.8), (1, 0.8), (1, -0.8), (-1, 0.8), (-1, -0.8)],
    "glass": [(-0.8, -1), (0.8, 1), (-0.8, 1), (0.8, -1), (-0.8, -1)],
}  # fmt: skip
_COLOURS = (
    # Blue and orange come late: in the matrices they mean better and worse.
    ("#4a4e9e", "#a6a9f2"), ("#00855f", "#2ec99b"), ("#a3447d", "#e59cc6"), ("#8a6d00", "#e3c04a"), ("#0072b2", "#56a8e6"),
    ("#d55e00", "#ff8a3d"), ("#ba3535", "#fe968e"), ("#027c7c", "#76c8c7"), ("#864eab", "#cfa1f1"), ("#5b7809", "#a8c378"),
    ("#955c28", "#deac83"), ("#76676b", "#c1b3b7"), ("#b5297b", "#fe8cc5"),
    ("#323981", "#ccd5fe"), ("#076246", "#9edabf"), ("#6c2151", "#fbc5e2"), ("#664f00", "#dac99e"), ("#014671", "#b5ddff"),
    ("#833b02", "#f5bc9d"), ("#7c1117", "#fcc9c4"), ("#045d69", "#a7d4dc"), ("#61038b", "#e7cafd"), ("#395e21", "#bad4ad"),
    ("#5b3b00", "#ebd4b5"), ("#585052", "#cec9ca"), ("#7e0037", "#fdc7d2"),
)  # fmt: skip
_DASHES: tuple[tuple[float, ...], ...] = (
    (), (4, 1.6), (1.2, 1.4), (6, 1.6, 1.2, 1.6), (3, 1.2, 1.2, 1.2, 1.2, 1.2), (8, 2), (2, 1), (10, 1.4, 3, 1.4), (1, 2.6),
    (5, 1, 1, 1), (3, 3), (12, 3), (6, 1, 2, 1, 2, 1),
)  # fmt: skip


def _look(i: int) -> Style:
    """Beyond the thirteen shapes come their outlines, in other tones and with a dash that has one short bit more."""
    shapes, (light, dark) = list(SHAPES), _COLOURS[i]
    again, k = divmod(i, len(shapes))
    dash = (*(_DASHES[k] or (12.0, 1.0)), 0.6, 1.0) if again else _DASHES[k]
    return Style(f"line-{i}", light, dark, dash, shapes[k], bool(again))


STYLES = tuple(_look(i) for i in range(len(_COLOURS)))
"""Twenty-six looks. No two share a shape, a dash or a colour: each alone tells the methods apart, so nothing is lost to somebody who
sees no colours, or on a grey print."""


def _ramp(i: int) -> Style:
    """The ``i``-th look of the ramp: from violet to orange in dark enough tones, on a dark page in bright ones."""
    light, dark = (to_hex(colormaps["plasma"](a + (b - a) * i / (RAMPED - 1))) for a, b in ((0.0, 0.7), (0.36, 0.97)))
    return replace(STYLES[i], name=f"ramp-{i}", light=light, dark=dark)


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
    "INK", "LOOKS", "RAMP", "RULE", "SHAPES", "STYLES", "Style", "axes", "canvas", "colour_bar", "ramp", "short", "style", "svg", "text",
]  # fmt: skip
