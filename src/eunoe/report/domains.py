"""The part of the page for runs over domains: its sections in their order, what ran, matrices, summary and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import TypeVar

from eunoe.report import html
from eunoe.report.answer import heading_and_doubts
from eunoe.report.beside import Sizes, Time
from eunoe.report.capacity import capacity_section
from eunoe.report.costs import costs_section
from eunoe.report.curves import HEAD, Curve
from eunoe.report.detail import READING, by_domain, per_class
from eunoe.report.draw import Style, style
from eunoe.report.lines import over_steps
from eunoe.report.matrices import BASE, GENERAL, Scores, domain_orders, final_scores, is_reference
from eunoe.report.metrics import LM_LOSS, metric_of, typeset
from eunoe.report.overview import forgotten_section, tradeoff_section
from eunoe.report.pick import pick_section
from eunoe.report.plots import colour_bar, colour_limit, heat_maps
from eunoe.report.read import Run
from eunoe.report.retention import kept_by_domains
from eunoe.report.retention_page import retention_section
from eunoe.report.samples_page import samples_section
from eunoe.report.small import curve_panel, limits, stretches
from eunoe.report.summary import LEARNS_NONE, Summary, heading, labels, summarize

T = TypeVar("T")
OfMethod = TypeVar("OfMethod", Sizes, Time)
MAPS, MAPPED = 60, 30
"""Matrices of a metric that are drawn, and the domains of the largest: more would be a page that no browser opens."""


MANY = 6
"""Methods up to which curves share a plot, matrices are in sight, and all that is folded is printed."""


def part(runs: Sequence[Run]) -> html.Part:
    """The part of the page for runs over domains, compared with each other."""
    rows = [row for run in runs for row in run.rows]
    summary, names = summarize(rows), labels(rows)
    looks = _looks(runs, summary, names)
    facts, sizes = _by_label(runs, names, lambda run: run.facts), _grouped(runs, names, lambda run: run.sizes)
    naive = [label for label, known in facts.items() if known.naive]
    answer, sure = heading_and_doubts(summary, naive)
    sections = [
        tradeoff_section(summary, looks),
        pick_section(summary, facts, sizes),
        costs_section(
            summary,
            facts,
            sizes,
            _grouped(runs, names, lambda run: run.times or ()),
            asked=any(run.times is not None for run in runs),
        ),
        _what_ran(runs, names),
        forgotten_section(summary, names, looks),
        *(samples_section(run.name, run.samples, names) for run in runs),
        _matrices(summary, names),
        _summary_tables(summary, _general_note(runs, names)),
        retention_section(kept_by_domains(rows, names)),
        capacity_section(runs, names),
        _curves(runs, names, looks, naive),
        by_domain(summary, names),
        per_class(rows, several=len(runs) > 1),
    ]
    return html.Part(answer, sure, summary.unfinished, sections, READING, compact=len(looks) > MANY)


def _looks(runs: Sequence[Run], summary: Summary, names: Mapping[tuple[str, str], str]) -> dict[str, Style]:
    """A look for each method that has a mark or a curve, those that learn one domain after another first: no look comes twice before
    all have come."""
    lines = [line for line in summary.lines if line.method != BASE]
    first = [line.label for line in lines if not line.no_rate]
    curves = [names.get((run.name, c.label), c.label) for run in runs for cs in run.curves.values() for c in cs]
    once = [line.label for line in lines if line.no_rate != LEARNS_NONE]
    return {label: style(i) for i, label in enumerate(dict.fromkeys([*first, *once, *curves]))}


def _by_label(
    runs: Sequence[Run], names: Mapping[tuple[str, str], str], read: Callable[[Run], Mapping[str, T]]
) -> dict[str, T]:
    """What the runs say of their methods, by the names that the page gives them."""
    return {names.get((run.name, method), method): value for run in runs for method, value in read(run).items()}


def _grouped(
    runs: Sequence[Run], names: Mapping[tuple[str, str], str], read: Callable[[Run], Sequence[OfMethod]]
) -> dict[str, list[OfMethod]]:
    grouped: dict[str, list[OfMethod]] = {}
    for run in runs:
        for one in read(run):
            grouped.setdefault(names.get((run.name, one.method), one.method), []).append(one)
    return grouped


def _what_ran(runs: Sequence[Run], names: Mapping[tuple[str, str], str]) -> str:
    parts = []
    for run in runs:
        scored = final_scores(run.rows)
        facts: list[tuple[str, str]] = []
        learners = dict.fromkeys(row.method for row in scored if row.learnt or is_reference(row))
        methods = [names[(run.name, m)] for m in learners if m != BASE]
        if methods:
            facts.append(("Methods", ", ".join(methods)))
        orders = {order: domains for (_, order), domains in domain_orders(run.rows).items() if domains}
        for order, domains in orders.items():
            facts.append(("Domains" if len(orders) == 1 else f"Order {order}", " → ".join(domains)))
        seeds = list(dict.fromkeys(row.seed for row in scored))
        facts.append(("Seeds" if len(seeds) > 1 else "Seed", ", ".join(map(str, seeds))))
        transfers = list(dict.fromkeys(row.transfer for row in scored if row.transfer))
        if transfers:
            scores = dict.fromkeys(metric_of(row.metric).title for row in scored if row.transfer)
            facts.append(
                ("End tasks", f"scored by {', '.join(scores)}, each on a fine-tuned copy ({', '.join(transfers)})")
            )
        else:
            facts.append(("End tasks", "none in this run"))
        steps = sorted({row.steps for row in scored if row.learnt and row.transfer is None})
        if steps:
            unit = "stage" if any(row.at_once for row in scored) else "domain"
            facts.append((f"Steps a {unit}", f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"))
        texts = sorted({row.n for row in scored if row.transfer is None and row.task != GENERAL})
        if texts:
            facts.append(
                (
                    "Scored tokens",
                    f"{texts[0]:,} a domain" if len(texts) == 1 else f"{texts[0]:,} to {texts[-1]:,} a domain",
                )
            )
        tests = sorted({row.n for row in scored if row.transfer})
        if tests:
            facts.append(
                ("Test rows", f"{tests[0]:,} a task" if len(tests) == 1 else f"{tests[0]:,} to {tests[-1]:,} a task")
            )
        items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
        head = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        parts.append(f"{head}<dl>{items}</dl>{html.short_shots(run.rows)}{_notes(run, names)}")
    return html.section("What ran", *parts)


def _notes(run: Run, names: Mapping[tuple[str, str], str]) -> str:
    """What the methods say of themselves, each sentence once, after the names of those that say it."""
    sayings: dict[str, dict[str, None]] = {}
    for notes in run.notes:
        for line in notes.lines:
            sayings.setdefault(line, {})[names.get((run.name, notes.method), notes.method)] = None
    lines = [f"{', '.join(methods)}: {line}" for line, methods in sayings.items()]
    return html.listed("Notes", lines)


def _general_note(runs: Sequence[Run], names: Mapping[tuple[str, str], str]) -> str:
    """How general text is read, as the methods say it; with their names where not all of them say the same."""
    sayings: dict[str, dict[str, None]] = {}
    for run in runs:
        for notes in run.notes:
            if notes.general is not None:
                sayings.setdefault(notes.general, {})[names.get((run.name, notes.method), notes.method)] = None
    learners = {name for run in runs for row in run.rows if row.learnt for name in [names[(run.name, row.method)]]}
    if len(sayings) == 1 and learners <= set(*sayings.values()):
        return f"{_sentence(next(iter(sayings)))}."
    return " ".join(f"{', '.join(methods)}: {text.rstrip('.')}." for text, methods in sayings.items())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


def _matrices(summary: Summary, names: dict[tuple[str, str], str]) -> str:
    groups: dict[tuple[str, str | None], list[Scores]] = {}
    for scores in summary.matrices:
        groups.setdefault((scores.key.metric, scores.key.transfer), []).append(scores)
    transfers = {transfer for _, transfer in groups if transfer}
    parts = []
    for k, ((name, transfer), all_scores) in enumerate(sorted(groups.items(), key=lambda g: _rank(summary, g[0]))):
        metric = metric_of(name)
        all_scores, left_out = _drawn(all_scores)
        svgs = heat_maps(all_scores, f"matrix-{k}")
        by_order: dict[tuple[str, str], list[str]] = {}
        for scores, svg in zip(all_scores, svgs, strict=True):
            label = names[(scores.key.run, scores.key.method)]
            seeds = len(scores.seeds or scores.reference)
            alt = f"{heading(metric, transfer)}: {label}, a score for each domain after each domain; the numbers are in matrix.csv"
            place = (", ".join(scores.domains), scores.key.order)
            by_order.setdefault(place, []).append(
                html.figure(svg, label, alt, f"mean of {seeds} seeds" if seeds > 1 else "")
            )
        parts.append(f"<h3>{escape(typeset(heading(metric, transfer if len(transfers) > 1 else None)))}</h3>")
        bar = colour_bar(colour_limit(all_scores), metric, f"scale-{k}")
        for i, ((_, order), figures) in enumerate(by_order.items()):
            row = f'<div class="row">{"".join(figures)}</div>'
            if i == 0 and len(figures) > MANY:
                row = f"<details><summary>{len(figures)} matrices</summary>{row}</details>"
            parts.append(html.one_order(row, order, i, len(by_order)))
        parts.append(f'<div class="legend">{bar}</div>' if by_order else "")
        if left_out:
            parts.append(f'<p class="note">{left_out:,} more are not drawn: the page has at most {MAPS} of a metric, of at most {MAPPED} '
                         "domains each. Their numbers are in matrix.csv.</p>")  # fmt: skip
    if not parts:
        return ""
    note = (
        "Row: the model after learning that domain. Column: what was scored. The small number is the move since that column’s "
        "domain was learnt, and the colour shows it, on one scale for all methods of a metric; <b>same</b> means equal to the last "
        "bit in every seed."
    )
    if any(value is not None for scores in summary.matrices for value in scores.mean_before()):
        note += " The row “none yet” is the pretrained model."
    if any(at != j for scores in summary.matrices for j, at in enumerate(scores.places)):
        note += " Domains that were learnt at once have one row, and nothing before it that could be forgotten."
    if any(not scores.seeds for scores in summary.matrices):
        note += " The row “learns none” is a method without post-training, for reference."
    return html.section("Scores after each domain", *parts, f'<p class="note">{note}</p>')


def _drawn(all_scores: Sequence[Scores]) -> tuple[list[Scores], int]:
    """Those that are drawn, and how many are not."""
    drawn = [scores for scores in all_scores if len(scores.domains) <= MAPPED][:MAPS]
    return drawn, len(all_scores) - len(drawn)


def _rank(summary: Summary, kind: tuple[str, str | None]) -> int:
    kinds = [(lines[0].metric.name, lines[0].transfer) for _, lines in summary.sections()]
    return kinds.index(kind) if kind in kinds else len(kinds)


def _summary_tables(summary: Summary, general_note: str) -> str:
    parts = []
    columns = ("Method", "At the end", "Learnt (forward transfer)", "Forgotten", "n")
    for title, lines in summary.sections():
        table = []
        for line in lines:
            estimates = (line.final, line.forward, line.forgetting)
            table.append([escape(line.label), *(html.estimate(e, line.metric) for e in estimates), str(line.n)])
        parts.append(html.table(columns, table, title, sort=True))
    if summary.general:
        parts.append(html.table(
            ("Method", "Before", "After", "Change", "n"),
            ([escape(g.label), *(html.estimate(e, LM_LOSS) for e in (g.before, g.after, g.change)), str(g.n)]
             for g in summary.general),
            "LM loss on general text, nats (lower is better)", sort=True,
        ))  # fmt: skip
        parts.append(f'<p class="note">{escape(typeset(general_note))}</p>' if general_note else "")
    else:
        parts.append('<p class="note">General text was not scored in this run.</p>')
    if not any(line.metric is not LM_LOSS for line in summary.lines):
        parts.append('<p class="note">There are no end-task scores in this run.</p>')
    note = (
        "Mean over n sequences (a method going once through the domains, with one seed) ± half of the 95 % interval of the mean "
        "(Student’s t); no ± where there is one sequence or all are equal. <b>0</b> (exactly) means that not one score moved by one bit; "
        "0.000 is rounded."
    )
    return html.section("Summary", *parts, f'<p class="note">{note}</p>')


def _curves(
    runs: Sequence[Run], names: dict[tuple[str, str], str], looks: Mapping[str, Style], naive: Sequence[str]
) -> str:
    grouped: dict[tuple[str, int, str], list[Curve]] = {}
    for run in runs:
        for place, curves in run.curves.items():
            named = [replace(c, label=names.get((run.name, c.label), c.label)) for c in curves]
            grouped.setdefault(place, []).extend(named)
    if not grouped:
        return html.section(
            "Learning curves", '<p class="note">No curve.csv was found in the run folder, so there are no curves.</p>'
        )
    drawn = {c.label for curves in grouped.values() for c in curves if c.label != HEAD}
    places = {label: i for i, label in enumerate(looks)}
    grouped = {place: sorted(curves, key=lambda c: places[c.label]) for place, curves in grouped.items()}
    keys = {label: look for label, look in looks.items() if label in drawn}
    many = len(keys) > MANY
    behind = next((label for label in naive if label in keys), "")
    orders = list(dict.fromkeys(order for order, _, _ in grouped if order))
    parts = [html.keys(keys)] if keys and not many else []
    for i, order in enumerate(orders):
        stages = {place: curves for place, curves in sorted(grouped.items()) if place[0] == order}
        salt = f"curve-{i}"
        figures = _panels(stages, keys, behind, salt) if many else _plots(stages, keys, salt)
        row = f'<div class="{"small" if many else "row"}">{"".join(figures)}</div>'
        parts.append(html.one_order(row, order, i, len(orders)))
    head = grouped.get(("", -1, HEAD))
    if head:
        svg = over_steps(head, looks, "curve-head")
        parts.append(
            f'<div class="row">{html.figure(svg, "The LM head, before any domain", "training loss of the LM head")}</div>'
        )
    note = "Training loss (nats) in bins of steps, all panels on one scale: the mean over seeds"
    note += ", one domain after another" if many else ", and the range of the seeds as a band"
    note += f"; in grey that of {behind}." if many and behind else "."
    return html.section("Learning curves", *parts, f'<p class="note">{escape(note)}</p>')


Stages = Mapping[tuple[str, int, str], Sequence[Curve]]


def _plots(stages: Stages, looks: Mapping[str, Style], salt: str) -> list[str]:
    """A plot a domain, with a line a method."""
    drawn = [
        value for curves in stages.values() for one in curves for part in stretches({0: [one]}) for value in part.ys
    ]
    ends = limits(drawn, 0.01)
    return [
        html.figure(
            over_steps(curves, looks, f"{salt}-{k}", limits=ends),
            f"{place + 1} {domain}",
            f"training loss over steps on {domain}",
        )
        for k, ((_, place, domain), curves) in enumerate(stages.items())
    ]


def _panels(stages: Stages, looks: Mapping[str, Style], behind: str, salt: str) -> list[str]:
    """A small panel a method, with a line over all its domains, and that of the method ``behind`` in grey."""
    by_method: dict[str, dict[int, list[Curve]]] = {}
    for (_, place, _), curves in stages.items():
        for one in curves:
            by_method.setdefault(one.label, {}).setdefault(place, []).append(one)
    made = {label: stretches(by_method[label]) for label in looks if label in by_method}
    ends = limits([y for own in made.values() for one in own for y in one.ys], 0.01)
    count = 1 + max(place for _, place, _ in stages)
    return [
        html.figure(
            curve_panel(own, made.get(behind, []) if label != behind else [], looks[label], ends, count, f"{salt}-{k}"),
            label,
            f"{label}: training loss, domain after domain",
        )
        for k, (label, own) in enumerate(made.items())
    ]
