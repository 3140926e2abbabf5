"""The first sections of runs over domains: learnt against forgotten, and how each domain was forgotten, method by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from eunoe.report import html
from eunoe.report.draw import Style, ramp
from eunoe.report.metrics import LM_LOSS, shown, typeset
from eunoe.report.small import forgotten, forgotten_panel, limits
from eunoe.report.summary import Line, Summary
from eunoe.report.tradeoff import Tradeoff, tradeoff
from eunoe.report.tradeoff_plot import tradeoff_plot

IN_SIGHT = 2
"""Pictures of the trade-off that are not folded: of the text, and of the end tasks' first metric."""
PANELS = 60
"""Panels of a metric that are drawn."""


def tradeoff_section(summary: Summary, looks: Mapping[str, Style]) -> str:
    """The picture of each metric; empty where no method has both numbers."""
    figures, drawn = [], dict[str, None]()
    for k, (_, lines) in enumerate(summary.sections()):
        if both := tradeoff(lines):
            figures.append(_picture(both, lines, looks, f"tradeoff-{k}"))
            drawn |= dict.fromkeys(mark.label for mark in both.marks)
    if not figures:
        return ""
    several = any(line.forgetting and line.forgetting.interval for line in summary.lines)
    note = "Further left: less forgotten. Further up: more learnt. " + (
        "The bars are 95 % intervals of the means (Student’s t) over sequences. " if several
        else "One sequence a method: there is no spread to draw an interval from. ")  # fmt: skip
    note += "The grey steps are the front: no other method beats those on it in both."
    if any(line.no_rate for line in summary.lines):
        note += (
            " Dashed lines are what cannot forget: the pretrained model, and methods that learn nothing or all at once."
        )
    more = figures[IN_SIGHT:]
    return html.section(
        "Learnt against forgotten",
        html.keys({label: look for label, look in looks.items() if label in drawn}, lines=False, marks=True),
        *figures[:IN_SIGHT],
        f"<details><summary>By the other metrics</summary>{''.join(more)}</details>" if more else "",
        f'<p class="note">{note}</p>',
    )


def _picture(both: Tradeoff, lines: Sequence[Line], looks: Mapping[str, Style], name: str) -> str:
    """Once for a wide page or paper, once for a phone: the page shows one of them."""
    title, metric = plain_title(lines[0]), both.metric
    marks = "; ".join(
        f"{mark.label} learnt {shown(mark.learnt, metric)}, forgot {shown(mark.forgot, metric)}" for mark in both.marks
    )
    alt = f"{title}, learnt against forgotten, {metric.unit}: {marks}. On the front: {', '.join(mark.label for mark in both.front)}"
    count = len(both.marks) + len(both.levels)
    sizes = {"broad": (760.0, 360.0 + 6 * min(count, 30)), "slim": (352.0, 300.0 + 10 * min(count, 30))}
    return "".join(
        f'<div class="names {kind}">{html.figure(tradeoff_plot(both, looks, f"{name}-{kind}", *size), title, alt)}</div>'
        for kind, size in sizes.items()
    )


def plain_title(line: Line) -> str:
    return "LM loss of the domains’ text" if line.metric is LM_LOSS else f"{line.metric.title} on the end tasks"


def forgotten_section(summary: Summary, names: Mapping[tuple[str, str], str], looks: Mapping[str, Style]) -> str:
    """A panel a method and order: each domain from when it was learnt to the end. Empty where nothing was scored again."""
    parts: list[str] = []
    for k, (_, lines) in enumerate(summary.sections()):
        metric = lines[0].metric
        group = [s for s in summary.matrices if (s.key.metric, s.key.transfer) == (metric.name, lines[0].transfer)]
        forgot = {line.label: line.forgetting for line in lines}
        panels = [(s, paths) for s in group for paths in [forgotten(s, metric)] if paths]
        if not panels:
            continue
        left, panels = len(panels) - PANELS, panels[:PANELS]
        ends = limits([value for _, paths in panels for path in paths for value in path.forgot], 10**-metric.decimals)
        by_order: dict[tuple[str, str], list[str]] = {}
        seen: dict[tuple[str, ...], dict[str, None]] = {}
        for scores, paths in panels:
            seen.setdefault(scores.domains, {}).update(dict.fromkeys(path.domain for path in paths))
        domain_looks = {order: dict(zip(seen[order], ramp(len(seen[order])), strict=True)) for order in seen}
        for i, (scores, paths) in enumerate(panels):
            label = names[(scores.key.run, scores.key.method)]
            svg = forgotten_panel(
                paths, domain_looks[scores.domains], metric, ends, len(scores.domains), f"forgot-{k}-{i}"
            )
            alt = f"{label}: by how much each domain is worse after each later one, {metric.unit}"
            figure = html.figure(svg, label, alt, typeset(shown(forgot[label], metric)) if forgot.get(label) else "")
            by_order.setdefault((scores.key.order, html.keys(domain_looks[scores.domains], marks=True)), []).append(
                figure
            )
        body = []
        for i, ((order, key), figures) in enumerate(by_order.items()):
            row = f'{key}<div class="small">{"".join(figures)}</div>'
            body.append(html.one_order(row, order, i, len(by_order)))
        if left > 0:
            body.append(f'<p class="note">{left:,} more are not drawn; their numbers are in matrix.csv.</p>')
        title = f"{plain_title(lines[0])}, {metric.unit}"
        whole = "".join(body)
        parts.append(
            f"<h3>{escape(title)}</h3>{whole}"
            if not parts
            else f"<details><summary>{escape(title)}</summary>{whole}</details>"
        )
    if not parts:
        return ""
    note = ("One panel a method, all on one scale: how many domains were learnt, and by how much each is worse than right after it was "
            "learnt; below 0 it is better. Means over the seeds. Beside the name: forgotten at the end.")  # fmt: skip
    return html.section("What was forgotten, and when", *parts, f'<p class="note">{note}</p>')


__all__ = ["forgotten_section", "plain_title", "tradeoff_section"]
