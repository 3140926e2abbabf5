"""The sections of a fine-tuning study: scores, what was lost, the frontier between the two, and how it went over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape

from eunoe.report import html
from eunoe.report.curves import LOSS, Curve
from eunoe.report.draw import Style, ramp, style
from eunoe.report.growth import growth_section
from eunoe.report.lines import frontier, over_steps
from eunoe.report.metrics import DISTANCE, LAMBDA, LM_LOSS, metric_of, number, typeset
from eunoe.report.read import Run
from eunoe.report.retention_page import retention_section
from eunoe.report.settings import StudySettings
from eunoe.report.study import (
    END,
    Cited,
    Result,
    Spot,
    StudySummary,
    TaskResults,
    cited,
    point,
    summarize_study,
    system,
)

TOGETHER = 12
"""A task's search is drawn in one plot up to this many points; more are drawn system by system."""
RETURNS = 2.0
"""Steps are drawn on a logarithmic axis where a run comes this much nearer to the pretrained weights than it began:
a random start is pulled back within a small share of its steps."""


def part(run: Run, settings: StudySettings, salt: str) -> html.Part:
    """The part of the page for one study; ``salt`` keeps the ids of its plots apart from those of other parts."""
    summary = summarize_study(run.rows, settings)
    systems = dict.fromkeys([*settings.systems, *(system(str(row.transfer)) for row in run.rows)])
    looks = {name: style(i) for i, name in enumerate(systems)}
    names = list(dict.fromkeys(result.name for task in summary.tasks for result in task.results))
    published = _note(settings)
    sections = [
        _what_ran(run, summary, settings),
        growth_section(summary, settings, _looks(names, looks), f"{salt}-growth"),
        _scores(summary, published),
        retention_section(summary.kept, _looks(names, looks), f"{salt}-kept"),
        _frontiers(summary, looks, salt),
        _cited(cited(settings, run.observed), published),
        _steps(run, summary, settings, looks, salt),
    ]
    return html.Part(summary.answer, "", summary.unfinished, sections, READING)


def _looks(names: Sequence[str], systems: Mapping[str, Style]) -> dict[str, Style]:
    """A system looks the same everywhere; several points of one follow each other on the ramp."""
    if all(name in systems for name in names):
        return {name: look for name, look in systems.items() if name in names}
    return dict(zip(names, ramp(len(names)), strict=True))


def _what_ran(run: Run, summary: StudySummary, settings: StudySettings) -> str:
    first = [(task, task.compared, task.results_in(task.compared.name)[0].n) for task in summary.tasks if task.results]
    facts = (
        [("Tasks", ", ".join(f"{task.name} ({metric.title}, {n:,} rows)" for task, metric, n in first))]
        if first
        else []
    )
    systems = dict.fromkeys(system(str(row.transfer)) for row in run.rows)
    facts.append(
        ("Systems", ", ".join(name for name in dict.fromkeys([*settings.systems, *systems]) if name in systems))
    )
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for task in summary.tasks:
        seeds = {seed for result in task.results for seed in result.seeds}
        by_seeds.setdefault(tuple(sorted(seeds)), []).append(task.name)
    seeds_told = [
        ", ".join(map(str, s)) + (f" ({', '.join(t)})" if len(by_seeds) > 1 else "") for s, t in by_seeds.items() if s
    ]
    if seeds_told:
        facts.append(("Seeds", "; ".join(seeds_told)))
    tried = sum(len(labels) for task in summary.tasks for labels in task.grid.values())
    if tried:
        by = "after the last step" if settings.search_by == "last" else "at the best evaluation"
        facts.append(
            (
                "Search",
                f"{tried} points on seed {settings.search_seed}, compared by the score {by}; that seed enters no average",
            )
        )
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return html.section("What ran", f"<dl>{items}</dl>", html.short_shots(run.rows))


# -- scores -----------------------------------------------------------------------------------------------------
def _scores(summary: StudySummary, published: str) -> str:
    parts: list[str] = []
    more: list[str] = []
    for task in summary.tasks:
        for i, metric in enumerate(task.metrics):
            results = task.results_in(metric.name)
            title = f"{task.name}: {metric.title}, {metric.unit} ({results[0].n:,} rows; higher is better)"
            table = _table(results, summary.reference, title)
            (parts if i == 0 else more).append(table)
        if task.grid and not task.results:
            parts.append(
                f'<p class="note">{escape(task.name)}: the search is still running; there is no other seed yet.</p>'
            )
    if more:
        parts.append(f"<details><summary>The tasks’ other metrics</summary>{''.join(more)}</details>")
    if not parts:
        return ""
    both = any(result.at == "best" for task in summary.tasks for result in task.results)
    notes = ["Mean over the seeds ± half of the 95 % interval of the mean (Student’s t); no ± where there is one seed."]
    if any(result.ahead for task in summary.tasks for result in task.results):
        notes.append(f"Against {summary.reference}: the mean difference seed by seed, with its own interval.")
    if both:
        notes.append("“Best” is the best of all evaluations of a run by the task’s first metric, picked and scored by the same rows, so it "
                     "flatters; “last” is after the last step.")  # fmt: skip
    if any(result.published is not None for task in summary.tasks for result in task.results):
        notes.append(published)
    return html.section("Scores", *parts, f'<p class="note">{escape(typeset(" ".join(notes)))}</p>')


