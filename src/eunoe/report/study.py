"""From the rows of a fine-tuning study to what people read: scores by task and system, differences, the frontier, the answer.

A system is what stands before the bracket of a label, a point of its grid what stands in it. Rows of the search seed chose
the points: they never enter an average, but are points of the frontier (score against what was lost). Averages run over
seeds. Two systems are compared seed by seed, as equal seeds draw equal classifiers and row orders.

``last`` is the score after the last step. ``best`` is the best of all evaluations of a run by the task's first metric; as it
was picked by the same rows that it is a score of, it flatters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median

from eunoe.report.curves import LOSS, Curve
from eunoe.report.matrices import check_rows
from eunoe.report.metrics import DISTANCE, Estimate, Metric, is_retention, metric_of, number, shown
from eunoe.report.retention import Kept, kept
from eunoe.report.schema import MOMENTS, Row
from eunoe.report.settings import StudySettings

MANY = 4
"""Tasks that the answer names one by one; of more it tells the average."""
TARGET_LOSS = Metric(LOSS, "Target loss", "", 1.0, 3, False)
END = 0.05
"""The loss at the end of a run is the mean over this last share of its steps: that of one batch is noise."""


@dataclass(frozen=True)
class Result:
    """One system on one task in one metric, over the seeds it is reported on."""

    label: str
    name: str
    """The system; the whole label where several of its points are reported."""
    point: str
    """The setting in the label's brackets; empty where there is none."""
    at: str
    metric: Metric
    seeds: tuple[int, ...]
    scores: Estimate
    n: int
    """Scored rows."""
    steps: tuple[int, ...]
    """After how many steps, seed by seed."""
    ahead: Estimate | None
    """Seed by seed, by how much it is above the first system at the same moment."""
    published: float | None
    """In points."""

    @property
    def median(self) -> float:
        return median(self.scores.values)

    @property
    def best(self) -> float:
        """The best seed's score."""
        return max(self.scores.values)


@dataclass(frozen=True)
class TaskResults:
    """A task with its results: metric by metric, the one it is compared by first; systems in the recipe's order."""

    name: str
    compared: Metric
    """The metric that systems are compared by: that of the task's first score."""
    results: list[Result]
    grid: dict[str, list[str]]
    """System -> labels of its points that were tried in the search."""

    @property
    def metrics(self) -> list[Metric]:
        return list(dict.fromkeys(result.metric for result in self.results))

    def results_in(self, name: str, at: str | None = None) -> list[Result]:
        """The results in one metric, of one moment or of both."""
        return [r for r in self.results if r.metric.name == name and at in (None, r.at)]


@dataclass(frozen=True)
class Spot:
    """Score against what was lost: a point of a grid in the search, or a reported system over its seeds."""

    label: str
    name: str
    system: str
    searched: bool
    score: Estimate
    lost: Estimate
    """Rise of the LM loss of general text, nats, mean over the texts."""
    distance: float | None


@dataclass(frozen=True)
class Cited:
    """A published distance or target loss, and ours at the end of the run."""

    label: str
    """Of ours; where there is none, as the recipe cites it."""
    metric: Metric
    ours: Estimate | None
    published: float


@dataclass(frozen=True)
class StudySummary:
    """All that the report of a study shows. ``reference`` is the system that others are compared with."""

    answer: str
    unfinished: list[str]
    tasks: list[TaskResults]
    reference: str | None
    kept: list[Kept]
    """Of the reported seeds alone; labelled by the results' names."""
    spots: dict[str, list[Spot]]
    """Task -> its points; tasks without a measure of retention are left out."""


def system(label: str) -> str:
    """The system of a label.

    >>> system("recadam[lr=0.0002,t0=0.25]"), system("adamw")
    ('recadam', 'adamw')
    """
    return label.partition("[")[0]


def point(label: str) -> str:
    """The setting of a label, in words.

    >>> point("recadam[lr=0.0002,t0=0.25]")
    'lr = 0.0002, t0 = 0.25'
    """
    return label.partition("[")[2].removesuffix("]").replace("=", " = ").replace(",", ", ")


