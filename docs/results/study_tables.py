"""The tables of ulmfit.md and transfer.md, made from the rows of a fine-tuning study:

python docs/results/study_tables.py runs/ulmfit_ablation_small
python docs/results/study_tables.py runs/transfer_curve finetuning      # and each way above fine-tuning, by paired seeds
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from methods_tables import marked, table

from eunoe.report.growth import growth
from eunoe.report.metrics import Estimate, shown
from eunoe.report.read import read_run
from eunoe.report.settings import StudySettings
from eunoe.report.study import Result, StudySummary, TaskResults, summarize_study


def places(values: Sequence[float]) -> list[int]:
    """The place of each, 1 for the highest; equal ones share theirs."""
    return [1 + sum(other > value for other in values) for value in values]


def scores(task: TaskResults, reference: str | None) -> None:
    """One metric of a task, its systems in the recipe's order: ours, against the first, and the published score with both places."""
    results = task.results_in(task.compared.name, "last")
    ranked = [r for r in results if r.published is not None]
    ours, theirs = places([r.scores.mean for r in ranked]), places([float(r.published or 0) for r in ranked])
    place = {r.label: (o, t) for r, o, t in zip(ranked, ours, theirs, strict=True)}
    columns = [f"{task.name}, {results[0].n:,} rows", "seeds", task.compared.title, f"above `{reference}`"]
    rows = []
    for r in results:
        row = [f"`{r.name}`", str(len(r.seeds)), shown(r.scores, r.metric), marked(r.ahead, r.metric)]
        if place:
            own, published = place.get(r.label, ("-", "-"))
            row += [str(own), str(published), "-" if r.published is None else f"{r.published:.2f}"]
        rows.append(row)
    table(columns + (["place", "published place", "published"] if place else []), rows)


def above(result: Result, other: Result) -> Estimate:
    """The difference of two systems by the seeds that both have."""
    own, theirs = (dict(zip(r.seeds, r.scores.values, strict=True)) for r in (result, other))
    return Estimate(tuple(value - theirs[seed] for seed, value in own.items() if seed in theirs))


def by_rows(summary: StudySummary, settings: StudySettings, against: str | None) -> bool:
    """Each chart of scores against labelled rows as a table, and as one of differences to the system ``against``; False where the study
    has none."""
    charts = growth(summary, settings)
    for title, (metric, systems) in charts.items():
        sizes = sorted({rows for points in systems.values() for rows, _ in points})
        rows = [
            [f"`{name}`", *(shown(dict(points)[n].scores, metric) if n in dict(points) else "-" for n in sizes)]
            for name, points in systems.items()
        ]
        table([f"{title}: {metric.title}", *(f"{n:,} rows" for n in sizes)], rows)
        if against is None:
            continue
        base = dict(systems[against])
        rows = [
            [
                f"`{name}`",
                *(
                    marked(above(dict(points)[n], base[n]), metric) if n in dict(points) and n in base else "-"
                    for n in sizes
                ),
            ]
            for name, points in systems.items()
            if name != against
        ]
        table([f"{title}: above `{against}`", *(f"{n:,} rows" for n in sizes)], rows)
    return bool(charts)


def main(folder: str, against: str | None = None) -> None:
    run = read_run(Path(folder))
    assert run.study is not None
    summary = summarize_study(run.rows, run.study)
    print("\n".join(summary.unfinished))
    if not by_rows(summary, run.study, against):
        for task in summary.tasks:
            scores(task, summary.reference)


if __name__ == "__main__":
    main(*sys.argv[1:])
