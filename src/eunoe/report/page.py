"""The report as one HTML file that needs nothing else: no network, no script, no font; style and plots are inside.

The same run folders give the same bytes: the page holds no clock, no path and no time. Everything that comes from data
is escaped, and a content security policy forbids the browser to load anything, whatever a name in the data may say.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from eunoe.atomic import write_bytes
from eunoe.errors import EunoeError
from eunoe.evaluate.matrix import drops
from eunoe.evaluate.scores import wilson_interval
from eunoe.report.plots import (
    STYLES,
    Curve,
    Style,
    colour_bar,
    colour_limit,
    forgetting_plot,
    heat_maps,
    learning_curves,
    style,
)
from eunoe.report.schema import Row, read_rows
from eunoe.report.tables import (
    BASE,
    GENERAL,
    LM_LOSS,
    Estimate,
    Line,
    Metric,
    Scores,
    Summary,
    class_counts,
    domain_orders,
    heading,
    labels,
    metric,
    number,
    shown,
    summarize,
    typeset,
)

HEAD = "LM head"
WIDE = 480


@dataclass(frozen=True)
class Run:
    """What one run folder holds. None where the file is not there."""

    name: str
    rows: list[Row]
    recipe: str | None
    environment: dict[str, Any] | None
    curves: dict[tuple[str, int, str], list[Curve]]
    """(order, place in it, domain) -> curves, labelled with the bare method."""


def write_report(runs: list[Path], out: Path | None = None) -> Path:
    """Write the report of one run folder, or the comparison of several, and return where it stands.

    ``out`` defaults to ``report.html`` in the run folder, or in the current folder if there are several. Raises
    ``EunoeError`` if a folder has no scores or ``out`` cannot be written. Optional files that are missing are named in
    the page.

    >>> write_report([Path("runs/demo")])  # doctest: +SKIP
    PosixPath('runs/demo/report.html')
    """
    if not runs:
        raise EunoeError("no run folder was given. Name one or more: eunoe report RUN [RUN ...]")
    folders = list({run.resolve(): run for run in runs}.values())
    held = _apart(folders, [_read(folder) for folder in folders])
    if out is None:
        out = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    elif out.is_dir():
        out = out / "report.html"
    write_bytes(out, render(held).encode("utf-8", "replace"))
    return out


# -- reading ----------------------------------------------------------------------------------------------------
def _read(folder: Path) -> Run:
    if not folder.is_dir():
        raise EunoeError(f"{folder} is no folder. Make a run first: eunoe run RECIPE --out {folder}")
    rows = [_printable(row) for row in read_rows(folder / "rows.jsonl")]
    if not rows:
        raise EunoeError(
            f"{folder} has no scores: rows.jsonl is missing or empty. Make them first: eunoe run RECIPE --out {folder}"
        )
    recipe = folder / "recipe.yaml"
    environment = None
    with suppress(OSError, ValueError):
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return Run(
        rows[0].run,
        rows,
        recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None,
        environment if isinstance(environment, dict) else None,
        read_curves(folder),
    )


def _printable(row: Row) -> Row:
    """The row with names that any font and encoding can take: half surrogates and control characters become U+FFFD."""

    def clean(text: str) -> str:
        return "".join(c if c.isprintable() else "\ufffd" for c in text)

    return replace(row, run=clean(row.run), method=clean(row.method), order=clean(row.order), task=clean(row.task),
                   metric=clean(row.metric), transfer=None if row.transfer is None else clean(row.transfer),
                   learnt=tuple(map(clean, row.learnt)))  # fmt: skip


def _apart(folders: Sequence[Path], runs: Sequence[Run]) -> list[Run]:
    """The runs under names that differ: the recipe's, or as much of the folder's path as it takes where those are equal."""
    names = [run.name for run in runs]
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        again = {name for name in names if names.count(name) > 1}
        if depth == 1:
            clash = [name in again for name in names]
        elif not again:
            break
        names = ["/".join(path[-depth:]) if c else name for name, path, c in zip(names, paths, clash, strict=True)]
    return [
        replace(run, name=name, rows=[replace(row, run=name) for row in run.rows])
        for run, name in zip(runs, names, strict=True)
    ]


def read_curves(folder: Path) -> dict[tuple[str, int, str], list[Curve]]:
    """The learning curves of a run folder: (order, place, domain) -> a curve per method and seed.

    A line cut short by a kill, or with a loss that is no finite number, is left out; so is a file without the columns
    ``step`` and ``loss``.
    """
    found: dict[tuple[str, int, str], list[Curve]] = {}
    for file in sorted(folder.glob("sequences/*/domains/*/curve.csv")):
        method, _, rest = file.parents[2].name.partition(".")
        order, _, seed = rest.rpartition(".seed")
        place, _, domain = file.parent.name.partition("-")
        if seed.lstrip("-").isdigit() and place.isdigit():
            curve = _curve(file, method, int(seed))
            if curve.steps:
                found.setdefault((order, int(place), domain), []).append(curve)
    head = folder / "head" / "curve.csv"
    if head.is_file() and (curve := _curve(head, HEAD, 0)).steps:
        found[("", -1, HEAD)] = [curve]
    return found


def _curve(file: Path, label: str, seed: int) -> Curve:
    points: dict[int, float] = {}
    with open(file, encoding="utf-8", errors="replace", newline="") as lines:
        for line in csv.DictReader(lines):
            with suppress(KeyError, TypeError, ValueError):
                step, loss = int(line["step"]), float(line["loss"])
                if isfinite(loss) and step > 0:
                    points[step] = loss
    return Curve(label, seed, tuple(sorted(points)), tuple(points[step] for step in sorted(points)))


# -- the page ---------------------------------------------------------------------------------------------------
def render(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    rows = [row for run in runs for row in run.rows]
    summary, names = summarize(rows), labels(rows)
    learners = [name for (_, method), name in names.items() if method != BASE]
    curve_labels = [names.get((run.name, c.label), c.label) for run in runs for cs in run.curves.values() for c in cs]
    looks = {label: style(i) for i, label in enumerate(dict.fromkeys([*learners, *curve_labels]))}
    title = " and ".join(run.name for run in runs)
    sections = [
        _what_ran(runs, rows, names),
        _forgetting(summary, looks),
        _matrices(summary, names),
        _summary_tables(summary),
        _curves(runs, names, looks),
        _by_domain(summary, names),
        _per_class(rows, several=len(runs) > 1),
        *(_settings(run, several=len(runs) > 1) for run in runs),
        READING,
    ]
    body = "\n".join(section for section in sections if section)
    unfinished = "".join(f"<li>{escape(sentence)}</li>" for sentence in summary.unfinished)
    warning = f'<ul class="warning">{unfinished}</ul>\n' if unfinished else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>eunoe: {escape(title)}</title>\n<style>\n{_css()}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="run">eunoe · {escape(title)}</p>\n<h1>{escape(typeset(summary.answer))}</h1>\n{warning}</header>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _figure(svg: str, caption: str, alt: str, note: str = "") -> str:
    labelled = svg.replace("<svg ", f'<svg aria-label="{escape(alt)}" ', 1)
    small = f" <small>{escape(note)}</small>" if note else ""
    top = f"<figcaption>{escape(caption)}{small}</figcaption>" if caption else ""
    # A plot wider than a phone keeps its size and scrolls in its own box: shrunk, its text could not be read.
    width = float(svg.split(' width="', 1)[1].split('"', 1)[0])
    return f'<figure>{top}<div class="plot{" wide" if width > WIDE else ""}">{labelled}</div></figure>'


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]], title: str = "", text_columns: int = 1) -> str:
    """A table in a box that scrolls by itself, its title outside of it. Cells are HTML; the first ``text_columns`` hold words."""

    def cell(tag: str, i: int, content: str) -> str:
        return f"<{tag}>{content}</{tag}>" if i < text_columns else f'<{tag} class="n">{content}</{tag}>'

    head = "".join(cell("th", i, escape(name)) for i, name in enumerate(columns))
    body = "".join("<tr>" + "".join(cell("td", i, c) for i, c in enumerate(line)) + "</tr>\n" for line in lines)
    above = f"<h3>{escape(typeset(title))}</h3>\n" if title else ""
    return f'{above}<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def _estimate(estimate: Estimate | None, of: Metric) -> str:
    if estimate is None:
        return '<span class="none">–</span>'
    text = typeset(shown(estimate, of))
    if estimate.exact:
        return '<b class="exact">0</b> <small>(exactly)</small>'
    mean, mark, half = text.partition(" ± ")
    return f"{mean}<small> ± {half}</small>" if mark else mean


def _what_ran(runs: Sequence[Run], rows: Sequence[Row], names: dict[tuple[str, str], str]) -> str:
    parts = []
    for run in runs:
        mine = [row for row in rows if row.run == run.name]
        facts: list[tuple[str, str]] = []
        methods = [names[(run.name, m)] for m in dict.fromkeys(row.method for row in mine) if m != BASE]
        if methods:
            facts.append(("Methods", ", ".join(methods)))
        orders = {order: d for (name, order), d in domain_orders(rows).items() if name == run.name and d}
        for order, domains in orders.items():
            facts.append(("Domains" if len(orders) == 1 else f"Order {order}", " → ".join(domains)))
        seeds = list(dict.fromkeys(row.seed for row in mine))
        facts.append(("Seeds" if len(seeds) > 1 else "Seed", ", ".join(map(str, seeds))))
        transfers = list(dict.fromkeys(row.transfer for row in mine if row.transfer))
        if transfers:
            scores = dict.fromkeys(metric(row.metric).title for row in mine if row.transfer)
            facts.append(
                ("End tasks", f"scored by {', '.join(scores)}, each on a fine-tuned copy ({', '.join(transfers)})")
            )
        else:
            facts.append(("End tasks", "none in this run"))
        steps = sorted({row.steps for row in mine if row.learnt and row.transfer is None})
        if steps:
            facts.append(("Steps a domain", f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"))
        texts = sorted({row.n for row in mine if row.transfer is None and row.task != GENERAL})
        if texts:
            facts.append(
                (
                    "Scored tokens",
                    f"{texts[0]:,} a domain" if len(texts) == 1 else f"{texts[0]:,} to {texts[-1]:,} a domain",
                )
            )
        tests = sorted({row.n for row in mine if row.transfer})
        if tests:
            facts.append(
                ("Test rows", f"{tests[0]:,} a task" if len(tests) == 1 else f"{tests[0]:,} to {tests[-1]:,} a task")
            )
        items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
        head = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        parts.append(f"{head}<dl>{items}</dl>")
    return _section("What ran", *parts)


def _forgetting(summary: Summary, looks: dict[str, Style]) -> str:
    figures = []
    for k, (title, lines) in enumerate(summary.sections()):
        if any(line.forgetting for line in lines):
            alt = f"{title}: forgotten, " + "; ".join(
                f"{line.label} {shown(line.forgetting, line.metric)}" for line in lines if line.forgetting
            )
            figures.append(_figure(forgetting_plot(lines, looks, f"forgetting-{k}"), _title(lines[0]), alt))
    if not figures:
        return ""
    several = any(line.forgetting and line.forgetting.interval for line in summary.lines)
    note = ("The big mark is the mean, the bar its 95 % interval (Student’s t) over sequences, each small dot one sequence. " if several
            else "One sequence a method: there is no spread to draw an interval from. ")  # fmt: skip
    note += "Right of 0 is worse than right after learning; left of 0, later domains helped."
    return _section("What was forgotten", f'<div class="row">{"".join(figures)}</div>', f'<p class="note">{note}</p>')


def _title(line: Line) -> str:
    return "LM loss of the domains’ text" if line.metric is LM_LOSS else f"{line.metric.title} on the end tasks"


def _matrices(summary: Summary, names: dict[tuple[str, str], str]) -> str:
    groups: dict[tuple[str, str | None], list[Scores]] = {}
    for scores in summary.matrices:
        groups.setdefault((scores.key.metric, scores.key.transfer), []).append(scores)
    transfers = {transfer for _, transfer in groups if transfer}
    parts = []
    for k, ((name, transfer), all_scores) in enumerate(sorted(groups.items(), key=lambda g: _rank(summary, g[0]))):
        of = metric(name)
        svgs = heat_maps(all_scores, f"matrix-{k}")
        by_order: dict[tuple[str, str], list[str]] = {}
        for scores, svg in zip(all_scores, svgs, strict=True):
            label = names[(scores.key.run, scores.key.method)]
            seeds = len(scores.seeds)
            alt = f"{heading(of, transfer)}: {label}, a score for each domain after each domain; the numbers are in matrix.csv"
            place = (", ".join(scores.domains), scores.key.order)
            by_order.setdefault(place, []).append(
                _figure(svg, label, alt, f"mean of {seeds} seeds" if seeds > 1 else "")
            )
        parts.append(f"<h3>{escape(typeset(heading(of, transfer if len(transfers) > 1 else None)))}</h3>")
        bar = colour_bar(colour_limit(all_scores), of, f"scale-{k}")
        for i, ((_, order), figures) in enumerate(by_order.items()):
            row = f'<div class="row">{"".join(figures)}</div>'
            parts.append(_one_order(row, order, i, len(by_order)))
        parts.append(f'<div class="legend">{bar}</div>')
    if not parts:
        return ""
    note = (
        "Row: the model after learning that domain. Column: what was scored. The small number is the move since that column’s "
        "domain was learnt, and the colour shows it, on one scale for all methods of a metric; <b>same</b> means equal to the last "
        "bit in every seed. The top row is the pretrained model."
    )
    return _section("Scores after each domain", *parts, f'<p class="note">{note}</p>')


def _one_order(row: str, order: str, i: int, of: int) -> str:
    """The plots of the ``i``-th of several orders: the first in sight, the others folded."""
    if i == 0:
        return (f'<p class="note">Order {escape(order)}</p>' if of > 1 else "") + row
    return f"<details><summary>Order {escape(order)}</summary>{row}</details>"


def _rank(summary: Summary, kind: tuple[str, str | None]) -> int:
    kinds = [(lines[0].metric.name, lines[0].transfer) for _, lines in summary.sections()]
    return kinds.index(kind) if kind in kinds else len(kinds)


def _summary_tables(summary: Summary) -> str:
    parts = []
    columns = ("Method", "At the end", "Forgotten", "Backward transfer", "Forward transfer", "n")
    for title, lines in summary.sections():
        table = []
        for line in lines:
            estimates = (line.final, line.forgetting, line.backward, line.forward)
            table.append([escape(line.label), *(_estimate(e, line.metric) for e in estimates), str(line.n)])
        parts.append(_table(columns, table, title))
    if summary.general:
        parts.append(_table(
            ("Method", "Before", "After", "Change"),
            ([escape(g.label), *(_estimate(e, LM_LOSS) for e in (g.before, g.after, g.change))] for g in summary.general),
            "LM loss on general text, plug-ins off, nats (lower is better)",
        ))  # fmt: skip
    else:
        parts.append('<p class="note">General text was not scored in this run.</p>')
    if not any(line.metric is not LM_LOSS for line in summary.lines):
        parts.append('<p class="note">There are no end-task scores in this run.</p>')
    note = (
        "Mean over n sequences (a method going once through the domains, with one seed) ± half of the 95 % interval of the mean "
        "(Student’s t); no ± where there is one sequence or all are equal. <b>0</b> (exactly) means that not one score moved by one bit; "
        "0.000 is rounded."
    )
    return _section("Summary", *parts, f'<p class="note">{note}</p>')


def _curves(runs: Sequence[Run], names: dict[tuple[str, str], str], looks: dict[str, Style]) -> str:
    grouped: dict[tuple[str, int, str], list[Curve]] = {}
    for run in runs:
        for place, curves in run.curves.items():
            named = [replace(c, label=names.get((run.name, c.label), c.label)) for c in curves]
            grouped.setdefault(place, []).extend(named)
    if not grouped:
        return _section(
            "Learning curves", '<p class="note">No curve.csv was found in the run folder, so there are no curves.</p>'
        )
    drawn = {c.label for curves in grouped.values() for c in curves if c.label != HEAD}
    grouped = {place: sorted(curves, key=lambda c: list(looks).index(c.label)) for place, curves in grouped.items()}
    keys = "".join(f"<li>{_swatch(looks[label])} {escape(label)}</li>" for label in looks if label in drawn)
    orders = list(dict.fromkeys(order for order, _, _ in grouped if order))
    parts = [f'<ul class="keys">{keys}</ul>'] if keys else []
    for i, order in enumerate(orders):
        figures = []
        for k, (place, curves) in enumerate(sorted(grouped.items())):
            if place[0] == order:
                caption = f"{place[1] + 1} {place[2]}"
                figures.append(
                    _figure(
                        learning_curves(curves, looks, f"curve-{i}-{k}"),
                        caption,
                        f"training loss over steps on {place[2]}",
                    )
                )
        row = f'<div class="row">{"".join(figures)}</div>'
        parts.append(_one_order(row, order, i, len(orders)))
    head = grouped.get(("", -1, HEAD))
    if head:
        svg = learning_curves(head, looks, "curve-head")
        parts.append(
            f'<div class="row">{_figure(svg, "The LM head, before any domain", "training loss of the LM head")}</div>'
        )
    note = '<p class="note">Training loss (nats) in bins of steps: the mean over seeds, and the range of the seeds as a band.</p>'
    return _section("Learning curves", *parts, note)


def _swatch(look: Style) -> str:
    """A bit of the method's line, for the key of the curves."""
    i = STYLES.index(look)
    dash = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in look.dash)}"' if look.dash else ""
    line = f'<line x1="0" y1="6" x2="34" y2="6" stroke="var(--line-{i})" stroke-width="2.5"{dash}/>'
    return f'<svg width="34" height="12" viewBox="0 0 34 12" aria-hidden="true">{line}</svg>'