def _note(settings: StudySettings) -> str:
    """What the published numbers are, in the recipe's words if it has any."""
    words = settings.published_note or "it may be another model, budget or kind of average than ours."
    return f"Published: what the recipe cites; {words}"


def _cited(by_task: Mapping[str, Sequence[Cited]], published: str) -> str:
    """Distances and target losses at the end of the run beside the published ones, a line a system or point."""
    tables = []
    for task, numbers in by_task.items():
        kinds = list(dict.fromkeys(one.metric for one in numbers))
        by = {(one.label, one.metric): one for one in numbers}
        lines = []
        for label in dict.fromkeys(one.label for one in numbers):
            cells = [escape(label)]
            for kind in kinds:
                one = by.get((label, kind))
                cells += [html.estimate(one.ours, kind), f"{one.published:g}"] if one else [html.NONE, html.NONE]
            lines.append(cells)
        columns = ["System", *(name for kind in kinds for name in (f"{kind.title}, ours", "Published"))]
        tables.append(html.table(columns, lines, f"{task}: at the end of the run"))
    if not tables:
        return ""
    note = f"Ours: the distance after the last step; the training loss as mean over the last {100 * END:g} % of the steps. {published}"
    return html.section("Beside the published curves", *tables, f'<p class="note">{escape(typeset(note))}</p>')


def _table(results: Sequence[Result], reference: str | None, title: str) -> str:
    """Only the columns that something stands in."""
    compared = any(result.ahead for result in results)
    known = any(result.published is not None for result in results)
    pointed = any(result.point and result.name != result.label for result in results)
    columns = ["System", *(["Setting"] if pointed else []), "Step", "Seeds", "Median", "Max", "Mean"]
    columns += ([f"Against {reference}"] if compared else []) + (["Published"] if known else [])
    lines, last_label = [], ""
    for result in results:
        first = result.label != last_label
        last_label = result.label
        steps = f"{result.steps[0]:,}" + (f" to {result.steps[-1]:,}" if len(result.steps) > 1 else "")
        cells = [escape(result.name) if first else ""]
        if pointed:
            cells.append(escape(result.point) if first and result.name != result.label else "")
        cells.append(f"{result.at} <small>({steps})</small>")
        cells += [
            str(len(result.seeds)),
            html.value(result.median, result.metric),
            html.value(result.best, result.metric),
        ]
        cells.append(html.estimate(result.scores, result.metric))
        if compared:
            cells.append(html.estimate(result.ahead, result.metric, signed=True) if result.ahead else html.NONE)
        if known:
            cells.append(f"{result.published:.1f}" if first and result.published is not None else "")
        lines.append(cells)
    return html.table(columns, lines, title, text_columns=3 if pointed else 2)


# -- score against what was lost --------------------------------------------------------------------------------
def _frontiers(summary: StudySummary, looks: Mapping[str, Style], salt: str) -> str:
    figures, tables = [], []
    drawn: set[str] = set()
    searched = False
    for k, task in enumerate(summary.tasks):
        spots = summary.spots.get(task.name, [])
        if len(spots) < 2:
            continue
        metric = task.compared
        drawn |= {spot.system for spot in spots}
        searched |= any(spot.searched for spot in spots)
        alt = f"{task.name}: score against the rise of the LM loss of general text; the numbers are in the table below"
        figures.append(html.figure(frontier(spots, looks, metric, f"{salt}-frontier-{k}"), task.name, alt))
        lines = [_spot_line(spot, metric.name) for spot in spots]
        columns = ("System", "Setting", "Seeds", "Score", "LM loss, rise", "Distance")
        tables.append(
            html.table(columns, lines, f"{task.name}: {metric.title}, {metric.unit}", text_columns=3, sort=True)
        )
    if not figures:
        return ""
    keys = html.keys({name: look for name, look in looks.items() if name in drawn}, marks=True)
    note = "Up: better at the task. Left: more is kept of the pretrained model. Scores after the last step. "
    if searched:
        note += ("Small marks: the points of the search, one seed each. Large marks: what was reported, over its seeds, with 95 % "
                 "intervals. ")  # fmt: skip
    note += "The line joins those points of a system that no other of its points beats in both."
    numbers = f"<details><summary>Every point’s numbers</summary>{''.join(tables)}</details>"
    return html.section("Task score against retention", keys, f'<div class="row">{"".join(figures)}</div>', numbers,
                        f'<p class="note">{escape(typeset(note))}</p>')  # fmt: skip