def summarize_study(rows: Sequence[Row], settings: StudySettings) -> StudySummary:
    """Everything reported. Raises ``EunoeError`` if rows contradict each other; what is missing is said, not raised."""
    check_rows(rows)
    rows = [row for row in rows if row.transfer is not None]
    reported = [row for row in rows if row.seed != settings.search_seed]
    searched = [row for row in rows if row.seed == settings.search_seed]
    systems = _in_order(settings.systems, [system(str(row.transfer)) for row in rows])
    names = _names(rows, reported)
    reference = systems[0] if len(systems) > 1 else None
    by_task = _grouped(rows)
    tasks = []
    for task in _in_order(settings.tasks, [row.task for row in rows]):
        scores = [row for row in by_task[task] if not is_retention(row.metric)]
        published = {s: _published(numbers, task) for s, numbers in settings.published.items()}
        grid: dict[str, list[str]] = {}
        for label in dict.fromkeys(str(row.transfer) for row in by_task[task] if row.seed == settings.search_seed):
            grid.setdefault(system(label), []).append(label)
        final = [row for row in scores if row.seed != settings.search_seed]
        first = next((row.metric for row in (*final, *scores)), "score")
        tasks.append(TaskResults(task, metric_of(first), _results(final, names, systems, reference, published), grid))
    unfinished = _unfinished(settings, tasks)
    preserved = kept(_by_task(reported, tasks), lambda row: names[(row.task, str(row.transfer))])
    answer = _answer(tasks, preserved, reference, settings.search_by, unfinished)
    return StudySummary(answer, unfinished, tasks, reference, preserved, _spots(tasks, reported, searched, names))


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Task -> its rows."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    return by_task


def _in_order(first: Sequence[str], named: Sequence[str]) -> list[str]:
    """What was found, as the recipe lists it; what the recipe does not know comes after."""
    present = set(named)
    return [name for name in dict.fromkeys([*first, *named]) if name in present]


def _by_task(rows: Sequence[Row], tasks: Sequence[TaskResults]) -> list[Row]:
    """The rows in the order of the tasks and, within one, of its results."""
    places = {(t.name, r.label): (i, k) for i, t in enumerate(tasks) for k, r in reversed([*enumerate(t.results)])}
    return sorted(rows, key=lambda row: places.get((row.task, str(row.transfer)), (len(tasks), 0)))


def _names(rows: Sequence[Row], reported: Sequence[Row]) -> dict[tuple[str, str], str]:
    """(task, label) -> the system where it has one reported point on that task, else the label."""
    labels: dict[tuple[str, str], set[str]] = {}
    for row in reported:
        labels.setdefault((row.task, system(str(row.transfer))), set()).add(str(row.transfer))

    def name(task: str, label: str) -> str:
        return system(label) if labels.get((task, system(label))) == {label} else label

    return {(row.task, str(row.transfer)): name(row.task, str(row.transfer)) for row in rows}


def _seeds(rows: Sequence[Row]) -> dict[int, float]:
    """Seed -> score; several few-shot samples of one seed are one score, their mean."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row.seed, []).append(row.value)
    return {seed: fsum(values) / len(values) for seed, values in sorted(by_seed.items())}


def _published(numbers: Mapping[str, float], task: str) -> dict[str, float]:
    """Metric ("" for the task's first) -> what is cited of ``task``."""
    by_metric = {}
    for key, value in numbers.items():
        metric, _, name = key.rpartition("@")
        if name == task:
            by_metric[metric] = value
    return by_metric


def _results(
    rows: Sequence[Row], names: Mapping[tuple[str, str], str], systems: Sequence[str], reference: str | None,
    published: Mapping[str, Mapping[str, float]],
) -> list[Result]:  # fmt: skip
    places = {name: i for i, name in enumerate(systems)}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.metric, str(row.transfer), row.at), []).append(row)
    metrics = {name: i for i, name in enumerate(dict.fromkeys(row.metric for row in rows))}
    labels = sorted(dict.fromkeys(str(row.transfer) for row in rows), key=lambda label: places[system(label)])
    ranks = {label: i for i, label in enumerate(labels)}
    firsts = [label for label in labels if system(label) == reference]
    compared = {group: _seeds(own_rows) for group, own_rows in groups.items() if [group[1]] == firsts}
    results = []
    for kind, label, at in sorted(groups, key=lambda g: (metrics[g[0]], ranks[g[1]], MOMENTS.index(g[2]))):
        own_rows = groups[(kind, label, at)]
        seeds, ahead = _seeds(own_rows), None
        keys = (kind, "") if metrics[kind] == 0 else (kind,)
        cites = [
            cited[key]
            for cited in (published.get(label, {}), published.get(system(label), {}))
            for key in keys
            if key in cited
        ]
        if len(firsts) == 1 and label != firsts[0]:
            first = compared.get((kind, firsts[0], at), {})
            gains = tuple(seeds[s] - first[s] for s in seeds if s in first)
            ahead = Estimate(gains, all(gain == 0 for gain in gains)) if gains else None
        results.append(Result(
            label, names[(own_rows[0].task, label)], point(label), at, metric_of(kind), tuple(seeds),
            Estimate(tuple(seeds.values())), own_rows[0].n, tuple(sorted({r.steps for r in own_rows})), ahead,
            cites[0] if cites else None,
        ))  # fmt: skip
    return results


