"""The sections of runs over domains: what was forgotten, score by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape

from eunoe.evaluate.matrix import drops
from eunoe.evaluate.scores import wilson_interval
from eunoe.report import html
from eunoe.report.answer import answer
from eunoe.report.capacity import capacity_section
from eunoe.report.classes import class_counts
from eunoe.report.curves import HEAD, Curve
from eunoe.report.draw import Style, style
from eunoe.report.lines import over_steps
from eunoe.report.matrices import BASE, GENERAL, Scores, domain_orders, final_scores, is_reference
from eunoe.report.metrics import LM_LOSS, Estimate, Metric, metric_of, shown, typeset
from eunoe.report.plots import colour_bar, colour_limit, forgetting_plot, heat_maps
from eunoe.report.read import Run
from eunoe.report.retention import kept_by_domains
from eunoe.report.retention_page import retention_section
from eunoe.report.schema import Row
from eunoe.report.sizes import sizes_section
from eunoe.report.summary import Line, Summary, heading, labels, summarize

MAPS, MAPPED = 60, 30
"""Matrices of a metric that are drawn, and the domains of the largest: more would be a page that no browser opens."""


def part(runs: Sequence[Run]) -> html.Part:
    """The part of the page for runs over domains, compared with each other."""
    rows = [row for run in runs for row in run.rows]
    summary, names = summarize(rows), labels(rows)
    learners = [name for (_, method), name in names.items() if method != BASE]
    curve_labels = [names.get((run.name, c.label), c.label) for run in runs for cs in run.curves.values() for c in cs]
    looks = {label: style(i) for i, label in enumerate(dict.fromkeys([*learners, *curve_labels]))}
    sections = [
        _what_ran(runs, names),
        _forgetting(summary, looks),
        _matrices(summary, names),
        _summary_tables(summary, _general_note(runs, names)),
        retention_section(kept_by_domains(rows, names)),
        sizes_section(runs, names),
        capacity_section(runs, names),
        _curves(runs, names, looks),
        _by_domain(summary, names),
        _per_class(rows, several=len(runs) > 1),
    ]
    return html.Part(answer(summary), summary.unfinished, sections, READING)


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


def _forgetting(summary: Summary, looks: dict[str, Style]) -> str:
    figures = []
    for k, (title, lines) in enumerate(summary.sections()):
        if any(line.forgetting for line in lines):
            alt = f"{title}: forgotten, " + "; ".join(
                f"{line.label} {shown(line.forgetting, line.metric)}" for line in lines if line.forgetting
            )
            figures.append(html.figure(forgetting_plot(lines, looks, f"forgetting-{k}"), _title(lines[0]), alt))
    if not figures:
        return ""
    several = any(line.forgetting and line.forgetting.interval for line in summary.lines)
    note = ("The big mark is the mean, the bar its 95 % interval (Student’s t) over sequences, each small dot one sequence; where a "
            "bar contains 0, it cannot be distinguished from 0. " if several
            else "One sequence a method: there is no spread to draw an interval from. ")  # fmt: skip
    note += "Right of 0 is worse than right after learning, left of 0 better."
    return html.section(
        "What was forgotten", f'<div class="row">{"".join(figures)}</div>', f'<p class="note">{note}</p>'
    )


def _title(line: Line) -> str:
    return "LM loss of the domains’ text" if line.metric is LM_LOSS else f"{line.metric.title} on the end tasks"


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
    columns = ("Method", "At the end", "Forgotten", "Backward transfer", "Forward transfer", "n")
    for title, lines in summary.sections():
        table = []
        for line in lines:
            estimates = (line.final, line.forgetting, line.backward, line.forward)
            table.append([escape(line.label), *(html.estimate(e, line.metric) for e in estimates), str(line.n)])
        parts.append(html.table(columns, table, title))
    if summary.general:
        parts.append(html.table(
            ("Method", "Before", "After", "Change", "n"),
            ([escape(g.label), *(html.estimate(e, LM_LOSS) for e in (g.before, g.after, g.change)), str(g.n)]
             for g in summary.general),
            "LM loss on general text, nats (lower is better)",
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


def _curves(runs: Sequence[Run], names: dict[tuple[str, str], str], looks: dict[str, Style]) -> str:
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
    orders = list(dict.fromkeys(order for order, _, _ in grouped if order))
    parts = [html.keys(keys)] if keys else []
    for i, order in enumerate(orders):
        figures = []
        for k, (place, curves) in enumerate(sorted(grouped.items())):
            if place[0] == order:
                caption = f"{place[1] + 1} {place[2]}"
                figures.append(
                    html.figure(
                        over_steps(curves, looks, f"curve-{i}-{k}"),
                        caption,
                        f"training loss over steps on {place[2]}",
                    )
                )
        row = f'<div class="row">{"".join(figures)}</div>'
        parts.append(html.one_order(row, order, i, len(orders)))
    head = grouped.get(("", -1, HEAD))
    if head:
        svg = over_steps(head, looks, "curve-head")
        parts.append(
            f'<div class="row">{html.figure(svg, "The LM head, before any domain", "training loss of the LM head")}</div>'
        )
    note = '<p class="note">Training loss (nats) in bins of steps: the mean over seeds, and the range of the seeds as a band.</p>'
    return html.section("Learning curves", *parts, note)


def _by_domain(summary: Summary, names: dict[tuple[str, str], str]) -> str:
    parts = []
    orders = {(s.key.run, s.key.order) for s in summary.matrices}
    several = len(orders) > len({run for run, _ in orders})
    for title, lines in summary.sections():
        metric, transfer = lines[0].metric, lines[0].transfer
        sure = metric.name == "accuracy"
        group = [s for s in summary.matrices if (s.key.metric, s.key.transfer) == (metric.name, transfer)]
        table = []
        for scores in group:
            label = names[(scores.key.run, scores.key.method)] + (f" ({scores.key.order})" if several else "")
            mean, before, ends, last = scores.mean(), scores.mean_before(), scores.mean_end(), len(scores.domains) - 1
            for j in scores.tasks:
                end, at = ends[j], scores.learnt_at[j]
                after = mean[at][j] if scores.seeds else None
                cells = [
                    escape(label),
                    escape(scores.domains[j]),
                    *(html.value(v, metric) for v in (before[j], after, end)),
                ]
                why = "learns none" if not scores.seeds else "learnt last" if at == last else ""
                cells.append(
                    f'<span class="none">{why}</span>' if why else html.estimate(_drop(scores, j, metric), metric)
                )
                cells.append(f"{scores.n[j]:,}" if j in scores.n else "–")
                if sure:
                    cells.append(_wilson(end, scores.n.get(j)))
                table.append(cells)
        columns = [
            "Method",
            "Domain",
            "Before",
            "Right after",
            "At the end",
            "Forgotten",
            "Tokens" if metric is LM_LOSS else "Test rows",
        ]
        parts.append(html.table(columns + (["95 % at the end"] if sure else []), table, title, text_columns=2))
    if not parts:
        return ""
    note = (
        "Means over seeds. The 95 % interval (Wilson) of an accuracy says how far this test set of n rows may be from the task; "
        "it knows nothing of the spread over seeds, which is in the column before."
    )
    note = note if any(line.metric.name == "accuracy" for line in summary.lines) else "Means over seeds."
    return html.section(
        "Domain by domain",
        f'<details><summary>Every domain’s scores</summary>{"".join(parts)}<p class="note">{note}</p></details>',
    )


def _drop(scores: Scores, j: int, metric: Metric) -> Estimate | None:
    values = []
    for R in scores.seeds.values():
        with suppress(ValueError):
            values.append(drops(R, tasks=[j], higher_is_better=metric.higher_is_better, learnt_at=scores.learnt_at)[j])
    return Estimate(tuple(values), all(value == 0 for value in values)) if values else None


def _wilson(share: float | None, n: int | None) -> str:
    if share is None or not n or not 0 <= share <= 1:
        return html.NONE
    low, high = wilson_interval(round(share * n), n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


WHEN = {"before": "before any domain", "learnt": "right after its domain", "end": "at the end"}


def _per_class(rows: Sequence[Row], *, several: bool) -> str:
    counts = class_counts(rows)
    if not counts:
        return ""
    transfers = {transfer for _, transfer, _ in counts}
    parts = []
    for (run, transfer, task), states in counts.items():
        lines = []
        for (label, when), classes in states.items():
            for i, (name, c) in enumerate(classes.items()):
                recall = c["correct"] / c["support"] if c["support"] else None
                both = c["support"] + c["predicted"]
                f1 = 2 * c["correct"] / both if both else 0.0
                lines.append((
                    escape(f"{label}, {WHEN[when]}") if i == 0 else "", escape(str(name)), f"{c['support']:,}", f"{c['predicted']:,}",
                    f"{c['correct']:,}", "–" if recall is None else f"{100 * recall:.1f}", f"{100 * f1:.1f}",
                ))  # fmt: skip
        title = " · ".join([*([run] if several else []), task, *([transfer] if len(transfers) > 1 else [])])
        table = html.table(
            ("Model", "Class", "Test rows", "Predicted", "Correct", "Recall, %", "F1, %"), lines, text_columns=2
        )
        parts.append(f"<details><summary>{escape(title)}</summary>{table}</details>")
    note = ('<p class="note">Counts are summed over orders, seeds and few-shot draws. A class that is never predicted is a model that '
            "has not learnt it.</p>")  # fmt: skip
    return html.section("End tasks, class by class", *parts, note)


READING = """<section>
<h2>How to read the numbers</h2>
<p>R[i][j] is the score of domain j after learning domains 0 to i, of T domains.</p>
<dl class="terms">
<div><dt>At the end</dt><dd>mean over j of R[T−1][j]: how good the model is at every domain once all are learnt.</dd></div>
<div><dt>Forgotten</dt><dd>mean over i &lt; T−1 of R[i][i] − R[T−1][i], for a loss with the sign turned round: how much worse
each domain but the last is at the end than right after it was learnt. Below 0, it is better.</dd></div>
<div><dt>–</dt><dd>there is no such number: what was learnt last, or all at once, cannot be forgotten yet, and a method that
learns no domain stands here for reference.</dd></div>
<div><dt>Backward transfer</dt><dd>minus “forgotten”.</dd></div>
<div><dt>Forward transfer</dt><dd>mean over i of what R[i][i] is better than the pretrained model that learnt no domain.</dd></div>
<div><dt>LM loss</dt><dd>mean cross-entropy of a scored token of held-out text, in nats.</dd></div>
<div><dt>Macro-F1</dt><dd>unweighted mean of F1 over all classes of the task; a class that never occurs counts as 0.</dd></div>
</dl>
</section>"""