def _spot_line(spot: Spot, name: str) -> list[str]:
    seeds = "search" if spot.searched else str(len(spot.score.values))
    far = typeset(number(spot.distance, DISTANCE)) if spot.distance is not None else html.NONE
    return [escape(spot.system), escape(point(spot.label)) or html.NONE, seeds, html.estimate(spot.score, metric_of(name)),
            html.estimate(spot.lost, LM_LOSS, signed=True), far]  # fmt: skip


# -- over the steps ---------------------------------------------------------------------------------------------
def _steps(run: Run, summary: StudySummary, settings: StudySettings, looks: Mapping[str, Style], salt: str) -> str:
    """For each task: the reported systems, and below, folded, the points of the search; one line each."""
    parts = []
    for k, task in enumerate(summary.tasks):
        names = {result.label: result.name for result in task.results}
        by_name = _looks(list(dict.fromkeys(names.values())), looks)
        body = _panels(run, task, names, by_name, lambda seed: seed != settings.search_seed, f"{salt}-steps-{k}")
        if body:
            parts.append(f"<h3>{escape(task.name)}</h3>{body}")
        labels = [label for of_system in task.grid.values() for label in of_system]
        groups = [("all systems", labels)] if len(labels) <= TOGETHER else list(task.grid.items())
        for i, (title, group) in enumerate(groups):
            points = dict(zip(group, ramp(len(group)), strict=True))
            body = _panels(run, task, {label: label for label in group}, points, lambda seed: seed == settings.search_seed,
                           f"{salt}-search-{k}-{i}")  # fmt: skip
            if body:
                what = f"{task.name}: every point of the search ({title}, seed {settings.search_seed})"
                parts.append(f"<details><summary>{escape(what)}</summary>{body}</details>")
    note = "One line a system or point: the mean over its seeds, and their range as a band; long runs in bins of steps."
    return html.section("Over the steps", *parts, f'<p class="note">{note}</p>') if parts else ""


def _panels(
    run: Run,
    task: TaskResults,
    names: Mapping[str, str],
    looks: Mapping[str, Style],
    wanted: Callable[[int], bool],
    salt: str,
) -> str:
    """Target loss, score, distance and lambda over the steps, each where it was recorded; empty where nothing was."""
    first = task.compared
    kinds = [(LOSS, "Target loss", "training loss", 1.0), (first.name, "Score", f"{first.title}, {first.unit}", first.scale),
             (DISTANCE.name, "Distance to the pretrained weights", "Euclidean distance", 1.0),
             (LAMBDA.name, LAMBDA.title, LAMBDA.name, 1.0)]  # fmt: skip
    curves: dict[str, list[Curve]] = {}
    for what, *_ in kinds:
        observed = [c for c in run.observed.get((task.name, what), []) if c.label in names and wanted(c.seed)]
        curves[what] = [replace(curve, label=names[curve.label]) for curve in observed]
    log_steps = any(c.loss[0] > RETURNS * min(c.loss) > 0 for c in curves[DISTANCE.name])
    figures, drawn = [], set()
    for what, caption, axis, scale in kinds:
        if curves[what]:
            drawn |= {curve.label for curve in curves[what]}
            svg = over_steps(curves[what], looks, f"{salt}-{what}", axis, scale, log_steps=log_steps)
            figures.append(html.figure(svg, caption, f"{task.name}: {caption.lower()} over the optimizer steps"))
    if not figures:
        return ""
    keys = html.keys({label: look for label, look in looks.items() if label in drawn}, marks=True)
    return f'{keys}<div class="row">{"".join(figures)}</div>'


READING = """<section>
<h2>How to read the numbers</h2>
<dl class="terms">
<div><dt>Last, best</dt><dd>the score after the last step; the best of all evaluations of a run, by the task’s first metric.</dd></div>
<div><dt>Median, max</dt><dd>over the seeds of a system; papers on GLUE report these of five.</dd></div>
<div><dt>Against</dt><dd>mean over the common seeds of a system’s score minus the first system’s. Where the interval contains 0,
the difference cannot be distinguished from 0.</dd></div>
<div><dt>Accuracy, F1</dt><dd>share of correct rows; F1 of the positive class.
Macro-F1 is the unweighted mean of F1 over the classes.</dd></div>
<div><dt>Matthews</dt><dd>Matthews’ correlation between gold and predicted classes, times 100; 0 for a constant answer.</dd></div>
<div><dt>Pearson, Spearman</dt><dd>correlation between gold and predicted numbers, times 100; 0 for a constant answer.</dd></div>
<div><dt>LM loss</dt><dd>mean cross-entropy of a scored token of general text, in nats, under the model’s original LM head.</dd></div>
</dl>
</section>"""

__all__ = ["part"]
