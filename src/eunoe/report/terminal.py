"""The answer and the tables in a terminal: of runs over domains at 80 columns, of fine-tuning studies at 100."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eunoe.report.answer import answer
from eunoe.report.files import clean
from eunoe.report.metrics import DISTANCE, LM_LOSS, number, shown
from eunoe.report.read import Run
from eunoe.report.retention import Kept, kept_by_domains
from eunoe.report.schema import Row
from eunoe.report.settings import StudySettings
from eunoe.report.study import Result, summarize_study
from eunoe.report.summary import labels, summarize

INTERVAL = "± half the 95 % interval of the mean (Student's t) over"


def print_run(run: Run, console: Console) -> None:
    """The summary of a run folder, whichever kind it is.

    >>> print_run(read_run(Path("runs/demo")), Console())  # doctest: +SKIP
    """
    if run.study is None:
        names = labels(run.rows)
        naive = [names.get((run.name, method), method) for method, known in run.facts.items() if known.naive]
        print_summary(run.rows, console, naive)
    else:
        print_study(run.rows, run.study, console)
    for sentence in run.damaged:
        console.print(_text(sentence, "yellow"))


def _text(words: str, style: str = "") -> Text:
    """Words that may hold a name of the data: nothing in them is markup, and nothing a terminal would obey."""
    return Text(clean(words), style=style)


def print_summary(rows: Sequence[Row], console: Console, naive: Collection[str] = ()) -> None:
    """Of runs over domains: the answer and the tables, readable at 80 columns. ``naive``: the labels of naive training."""
    summary = summarize(rows)
    console.print(_text(answer(summary, naive), "bold"))
    for title, lines in summary.sections():
        table = _table("method", "at the end", "forgotten", "backward", "forward transfer", "n")
        for line in lines:
            metric = line.metric
            backward = (
                "-" if line.backward is None else "0" if line.backward.exact else number(line.backward.mean, metric)
            )
            cells = (
                shown(line.final, metric),
                shown(line.forgetting, metric),
                backward,
                shown(line.forward, metric),
                str(line.n),
            )
            table.add_row(_text(line.label), *map(Text, cells))
        console.print("", _text(title), table, sep="\n")
    if summary.general:
        table = _table("method", "before", "after", "change", "n")
        for g in summary.general:
            table.add_row(_text(g.label), *(Text(shown(e, LM_LOSS)) for e in (g.before, g.after, g.change)), str(g.n))
        console.print("", Text("LM loss on general text, nats (lower is better)"), table, sep="\n")
    _print_kept(kept_by_domains(rows, labels(rows)), console)
    console.print()
    for sentence in summary.unfinished:
        console.print(_text(sentence, "yellow"))
    if any(line.n > 1 for line in summary.lines):
        console.print(Text(f"{INTERVAL} n sequences", style="dim"))


def print_study(rows: Sequence[Row], settings: StudySettings, console: Console) -> None:
    """Of a fine-tuning study: the answer, a table a task, what is preserved, readable at 100 columns."""
    summary = summarize_study(rows, settings)
    console.print(_text(summary.answer, "bold"))
    for task in summary.tasks:
        if not task.results:
            continue
        metric = task.compared
        results = task.results_in(metric.name)
        title = f"{task.name}: {metric.title}, {metric.unit} ({results[0].n:,} rows; higher is better)"
        console.print("", _text(title), _results(results, summary.reference), sep="\n")
        for result in task.results_in(metric.name, "last"):
            if result.point and result.name != result.label:
                tried = len(task.grid.get(result.name, []))
                how = f" (chosen of {tried} on seed {settings.search_seed})" if tried else ""
                console.print(_text(f"{result.name}: {result.point}{how}", "dim"))
    _print_kept(summary.kept, console)
    console.print()
    for sentence in summary.unfinished:
        console.print(_text(sentence, "yellow"))
    if any(len(result.seeds) > 1 for task in summary.tasks for result in task.results):
        console.print(Text(f"{INTERVAL} the seeds", style="dim"))
    if any(result.at == "best" for task in summary.tasks for result in task.results):
        console.print(Text("best: the best of all evaluations, picked by the rows it is a score of", style="dim"))


def _results(results: Sequence[Result], reference: str | None) -> Table:
    compared = any(result.ahead for result in results)
    known = any(result.published is not None for result in results)
    against = [f"over {reference}"] if compared else []
    table = _table("system", "at", "seeds", "median", "max", "mean", *against, *(["published"] if known else []))
    for result in results:
        metric = result.metric
        cells = [
            result.at,
            str(len(result.seeds)),
            number(result.median, metric),
            number(result.best, metric),
            shown(result.scores, metric),
        ]
        if compared:
            cells.append(shown(result.ahead, metric, signed=True))
        if known:
            once = result.published is not None and result.at == results[0].at
            cells.append(f"{result.published:.1f}" if once else "-")
        table.add_row(_text(result.name), *map(Text, cells))
    return table


def _print_kept(kept: Sequence[Kept], console: Console) -> None:
    """How much of the pretrained model is preserved: LM loss of each general text, distance, CKA over all texts."""
    if not kept:
        return
    texts = list(dict.fromkeys(text for one in kept for text in one.texts))
    table = _table("task", *texts, "distance", "CKA", first=2)
    for one in kept:
        losses = [one.texts.get(text) for text in texts]
        alike = [estimate.mean for estimate in one.cka.values()]
        cells = [f"{number(t.before.mean, LM_LOSS)} > {number(t.after.mean, LM_LOSS)}" if t else "-" for t in losses]
        cells.append(number(one.distance.mean, DISTANCE) if one.distance else "-")
        cells.append(f"{sum(alike) / len(alike):.3f}" if alike else "-")
        table.add_row(_text(one.task), _text(one.label), *map(Text, cells))
    title = "Preserved of the pretrained model: LM loss of general text before > after, nats; distance; CKA"
    console.print("", _text(title), table, sep="\n")


def _table(head: str, *columns: str, first: int = 1) -> Table:
    """A plain table whose ``first`` columns hold names."""
    table = Table(pad_edge=False, box=None, padding=(0, 2, 0, 0))
    for name in (head, "by")[:first]:
        table.add_column(name, overflow="fold", max_width=18)
    for name in columns:
        table.add_column(_text(name), justify="right", no_wrap=True)
    return table


__all__ = ["print_run", "print_study", "print_summary"]
