"""The picture of learnt against forgotten: a mark a method with its intervals and its name beside it, the front, and levels.

Names are put where they cover no mark, no other name and no interval, the nearest free place first; a name that is away from its
mark is joined to it by a thin line. A name for which there is no place is left to the key below the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import cos, hypot, pi, sin
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from eunoe.report import draw
from eunoe.report.draw import INK, RULE, Style
from eunoe.report.lines import ends
from eunoe.report.metrics import typeset
from eunoe.report.tradeoff import Tradeoff

FONT = 11.0
MARK = 6.0
"""Half the side of the box of a mark, in pixels."""
LONGEST = 22


class Box(NamedTuple):
    """In pixels, y upward."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def inside(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Its point nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


def tradeoff_plot(shown: Tradeoff, looks: Mapping[str, Style], name: str, width: float, height: float) -> str:
    """An SVG of that size in pixels. Left is less forgotten, up is better learnt."""
    metric, scale = shown.metric, shown.metric.scale
    figure, ax = draw.axes(width, height, left=54, right=10, top=14, bottom=42)
    ax.grid(visible=False)
    ax.axvline(0, color=RULE, linewidth=1.4)
    for mark in shown.marks:
        look, x, y = looks[mark.label], scale * mark.forgot.mean, scale * mark.learnt.mean
        for k, estimate in enumerate((mark.forgot, mark.learnt)):
            if span := ends(estimate, scale):
                ax.plot(*((span, [y, y]) if k == 0 else ([x, x], span)), color=look.light, linewidth=1.3, alpha=0.55,
                        solid_capstyle="butt")  # fmt: skip
    _front(ax, shown, scale)
    for level in shown.levels.values():
        ax.axhline(scale * level, color=INK, linewidth=1.0, linestyle=(0, (5, 3)), alpha=0.75)
    for mark in shown.marks:
        ax.plot([scale * mark.forgot.mean], [scale * mark.learnt.mean], markersize=8.5, linestyle="none", zorder=4,
                **looks[mark.label].mark)  # fmt: skip
    ax.margins(x=0.07, y=0.09)
    ax.autoscale_view()
    for limits, widen in ((ax.get_xlim(), ax.set_xlim), (ax.get_ylim(), ax.set_ylim)):
        if limits[1] - limits[0] < 10**-metric.decimals:
            widen(sum(limits) / 2 - 1, sum(limits) / 2 + 1)  # nothing differs: any scale would be made of rounding
    if not shown.gained and not metric.higher_is_better:
        ax.set_ylim(*reversed(ax.get_ylim()))
    ax.xaxis.set_major_locator(MaxNLocator(max(3, int(width // 90))))
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(f"forgotten, {metric.unit} (left is better)", fontsize=10.5, color=INK)
    what = "learnt" if shown.gained else "right after learning"
    ax.set_ylabel(f"{what}, {metric.unit} (up is better)", fontsize=10.5, color=INK)
    _names(ax, shown, looks)
    return draw.svg(figure, name)


def _front(ax: Any, shown: Tradeoff, scale: float) -> None:
    """From each mark of the front to the right, as whatever lies there is beaten, and up to the next."""
    front = [(scale * mark.forgot.mean, scale * mark.learnt.mean) for mark in shown.front]
    if len(front) > 1:
        ax.plot(*zip(*front, strict=True), drawstyle="steps-post", color=INK, linewidth=1.1, alpha=0.45, zorder=1)


# -- names ------------------------------------------------------------------------------------------------------
def _names(ax: Any, shown: Tradeoff, looks: Mapping[str, Style]) -> None:
    """Write the names of levels and marks; all places are worked out in pixels first."""
    box, scale = ax.bbox, shown.metric.scale
    frame = Box(box.x0 + 2, box.y0 + 2, box.x1 - 2, box.y1 + 10)
    at = {
        mark.label: tuple(ax.transData.transform((scale * mark.forgot.mean, scale * mark.learnt.mean)))
        for mark in shown.marks
    }
    taken = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in at.values()]
    bars: list[Box] = []
    for mark in shown.marks:
        x, y = at[mark.label]
        for k, estimate in enumerate((mark.forgot, mark.learnt)):
            if span := ends(estimate, scale):
                low, high = (ax.transData.transform((end, end))[k] for end in span)
                low, high = min(low, high), max(low, high)
                bars.append(Box(low, y - 1, high, y + 1) if k == 0 else Box(x - 1, low, x + 1, high))
    corners = [at[mark.label] for mark in shown.front]
    for (x, y), (u, v) in pairwise(corners):
        bars += [Box(x, y - 1, u, y + 1), Box(u - 1, min(y, v), u + 1, max(y, v))]
    level_at: dict[str, float] = {}
    for label, level in shown.levels.items():
        level_at[label] = ax.transData.transform((0, scale * level))[1]
        bars.append(Box(frame.left, level_at[label] - 1, frame.right, level_at[label] + 1))
    for labels, y in _together(level_at):
        text = ", ".join(draw.short(label, LONGEST) for label in labels)
        spot = next(
            (spot for spot in _along(frame, _width(text), y) if not any(spot.meets(one) for one in taken)), None
        )
        if spot:
            taken.append(spot)
            _write(ax, spot, text)
    for label, spot in places(
        at, {label: _width(draw.short(label, LONGEST)) for label in at}, frame, taken, bars
    ).items():
        (x, y), (near, high) = at[label], spot.nearest(*at[label])
        if hypot(near - x, high - y) > 1.7 * MARK:
            (x0, y0), (x1, y1) = ax.transData.inverted().transform([(x, y), (near, high)])
            ax.plot([x0, x1], [y0, y1], color=RULE, linewidth=0.7, zorder=2, scalex=False, scaley=False)
        _write(ax, spot, draw.short(label, LONGEST), looks[label].light)


def _write(ax: Any, spot: Box, text: str, color: str = INK) -> None:
    x, y = ax.transData.inverted().transform(((spot.left + spot.right) / 2, (spot.bottom + spot.top) / 2))
    # parse_math: a `$` in somebody's name is a dollar, not a formula
    ax.text(x, y, typeset(text), fontsize=FONT, ha="center", va="center", color=color, parse_math=False, zorder=5)


def _width(text: str) -> float:
    """About how wide the reader's font draws it; East Asian and other wide letters fill a square."""
    return 4 + sum(FONT if ord(letter) > 0x1100 else 0.6 * FONT for letter in text)


def _together(level_at: Mapping[str, float]) -> list[tuple[list[str], float]]:
    """Levels that are drawn within a line's height get one text."""
    groups: list[tuple[list[str], float]] = []
    for label, y in sorted(level_at.items(), key=lambda one: one[1]):
        if groups and y - groups[-1][1] < FONT + 3:
            groups[-1][0].append(label)
        else:
            groups.append(([label], y))
    return groups


def _along(frame: Box, width: float, y: float) -> Iterator[Box]:
    """Places just above a level, or below it, from the right to the left."""
    right = frame.right
    while right - width > frame.left:
        for bottom in (y + 2, y - 2 - FONT - 3):
            spot = Box(right - width, bottom, right, bottom + FONT + 3)
            if spot.inside(frame):
                yield spot
        right -= 12


def places(
    at: Mapping[str, tuple[float, ...]],
    widths: Mapping[str, float],
    frame: Box,
    taken: Sequence[Box],
    bars: Sequence[Box],
) -> dict[str, Box]:
    """Where each name stands: inside ``frame``, on no ``taken`` box (which hold the marks) and on no other name; off ``bars`` where that
    is possible nearby. Names of marks in a crowd choose first. Left out where there is no place.

    >>> places({"a": (50, 50)}, {"a": 20}, Box(0, 0, 100, 100), [Box(44, 44, 56, 56)], [])
    {'a': Box(left=58.0, bottom=43.0, right=78.0, top=57.0)}
    """
    crowd = {label: sum(hypot(x - u, y - v) < 60 for u, v in at.values()) for label, (x, y) in at.items()}
    blocked, placed, lines = list(taken), dict[str, Box](), list[tuple[float, float, float, float]]()
    for label in sorted(at, key=lambda label: -crowd[label]):
        x, y = at[label]
        best: tuple[float, Box] | None = None
        for far, spot in _around(x, y, widths[label]):
            if best and far >= best[0]:
                break  # what follows is further away
            if not spot.inside(frame) or any(spot.meets(box) for box in blocked):
                continue
            lead = (x, y, *spot.nearest(x, y))
            others = [box for box in blocked if not (box.left < x < box.right and box.bottom < y < box.top)]
            if far > MARK and (
                any(_crosses(lead, line) for line in lines) or any(_through(lead, box) for box in others)
            ):
                continue
            cost = far + 25 * sum(spot.meets(bar) for bar in bars) + sum(15 for line in lines if _through(line, spot))
            if best is None or cost < best[0]:
                best = (cost, spot)
        if best:
            placed[label] = best[1]
            blocked.append(best[1])
            lines.append((x, y, *best[1].nearest(x, y)))
    return placed


def _around(x: float, y: float, width: float) -> Iterator[tuple[float, Box]]:
    """Boxes around a mark, the nearest first, to the right first."""
    half = (FONT + 3) / 2
    for ring in range(20):
        away = MARK + 2 + 9 * ring
        for step in (0, 8, 4, 12, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11):
            dx, dy = cos(step * pi / 8), sin(step * pi / 8)
            left = x + away * dx if dx > 0.3 else x + away * dx - width if dx < -0.3 else x - width / 2 + away * dx
            middle = y + (away * dy if abs(dx) > 0.3 else (away + half - 2) * dy)
            yield 9.0 * ring, Box(left, middle - half, left + width, middle + half)


def _crosses(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Do two lines (x, y, x, y) cross?"""

    def side(line: tuple[float, ...], x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return side(a, b[0], b[1]) * side(a, b[2], b[3]) < 0 and side(b, a[0], a[1]) * side(b, a[2], a[3]) < 0


def _through(line: tuple[float, ...], box: Box) -> bool:
    """Does a line go through a box? Looked at in steps of a few pixels."""
    length = hypot(line[2] - line[0], line[3] - line[1])
    steps = max(2, int(length // 4))
    return any(
        box.left < line[0] + (line[2] - line[0]) * k / steps < box.right
        and box.bottom < line[1] + (line[3] - line[1]) * k / steps < box.top
        for k in range(steps + 1)
    )


__all__ = ["Box", "places", "tradeoff_plot"]