def cited(settings: StudySettings, observed: Mapping[tuple[str, str], Sequence[Curve]]) -> dict[str, list[Cited]]:
    """Task -> the distances and target losses that the recipe cites, as it lists them, beside ours of the reported seeds."""
    by_task: dict[str, list[Cited]] = {}
    for name, numbers in settings.published.items():
        for key, value in numbers.items():
            what, _, task = key.rpartition("@")
            metric = {DISTANCE.name: DISTANCE, LOSS: TARGET_LOSS}.get(what)
            if metric is None:
                continue
            ends: dict[str, list[float]] = {}
            for curve in observed.get((task, what), ()):
                exact = key in settings.published.get(curve.label, {})
                of_it = curve.label == name if exact else system(curve.label) == name
                if of_it and curve.seed != settings.search_seed and curve.steps:
                    ends.setdefault(curve.label, []).append(_end(curve) if what == LOSS else curve.loss[-1])
            ours = [Cited(label, metric, Estimate(tuple(values)), value) for label, values in ends.items()]
            by_task.setdefault(task, []).extend(ours or [Cited(name, metric, None, value)])
    return by_task


def _end(curve: Curve) -> float:
    """The mean over the last steps."""
    last = [y for x, y in zip(curve.steps, curve.loss, strict=True) if x > (1 - END) * curve.steps[-1]]
    return fsum(last) / len(last)


def _unfinished(settings: StudySettings, tasks: Sequence[TaskResults]) -> list[str]:
    """One sentence for each system that lacks seeds on a task that the recipe names."""
    known = {task.name: task for task in tasks}
    sentences = []
    for name in settings.tasks:
        for one in settings.systems:
            task = known.get(name)
            results = (
                [r for r in task.results_in(task.compared.name, "last") if system(r.label) == one]
                if task and task.results
                else []
            )
            tried = len(task.grid.get(one, [])) if task else 0
            if not results:
                search = f", only {tried} of its search" if tried else ""
                sentences.append(f"unfinished: {one} has no score on {name}{search}")
            for result in results:
                lacking = [str(s) for s in settings.seeds.get(name, ()) if s not in result.seeds]
                if lacking:
                    many = "s" if len(lacking) > 1 else ""
                    sentences.append(f"unfinished: {result.name} on {name} lacks seed{many} {', '.join(lacking)}")
    return sentences


def _spots(
    tasks: Sequence[TaskResults], reported: Sequence[Row], searched: Sequence[Row], names: Mapping[tuple[str, str], str]
) -> dict[str, list[Spot]]:
    by_task_spots: dict[str, list[Spot]] = {}
    parts = [(_grouped(searched), True), (_grouped(reported), False)]
    for task in tasks:
        for by_task, is_search in parts:
            own_rows = by_task.get(task.name, [])
            scored: dict[str, list[Row]] = {}
            for row in own_rows:
                if (row.metric, row.at) == (task.compared.name, "last"):
                    scored.setdefault(str(row.transfer), []).append(row)
            for one in kept(own_rows, lambda row: str(row.transfer)):
                scores = _seeds(scored.get(one.label, []))
                if one.texts and scores:
                    lost = tuple(
                        fsum(c) / len(c) for c in zip(*(t.change.values for t in one.texts.values()), strict=False)
                    )
                    name = one.label if is_search else names[(task.name, one.label)]
                    distance = one.distance.mean if one.distance else None
                    spot = Spot(one.label, name, system(one.label), is_search, Estimate(tuple(scores.values())), Estimate(lost),
                                distance)  # fmt: skip
                    by_task_spots.setdefault(task.name, []).append(spot)
    return by_task_spots