def _by_domain(summary: Summary, names: dict[tuple[str, str], str]) -> str:
    parts = []
    orders = {(s.key.run, s.key.order) for s in summary.matrices}
    several = len(orders) > len({run for run, _ in orders})
    for title, lines in summary.sections():
        of, transfer = lines[0].metric, lines[0].transfer
        sure = of.name == "accuracy"
        group = [s for s in summary.matrices if (s.key.metric, s.key.transfer) == (of.name, transfer)]
        table = []
        for scores in group:
            label = names[(scores.key.run, scores.key.method)] + (f" ({scores.key.order})" if several else "")
            mean, before, last = scores.mean(), scores.mean_before(), len(scores.domains) - 1
            for j in scores.tasks:
                end = mean[last][j]
                cells = [
                    escape(label),
                    escape(scores.domains[j]),
                    *(_value(v, of) for v in (before[j], mean[j][j], end)),
                ]
                cells.append(
                    _estimate(_drop(scores, j, of), of) if j < last else '<span class="none">learnt last</span>'
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
            "Tokens" if of is LM_LOSS else "Test rows",
        ]
        parts.append(_table(columns + (["95 % at the end"] if sure else []), table, title, text_columns=2))
    if not parts:
        return ""
    note = (
        "Means over seeds. The 95 % interval (Wilson) of an accuracy says how far this test set of n rows may be from the task; "
        "it knows nothing of the spread over seeds, which is in the column before."
    )
    note = note if any(line.metric.name == "accuracy" for line in summary.lines) else "Means over seeds."
    return _section(
        "Domain by domain",
        f'<details><summary>Every domain’s scores</summary>{"".join(parts)}<p class="note">{note}</p></details>',
    )


