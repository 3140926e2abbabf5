"""The tables of methods.md, made from its rows:

python docs/results/methods_tables.py runs/methods_small [peak.csv]

``peak.csv``: lines of a method's name and the most memory that a process learning with it took, in MB.
"""

import csv
import sys
from math import fsum
from pathlib import Path

from eunoe.report.costs import bytes_text
from eunoe.report.matrices import BASE
from eunoe.report.metrics import LM_LOSS, Metric, shown
from eunoe.report.read import read_run
from eunoe.report.summary import Line, summarize
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
    gap = ahead(line, naive)
    text = shown(gap, line.metric, signed=True)
    return f"**{text}**" if distinct(gap) and gap and not gap.exact else text


def main(folder: Path, peaks: dict[str, str]) -> None:
    run = read_run(folder, times=True)
    summary = summarize(run.rows)
    print("\n".join(summary.unfinished))
    general = {g.label: g for g in summary.general}
    order: list[str] = []
    for _, lines in summary.sections():
        metric: Metric = lines[0].metric
        naive = next(line for line in lines if line.method == "ncl")
        own = [line for line in lines if line.final and line.method != BASE]
        if not order:
            own.sort(key=lambda line: line.final.mean)
            order = [line.label for line in own]
        own.sort(key=lambda line: order.index(line.label) if line.label in order else 99)
        text = metric is LM_LOSS
        columns = [
            "method",
            *(["learnt"] if text else []),
            "forgotten",
            "at the end",
            "better than `ncl`",
            *(["general"] if text else []),
        ]
        rows = []
        for line in own:
            change = general.get(line.label)
            cells = [
                f"`{line.label}`",
                *([shown(line.forward, metric)] if text else []),
                shown(line.forgetting, metric),
                shown(line.final, metric),
                against(line, naive),
            ]
            cells += [shown(change.change if change else None, metric, signed=True)] if text else []
            rows.append(cells)
        print(metric.title, metric.unit)
        table(columns, rows)
    seconds: dict[str, list[float]] = {}
    for time in run.times or []:
        seconds.setdefault(time.method, []).append(time.seconds)
    sizes: dict[str, list[tuple[int, int]]] = {}
    for size in run.sizes:
        sizes.setdefault(size.method, []).append((size.checkpoint, sum(size.beside.values())))
    count = {label: len({r.seed for r in run.rows if r.method == label}) for label in order}
    rows = [
        [
            f"`{label}`",
            f"{fsum(seconds[label]) / count[label]:.0f}" if label in seconds else "-",
            peaks.get(label, "-"),
            *(map(bytes_text, map(max, zip(*sizes[label], strict=True))) if label in sizes else "--"),
        ]
        for label in order
    ]
    table(["method", "seconds a sequence", "peak memory, MB", "on disk, a domain", "beside the model"], rows)


if __name__ == "__main__":
    with open(sys.argv[2]) if len(sys.argv) > 2 else open("/dev/null") as file:
        main(Path(sys.argv[1]), dict(csv.reader(file)))
