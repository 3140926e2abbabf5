"""Matrices of a run over domains as SVG text. ``draw`` says how plots are made."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from eunoe.report import draw
from eunoe.report.draw import RULE
from eunoe.report.matrices import Scores
from eunoe.report.metrics import Metric, metric_of, number

# Better is blue, worse is orange, unchanged is nearly white. The ends are as dark as black text on them allows.
CHANGE = LinearSegmentedColormap.from_list("change", ["#6aaed8", "#f4f3f0", "#f0953f"])


# -- matrices ---------------------------------------------------------------------------------------------------
def heat_maps(all_scores: Sequence[Scores], name: str) -> list[str]:
    """One SVG for each of several matrices of one metric, all on one colour scale.

    A cell shows the score (mean over seeds) and, below the diagonal, how far it moved since the domain was learnt;
    the colour shows that move, as domains differ far more in their level than in what is forgotten of them. The row on
    top, uncoloured, is the pretrained model. Domains that were learnt at once have one row; so has a method that learns none.
    """
    limit = colour_limit(all_scores)
    return [_heat_map(scores, limit, f"{name}-{i}") for i, scores in enumerate(all_scores)]


def colour_limit(all_scores: Sequence[Scores]) -> float:
    """The largest move of any cell, in the metric's stored unit: the end of the colour scale (0: nothing moved)."""
    moves = [change[0] for scores in all_scores for change in _changes(scores).values()]
    return max((abs(move) for move in moves), default=0.0)


def _changes(scores: Scores) -> dict[tuple[int, int], tuple[float, bool]]:
    """(i, j) below the diagonal -> the mean move since j was learnt, or learnt again, above 0 if the score rose; and whether all are 0."""
    changes = {}
    for i in range(len(scores.domains)):
        for j in scores.columns:
            at = max((visit for visit in scores.visits(j) if visit <= i), default=i)
            pairs = [(R[i][j], R[at][j]) for R in scores.seeds.values() if at < i]
            moves = [now - then for now, then in pairs if now is not None and then is not None]
            if moves:
                changes[(i, j)] = (fsum(moves) / len(moves), all(move == 0 for move in moves))
    return changes


def _heat_map(scores: Scores, limit: float, name: str) -> str:
    metric, domains = metric_of(scores.key.metric), [(j, scores.domains[j]) for j in scores.columns]
    before, changes = scores.mean_before(), _changes(scores)
    with_before = any(value is not None for value in before)
    rows = _rows(scores)
    gutter = 14 + 6.0 * max(map(len, [*(label for label, *_ in rows), "after learning"]))
    wide, high, gap = 66.0, 46.0, 10.0 if with_before else 0.0
    top = 40.0
    width = gutter + wide * len(domains) + 2
    height = top + high * len(rows) + (30 + gap if with_before else 0) + 2
    figure, ax = draw.canvas(width, height)
    draw.text(ax, gutter - 8, top - 10, "after learning", ha="right", size=10.5)
    draw.text(ax, gutter + 2, 9, "score on", ha="left", size=10.5)
    for c, (j, domain) in enumerate(domains):
        draw.text(ax, gutter + wide * (c + 0.5), top - 10, f"{j + 1} {draw.short(domain, 8)}", size=10.5)
    y = top
    if with_before:
        draw.text(ax, gutter - 8, y + 14, "none yet", ha="right", size=10.5)
        for c, (j, _) in enumerate(domains):
            if (value := before[j]) is not None:
                draw.text(ax, gutter + wide * (c + 0.5), y + 14, number(value, metric), size=11.5)
        y += 30
        ax.plot([gutter, width - 2], [y + gap / 2 - 1] * 2, color=RULE, linewidth=1)
        y += gap
    sign = -1.0 if metric.higher_is_better else 1.0
    for k, (label, i, means) in enumerate(rows):
        middle = y + high * (k + 0.5)
        draw.text(ax, gutter - 8, middle, label, ha="right", size=10.5)
        for c, (j, _) in enumerate(domains):
            x = gutter + wide * c
            if (value := means[j]) is None:
                if scores.places[j] < i and j in scores.tasks:
                    draw.text(ax, x + wide / 2, middle, "·", size=12)
                continue
            move, exact = changes.get((i, j), (0.0, False))
            colour = CHANGE(0.5 + 0.5 * sign * move / limit) if limit else CHANGE(0.5)
            ax.add_patch(Rectangle((x + 1, y + high * k + 1), wide - 2, high - 2, facecolor=colour, edgecolor=RULE,
                                   linewidth=1.6 if i in scores.visits(j) else 0.4))  # fmt: skip
            lift = 7 if (i, j) in changes else 0
            draw.text(ax, x + wide / 2, middle - lift, number(value, metric), size=12.5, color="#0c0d0e")
            if lift:
                said = "same" if exact else number(move, metric, signed=True)
                draw.text(ax, x + wide / 2, middle + 10, said, size=10.5, color="#0c0d0e")
    return draw.svg(figure, name)


def _rows(scores: Scores) -> list[tuple[str, int, list[float | None]]]:
    """Of each state that there is: its label, after how many domains it is (from 0; -1: none is learnt), its scores."""
    if not scores.seeds:
        return [("learns none", -1, scores.mean_end())]
    rows = []
    for i, means in enumerate(scores.mean()):
        together = scores.places.count(i)
        if together:
            label = (
                f"{i + 1} {draw.short(scores.domains[i], 15)}"
                if together == 1
                else f"{i + 2 - together} to {i + 1} at once"
            )
            rows.append((label, i, means))
    return rows


def colour_bar(limit: float, metric: Metric, name: str) -> str:
    """The legend of ``heat_maps``: what the colours mean, with the ends of the scale in the metric's unit."""
    end = number(limit, metric)
    ends = (f"better by {end}", f"forgotten: {end} {metric.unit}") if limit else ("better", "forgotten")
    return draw.colour_bar(CHANGE, (ends[0], "as when learnt", ends[1]), name)


__all__ = ["colour_bar", "colour_limit", "heat_maps"]