def _value(value: float | None, of: Metric) -> str:
    return '<span class="none">–</span>' if value is None else typeset(number(value, of))


def _drop(scores: Scores, j: int, of: Metric) -> Estimate | None:
    values = []
    for R in scores.seeds.values():
        with suppress(ValueError):
            values.append(drops(R, tasks=[j], higher_is_better=of.higher_is_better)[j])
    return Estimate(tuple(values), all(value == 0 for value in values)) if values else None


def _wilson(share: float | None, n: int | None) -> str:
    if share is None or not n or not 0 <= share <= 1:
        return '<span class="none">–</span>'
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
        table = _table(
            ("Model", "Class", "Test rows", "Predicted", "Correct", "Recall, %", "F1, %"), lines, text_columns=2
        )
        parts.append(f"<details><summary>{escape(title)}</summary>{table}</details>")
    note = '<p class="note">Counts are summed over seeds. A class that is never predicted is a model that has not learnt it.</p>'
    return _section("End tasks, class by class", *parts, note)


def _settings(run: Run, *, several: bool) -> str:
    parts = []
    environment = dict(run.environment or {})
    command = environment.pop("command", None)
    if command:
        parts.append(f"<h3>How to repeat it</h3><pre>{escape(str(command))}</pre>")
    elif run.environment is None:
        parts.append(
            '<p class="note">environment.json is not in the run folder: versions and the command are not known.</p>'
        )
    else:
        parts.append('<p class="note">environment.json names no command.</p>')
    if run.recipe is None:
        parts.append('<p class="note">recipe.yaml is not in the run folder: the settings are not known.</p>')
    else:
        parts.append(
            f"<details><summary>Settings (recipe.yaml, as resolved)</summary><pre>{escape(run.recipe)}</pre></details>"
        )
    if environment:
        lines = (
            (escape(str(k)), escape(v if isinstance(v, str) else json.dumps(v))) for k, v in sorted(environment.items())
        )
        parts.append(
            f"<details><summary>Versions and machine</summary>{_table(('What', 'Value'), lines, text_columns=2)}</details>"
        )
    return _section(f"Settings of {run.name}" if several else "Settings", *parts)


