"""Scores against the number of labelled rows: a study whose tasks are one task with more and more training rows, as one chart.

Tasks belong together where the recipe gives them the same rows and columns and another ``train_rows``. Their name in the chart is what
their names have in common: trec6 of ``trec6_32`` and ``trec6_100``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from eunoe.report import draw, html
from eunoe.report.draw import Style
from eunoe.report.lines import axis_names, ends, line_look
from eunoe.report.metrics import Metric, typeset
from eunoe.report.settings import StudySettings
from eunoe.report.study import Result, StudySummary

Points = list[tuple[int, Result]]
"""Training rows and the result on them, rising."""


def growth(summary: StudySummary, settings: StudySettings) -> dict[str, tuple[Metric, dict[str, Points]]]:
    """Name of the chart -> its metric, and system -> its points; tasks that no other shares its rows with are left out."""
    tasks = {task.name: task for task in summary.tasks}
    charts: dict[str, tuple[Metric, dict[str, Points]]] = {}
    for names in settings.sizes:
        known = sorted((rows, name) for name, rows in names.items() if name in tasks and tasks[name].results)
        if len({rows for rows, _ in known}) < 2:
            continue
        first = tasks[known[0][1]].compared
        systems: dict[str, Points] = {}
        for rows, name in known:
            for result in tasks[name].results_in(first.name, at="last"):
                systems.setdefault(result.name, []).append((rows, result))
        title = re.sub(r"[_-]+\d*$", "", _in_common([name for _, name in known])) or known[0][1]
        charts[title] = (first, systems)
    return charts


def growth_section(summary: StudySummary, settings: StudySettings, looks: Mapping[str, Style], salt: str) -> str:
    """The section with a chart for each such task; empty where there is none."""
    figures, tables, drawn = [], [], set()
    for k, (title, (metric, systems)) in enumerate(growth(summary, settings).items()):
        own = {name: looks.get(name, draw.style(i)) for i, name in enumerate(systems)}
        drawn |= set(own)
        alt = f"{title}: {metric.title} over the number of labelled rows; the numbers are in the table below"
        figures.append(html.figure(chart(systems, own, metric, f"{salt}-growth-{k}"), title, alt))
        sizes = sorted({rows for points in systems.values() for rows, _ in points})
        lines = []
        for name, points in systems.items():
            at = dict(points)
            cells = [html.estimate(at[rows].scores, metric) if rows in at else html.NONE for rows in sizes]
            lines.append([escape(name), *cells])
        columns = ["System", *(f"{rows:,} rows" for rows in sizes)]
        tables.append(html.table(columns, lines, f"{title}: {metric.title}, {metric.unit}"))
    if not figures:
        return ""
    keys = html.keys({name: look for name, look in looks.items() if name in drawn}, marks=True)
    note = ("Score after the last step over the number of labelled rows (logarithmic): mean over the seeds, with the 95 % interval of "
            "the mean where there are several; one that leaves the plot stands whole in the table.")  # fmt: skip
    numbers = f"<details><summary>Every point’s numbers</summary>{''.join(tables)}</details>"
    return html.section("Score against labelled examples", keys, f'<div class="row">{"".join(figures)}</div>', numbers,
                        f'<p class="note">{escape(typeset(note))}</p>')  # fmt: skip


def chart(systems: Mapping[str, Points], looks: Mapping[str, Style], metric: Metric, name: str) -> str:
    """One line a system, a mark and an interval a number of rows."""
    figure, ax = draw.axes(430, 300, left=54, right=14, top=12, bottom=40)
    sizes = sorted({rows for points in systems.values() for rows, _ in points})
    for i, (system, points) in enumerate(systems.items()):
        look = looks[system]
        # marks of one size stand a little apart, or intervals would hide each other
        shift = 1 + 0.035 * (i - (len(systems) - 1) / 2)
        xs = [rows * shift for rows, _ in points]
        ys = [metric.scale * result.scores.mean for _, result in points]
        ax.plot(xs, ys, linewidth=1.8, markersize=6, **line_look(look))
        for x, (_, result) in zip(xs, points, strict=True):
            if interval := ends(result.scores, metric.scale):
                ax.plot([x, x], interval, color=look.light, linewidth=1.2, solid_capstyle="butt")
    ax.set_ylim(*_limits([result for points in systems.values() for _, result in points], metric))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([float(size) for size in sizes]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.yaxis.set_major_locator(MaxNLocator(6))
    axis_names(ax, "labelled rows (logarithmic)", f"{metric.title}, {metric.unit or 'as it is'}")
    return draw.svg(figure, name)


def _limits(results: Sequence[Result], metric: Metric) -> tuple[float, float]:
    """All means and intervals, with a margin; of intervals no more than 0.6 of the means' range, as those of two seeds would flatten
    all else."""
    means = [metric.scale * result.scores.mean for result in results]
    drawn = [*means, *(end for result in results for end in ends(result.scores, metric.scale) or ())]
    around = max(0.6 * (max(means) - min(means)), 0.05 * metric.scale)
    least, most = max(min(drawn), min(means) - around), min(max(drawn), max(means) + around)
    margin = max(0.05 * (most - least), 0.01 * metric.scale)
    return least - margin, most + margin


def _in_common(names: Sequence[str]) -> str:
    """What all names begin with.

    >>> _in_common(["trec6_32", "trec6_100"])
    'trec6_'
    """
    least, most = min(names), max(names)
    return least[: next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))]


__all__ = ["chart", "growth", "growth_section"]