# -- the answer -------------------------------------------------------------------------------------------------
def _answer(
    tasks: Sequence[TaskResults], preserved: Sequence[Kept], reference: str | None, at: str, unfinished: Sequence[str]
) -> str:
    """Which system scored how much above the first, and what each lost, in one or two sentences."""
    tables = {task.name: task.results_in(task.compared.name, at) for task in tasks if task.results}
    if not any(tables.values()):
        return "Unfinished: no system has a score beside those of its search."
    sentence = _compared(tables, reference, at) or _ranked(tables, at)
    lost = _lost(preserved)
    lack = "s lack" if len(unfinished) > 1 else " lacks"
    tail = f" Unfinished: {len(unfinished)} result{lack} seeds." if unfinished else ""
    return sentence + (f" {lost}" if lost else "") + tail


def _when(at: str) -> str:
    return "after the last step" if at == "last" else "at the best evaluation"


def _compared(tables: Mapping[str, Sequence[Result]], reference: str | None, at: str) -> str:
    """Each system against the first, task by task; empty where no two can be compared."""
    others: dict[str, dict[str, Result]] = {}
    for task, results in tables.items():
        for result in results:
            if result.ahead is not None:
                others.setdefault(result.name, {})[task] = result
    if not others or len(others) > MANY:
        return ""
    parts = []
    for name, by_task in others.items():
        gains = {task: r.ahead for task, r in by_task.items() if r.ahead is not None}
        if len(gains) > MANY:
            mean = fsum(g.mean for g in gains.values()) / len(gains)
            higher = sum(g.mean > 0 for g in gains.values())
            parts.append(f"{name} {100 * mean:+.1f} on average of {len(gains)} tasks, higher on {higher}")
        else:
            parts.append(f"{name} " + ", ".join(_gain(task, g, by_task[task].metric) for task, g in gains.items()))
    return f"Against {reference}, points {_when(at)}: {'; '.join(parts)}."


def _gain(task: str, gain: Estimate, metric: Metric) -> str:
    """
    >>> _gain("rte", Estimate((0.02, -0.01)), metric_of("accuracy"))
    '+0.5 ± 19.1 on rte (interval contains 0)'
    """
    low, high = gain.interval or (gain.mean, gain.mean)
    mark = (
        " (one seed)" if gain.interval is None else " (interval contains 0)" if low <= 0 <= high and low < high else ""
    )
    return f"{shown(gain, metric, signed=True)} on {task}{mark}"


def _ranked(tables: Mapping[str, Sequence[Result]], at: str) -> str:
    """The best and the worst of each task."""
    parts = []
    for task, results in list(tables.items())[:MANY]:
        ranked = sorted(results, key=lambda r: -r.scores.mean)
        if ranked:
            best, worst = ranked[0], ranked[-1]
            last = f" (last of {len(ranked)}: {worst.name}, {number(worst.scores.mean, worst.metric)})"
            low = last if len(ranked) > 1 else ""
            parts.append(
                f"{best.name} {number(best.scores.mean, best.metric)} {best.metric.title} points on {task}{low}"
            )
    more = f", and {len(tables) - MANY} more tasks" if len(tables) > MANY else ""
    head = "Best" if any(len(results) > 1 for results in tables.values()) else "Scored"
    return f"{head} {_when(at)}: {', '.join(parts)}{more}."


def _lost(preserved: Sequence[Kept]) -> str:
    """How much worse general text became, by system, least first, over the tasks that all of them have."""
    by: dict[str, dict[str, float]] = {}
    for one in preserved:
        if one.change is not None:
            by.setdefault(one.label, {})[one.task] = one.change
    common = set.intersection(*map(set, by.values())) if by else set()
    if not common or len(by) > MANY:
        return ""
    rises = sorted((fsum(by_task[task] for task in sorted(common)) / len(common), name) for name, by_task in by.items())
    first, *rest = (
        f"{value:+.3f} with {name}" if k else f"{value:+.3f} nats with {name}" for k, (value, name) in enumerate(rises)
    )
    return f"LM loss of general text moved by {', '.join([first, *rest])}."


__all__ = ["Cited", "Result", "Spot", "StudySummary", "TaskResults", "cited", "point", "summarize_study", "system"]