READING = """<section>
<h2>How to read the numbers</h2>
<p>R[i][j] is the score of domain j after learning domains 0 to i, of T domains.</p>
<dl class="terms">
<div><dt>At the end</dt><dd>mean over j of R[T−1][j]: how good the model is at every domain once all are learnt.</dd></div>
<div><dt>Forgotten</dt><dd>mean over i &lt; T−1 of R[i][i] − R[T−1][i], for a loss with the sign turned round: how much worse
each domain but the last is at the end than right after it was learnt. Below 0, later domains helped.</dd></div>
<div><dt>Backward transfer</dt><dd>minus “forgotten”.</dd></div>
<div><dt>Forward transfer</dt><dd>mean over i of what R[i][i] is better than the pretrained model that learnt no domain.</dd></div>
<div><dt>LM loss</dt><dd>mean cross-entropy of a scored token of held-out text, in nats.</dd></div>
<div><dt>Macro-F1</dt><dd>unweighted mean of F1 over all classes of the task; a class that never occurs counts as 0.</dd></div>
</dl>
</section>"""


def _css() -> str:
    light = "".join(f" --line-{i}: {look.light};" for i, look in enumerate(STYLES))
    dark = "".join(f" --line-{i}: {look.dark};" for i, look in enumerate(STYLES))
    return CSS.replace("/*light*/", light).replace("/*dark*/", dark)


