"""The tables of methods.md, made from a run's rows:

python docs/results/methods_tables.py runs/methods_small [docs/results/methods_small.peak.csv]

The second file has lines ``method,MB``: what ``python -m benchmarks memory`` prints.
"""

import csv
import sys
from pathlib import Path
from statistics import median

from eunoe.report.costs import bytes_text
from eunoe.report.matrices import BASE
from eunoe.report.metrics import LM_LOSS, Estimate, Metric, shown
from eunoe.report.read import Run, read_run
from eunoe.report.summary import Line, Summary, summarize
from eunoe.report.tradeoff import ahead, distinct


def table(columns: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def against(line: Line, naive: Line) -> str:
    """How much better than naive training at the end, seed by seed; bold where the interval does not contain 0."""
    if line.method == naive.method:
        return "-"
    return marked(ahead(line, naive), line.metric)


def marked(gap: Estimate | None, metric: Metric) -> str:
    """A difference, bold where its interval does not contain 0; ``-`` where there is none."""
    text = shown(gap, metric, signed=True)
    return f"**{text}**" if distinct(gap) and gap and not gap.exact else text


def by_metric(summary: Summary) -> list[dict[str, Line]]:
    """For each metric its lines by label, the best LM loss at the end first."""
    each = [
        {line.label: line for line in lines if line.final and line.method != BASE} for _, lines in summary.sections()
    ]
    order = sorted(each[0], key=lambda label: each[0][label].final.mean)
    return [{label: lines[label] for label in order if label in lines} for lines in each]


def losses(lines: dict[str, Line], summary: Summary) -> None:
    general = {g.label: g.change for g in summary.general}
    table(
        ["method", "learnt", "forgotten", "at the end", "better than `ncl`", "general"],
        [
            [f"`{label}`", shown(line.forward, LM_LOSS), shown(line.forgetting, LM_LOSS), shown(line.final, LM_LOSS),
             against(line, lines["ncl"]), shown(general.get(label), LM_LOSS, signed=True)]
            for label, line in lines.items()
        ],
    )  # fmt: skip


def end_tasks(metrics: list[dict[str, Line]]) -> None:
    columns = ["method"]
    for lines in metrics:
        columns += [next(iter(lines.values())).metric.title, "forgotten", "better than `ncl`"]
    rows = []
    for label in metrics[0]:
        row = [f"`{label}`"]
        for lines in metrics:
            line = lines[label]
            row += [shown(line.final, line.metric), shown(line.forgetting, line.metric), against(line, lines["ncl"])]
        rows.append(row)
    table(columns, rows)


def costs(run: Run, labels: list[str], peaks: dict[str, str]) -> None:
    seconds: dict[str, dict[int, float]] = {}
    for time in run.times or []:
        of_seed = seconds.setdefault(time.method, {})
        of_seed[time.seed] = of_seed.get(time.seed, 0.0) + time.seconds
    sizes: dict[str, list[tuple[int, int]]] = {}
    for size in run.sizes:
        sizes.setdefault(size.method, []).append((size.checkpoint, sum(size.beside.values())))
    table(
        ["method", "learnt in, seconds", "most memory, MB", "checkpoint of a domain", "beside the model"],
        [
            [f"`{label}`", f"{median(seconds[label].values()):.0f}" if label in seconds else "-", peaks.get(label, "-"),
             *map(bytes_text, map(max, zip(*sizes[label], strict=True)))]
            for label in labels
            if label in sizes
        ],
    )  # fmt: skip


def main(folder: Path, peaks: dict[str, str]) -> None:
    run = read_run(folder, times=True)
    summary = summarize(run.rows)
    print("\n".join(summary.unfinished))
    text, *tasks = by_metric(summary)
    losses(text, summary)
    if tasks:
        end_tasks(tasks)
    costs(run, list(text), peaks)


if __name__ == "__main__":
    with open(sys.argv[2] if len(sys.argv) > 2 else "/dev/null") as file:
        main(Path(sys.argv[1]), dict(csv.reader(file)))