CSS = """:root { color-scheme: light dark; --page: #ffffff; --ink: #1c1e21; --soft: #5b616b; --rule: #8a8f98; --line: #dcdfe4;
  --box: #f5f6f8; --warn: #fff3d6;/*light*/ }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #15171a; --ink: #e8e9eb; --soft: #a4abb5; --rule: #7b828c; --line: #343940; --box: #1f2328; --warn: #3d3113;/*dark*/ }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
header { border-bottom: 1px solid var(--line); padding-bottom: 20px; }
.run { margin: 0 0 6px; color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
h1 { font-size: clamp(21px, 3.2vw, 30px); line-height: 1.3; font-weight: 650; margin: 0; max-width: 30em; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; margin: 40px 0 14px; }
h3 { font-size: 16px; margin: 26px 0 10px; overflow-wrap: anywhere; }
p { max-width: 46em; }
.note, small { color: var(--soft); }
.note { font-size: 14px; }
small { font-size: .86em; }
.warning { background: var(--warn); border-radius: 6px; padding: 10px 14px 10px 30px; margin: 16px 0 0; font-size: 14px;
  overflow-wrap: anywhere; }
dl { display: grid; gap: 6px; margin: 0; }
dl div { display: grid; grid-template-columns: 9.5em 1fr; gap: 12px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; max-width: 46em; }
.row { display: flex; flex-wrap: wrap; gap: 22px 30px; align-items: flex-start; }
figure { margin: 0; max-width: 100%; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
figcaption small { font-weight: 400; }
.plot { overflow-x: auto; }
svg { max-width: 100%; height: auto; display: block; stroke-linejoin: round; stroke-linecap: butt; }
@media screen { .wide svg { max-width: none; } }
svg text { font-variant-numeric: tabular-nums; }
.legend { margin: 12px 0 8px; }
.keys { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 0 0 12px; overflow-wrap: anywhere; }
.keys svg { display: inline-block; vertical-align: middle; margin-right: 4px; }
.scroll { overflow-x: auto; margin: 0 0 20px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { text-align: left; padding: 6px 22px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; color: var(--soft); font-size: 14px; vertical-align: bottom; border-bottom-color: var(--rule); }
td:not(.n) { overflow-wrap: anywhere; min-width: 5em; }
.n { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 4px; }
.none { color: var(--soft); }
details { border: 1px solid var(--line); border-radius: 6px; margin: 10px 0; }
summary { padding: 10px 14px; cursor: pointer; overflow-wrap: anywhere; }
details > :not(summary) { margin: 4px 14px 14px; }
pre { background: var(--box); border-radius: 6px; padding: 12px 14px; overflow-x: auto; margin: 0 0 12px;
  font: 13px/1.5 ui-monospace, monospace; }
.terms { margin-top: 10px; font-size: 15px; }
@media (max-width: 600px) {
  main { padding: 18px 16px 40px; }
  dl div { grid-template-columns: 1fr; gap: 0; }
  dl { gap: 10px; }
  th, td { padding-right: 16px; }
  .plot svg { min-width: min(100%, 300px); }
}
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h1 { font-size: 17pt; }
  h2 { break-after: avoid; margin-top: 22pt; font-size: 13pt; }
  h3, thead, summary, figcaption { break-after: avoid; }
  figure, tr, .legend, .scroll { break-inside: avoid; }
  .legend { break-before: avoid; }
  .row { display: grid; grid-template-columns: 1fr 1fr; gap: 12pt 16pt; }
  table { font-size: 9pt; }
  th { font-size: 8.5pt; }
  th, td { padding: 3pt 12pt 3pt 0; }
  .scroll, .plot { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 8.5pt; }
  details { border: 0; }
  summary { padding: 4pt 0; font-weight: 600; list-style: none; }
  details > :not(summary) { margin: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""

__all__ = ["read_curves", "render", "write_report"]
