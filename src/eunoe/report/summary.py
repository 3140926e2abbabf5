"""From matrices to averages with intervals: what each method scored at the end, forgot and gained.

A sequence (one method going once through one order of the domains with one seed) is the unit that averages and intervals
run over. Forgetting is the loss at the end minus the loss right after learning (nats), or the score right after learning
minus the score at the end (points, 100 x the fraction); above 0 is always "worse". The formulas are in
``eunoe.evaluate.matrix``. Forward transfer is counted from the pretrained model (method ``base``), not from a model
that learnt only that domain: that is what every run measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from eunoe.evaluate.matrix import drops, final_average, forward_transfer
from eunoe.report.matrices import (
    BASE,
    GENERAL,
    Key,
    Scores,
    domain_orders,
    final_scores,
    is_reference,
    last_visits,
    matrices,
    metric_rank,
    places_of,
)
from eunoe.report.metrics import LM_LOSS, Estimate, Metric, metric_of
from eunoe.report.schema import Row

LISTED = 20
"""Unfinished sequences that are named one by one."""


@dataclass(frozen=True)
class Measured:
    """One sequence on one metric, each a mean over its domains; None where a score that it needs is missing."""

    final: float | None = None
    """After the last domain."""
    learnt: float | None = None
    """Right after each domain was learnt."""
    gained: float | None = None
    """What ``learnt`` is better than the pretrained model."""
    forgot: float | None = None
    """What ``final`` is worse than ``learnt``, over the domains that were not learnt last."""


@dataclass(frozen=True)
class Line:
    """One method on one metric. None where nothing can be said (one domain, no base rows, an unfinished run)."""

    label: str
    method: str
    metric: Metric
    transfer: str | None
    final: Estimate | None
    forgetting: Estimate | None
    backward: Estimate | None
    forward: Estimate | None
    per_domain: dict[str, Estimate]
    """Domain -> its drop, over the sequences in which it was not learnt last."""
    measured: Mapping[tuple[str, int], Measured] = field(default_factory=dict)
    """(order, seed) -> what that sequence gave: methods are compared over the sequences that they have in common."""
    no_rate: str = ""
    """Why the method can have no forgetting rate, as ``learnt all domains at once``; empty where it can."""

    @property
    def n(self) -> int:
        """Finished sequences behind ``final``."""
        return len(self.final.values) if self.final else 0


@dataclass(frozen=True)
class General:
    """LM loss on text of no learnt domain, before the first domain and after the last; ``change`` above 0 is worse."""

    label: str
    before: Estimate | None
    after: Estimate | None
    change: Estimate | None

    @property
    def n(self) -> int:
        """Finished sequences; of a model that was scored on its own, how often it was."""
        scored = self.after or self.before
        return len(scored.values) if scored else 0


@dataclass(frozen=True)
class Summary:
    """All that the tables show. ``unfinished`` has a sentence for each sequence that lacks scores, ``LISTED`` at most."""

    lines: list[Line]
    general: list[General]
    unfinished: list[str]
    lacking: int
    """How many sequences lack scores."""
    matrices: list[Scores]

    def sections(self) -> list[tuple[str, list[Line]]]:
        """The lines by metric, each with its heading."""
        by: dict[tuple[str, str | None], list[Line]] = {}
        for line in self.lines:
            by.setdefault((line.metric.name, line.transfer), []).append(line)
        several = len({t for _, t in by if t is not None}) > 1
        return [(heading(lines[0].metric, t if several else None), lines) for (_, t), lines in by.items()]


def heading(metric: Metric, transfer: str | None) -> str:
    """What a section is called.

    >>> heading(LM_LOSS, None)
    "LM loss on the domains' own text, nats (lower is better)"
    """
    if metric is LM_LOSS:
        return "LM loss on the domains' own text, nats (lower is better)"
    return f"{metric.title} on the end tasks{f' after {transfer}' if transfer else ''}, points (higher is better)"


def labels(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """(run, method) -> the method's name, with the run's before it where several runs have that method."""
    pairs = dict.fromkeys((row.run, row.method) for row in rows)
    times = Counter(method for _, method in pairs)
    return {(run, method): f"{run}: {method}" if times[method] > 1 else method for run, method in pairs}


def summarize(rows: Sequence[Row]) -> Summary:
    """Everything reported, from the rows. Raises ``EunoeError`` if rows contradict each other; holes are said, not raised."""
    all_scores, names = matrices(rows), labels(rows)
    rows = final_scores(rows)
    grouped: dict[tuple[str, str, str | None, str], list[Scores]] = {}
    base: dict[tuple[str, str, str | None], dict[str, Scores]] = {}
    for scores in all_scores:
        run, method, transfer, order, name = scores.key
        if method != BASE:
            grouped.setdefault((run, name, transfer, method), []).append(scores)
        if scores.before:  # the pretrained model's own line: once an order, as all methods start from it
            base.setdefault((run, name, transfer), {}).setdefault(order, scores)
    lines = [
        _base_line(names[(run, BASE)], metric_of(name), transfer, [*by_order.values()])
        for (run, name, transfer), by_order in base.items()
    ]
    lines += [
        _line(names[(run, method)], method, metric_of(name), transfer, group)
        for (run, name, transfer, method), group in grouped.items()
    ]
    unfinished, lacking = _unfinished(rows, all_scores, names)
    return Summary(_by_section(lines), _general(rows, names), unfinished, lacking, all_scores)


def _by_section(lines: Sequence[Line]) -> list[Line]:
    """The lines of a metric and transfer together, the pretrained model's first."""
    sections = {
        section: i for i, section in enumerate(dict.fromkeys((line.metric.name, line.transfer) for line in lines))
    }
    return sorted(lines, key=lambda line: (metric_rank(line.metric.name), line.metric.name,
                                           sections[(line.metric.name, line.transfer)], line.method != BASE))  # fmt: skip


def _line(label: str, method: str, metric: Metric, transfer: str | None, group: Sequence[Scores]) -> Line:
    measured: dict[tuple[str, int], Measured] = {}
    per_domain: dict[str, list[float]] = {}
    for scores in group:
        for seed, values in _whole(scores, scores.reference).items():
            measured[(scores.key.order, seed)] = Measured(final=fsum(values) / len(values))
        for seed, R in scores.seeds.items():
            measured[(scores.key.order, seed)], lost = _measured(scores, seed, R, metric.higher_is_better)
            for j, value in lost.items():
                per_domain.setdefault(scores.domains[j], []).append(value)
    exact = all(value == 0 for lost in per_domain.values() for value in lost)
    final, forward, rates = (
        tuple(value for one in measured.values() for value in [getattr(one, what)] if value is not None)
        for what in ("final", "gained", "forgot")
    )
    return Line(
        label, method, metric, transfer,
        final=Estimate(final) if final else None,
        forgetting=Estimate(rates, exact) if rates else None,
        backward=Estimate(tuple(0.0 - rate for rate in rates), exact) if rates else None,
        forward=Estimate(forward) if forward else None,
        per_domain={name: Estimate(tuple(v), all(x == 0 for x in v)) for name, v in per_domain.items()},
        measured=measured,
        no_rate=LEARNS_NONE if not any(scores.seeds for scores in group) else AT_ONCE if all(s.at_once for s in group) else "",
    )  # fmt: skip


def _measured(
    scores: Scores, seed: int, R: Sequence[Sequence[float | None]], better: bool
) -> tuple[Measured, dict[int, float]]:
    """One sequence's numbers, and what each column lost. A hole (an unfinished run) or a single domain leaves out what needs it,
    and only that."""
    final = learnt = gained = None
    lost: dict[int, float] = {}
    with suppress(ValueError):
        final = final_average(R, tasks=scores.tasks)
    after = [R[scores.learnt_at[j]][j] for j in scores.tasks]
    known = [value for value in after if value is not None]
    if known and len(known) == len(after):
        learnt = fsum(known) / len(known)
    with suppress(ValueError):
        lost = drops(R, tasks=scores.tasks, higher_is_better=better, learnt_at=scores.learnt_at)
    with suppress(ValueError):
        before = scores.before.get(seed, [])
        gained = forward_transfer(R, before, tasks=scores.tasks, higher_is_better=better, learnt_at=scores.learnt_at)
    return Measured(final, learnt, gained, fsum(lost.values()) / len(lost) if lost else None), lost


LEARNS_NONE, AT_ONCE = "learns no domain", "learnt all domains at once"


def _whole(scores: Scores, by_seed: Mapping[int, Sequence[float | None]]) -> dict[int, list[float]]:
    """Of each seed the scores on all columns that the metric exists for; seeds that lack one are left out."""
    each = {seed: [row[j] for j in scores.tasks] for seed, row in by_seed.items()}
    return {s: [value for value in row if value is not None] for s, row in each.items() if row and None not in row}


def _base_line(label: str, metric: Metric, transfer: str | None, group: Sequence[Scores]) -> Line:
    """The pretrained model: an average and nothing else, as it learnt nothing that it could forget."""
    averages = [fsum(scored) / len(scored) for scores in group for scored in _whole(scores, scores.before).values()]
    return Line(label, BASE, metric, transfer, Estimate(tuple(averages)) if averages else None, None, None, None, {})


def _general(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> list[General]:
    rows = [row for row in rows if row.task == GENERAL and row.metric == LM_LOSS.name]
    orders = domain_orders(rows)
    start = {(row.run, row.order, row.seed): row.value for row in rows if row.method == BASE and not row.learnt}
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.method != BASE:
            grouped.setdefault((row.run, row.method), []).append(row)
    summed = []
    for key, group in grouped.items():
        if not any(row.learnt for row in group):  # a model scored on its own, such as a head before it was trained
            summed.append(General(names[key], Estimate(tuple(row.value for row in group)), None, None))
            continue
        ends = [row for row in group if row.learnt and row.learnt == orders[(row.run, row.order)]]
        pairs = [(start[k], row.value) for row in ends if (k := (row.run, row.order, row.seed)) in start]
        change = tuple(after - before + 0.0 for before, after in pairs)
        summed.append(General(
            names[key],
            before=Estimate(tuple(before for before, _ in pairs)) if pairs else None,
            after=Estimate(tuple(row.value for row in ends)) if ends else None,
            change=Estimate(change, all(value == 0 for value in change)) if change else None,
        ))  # fmt: skip
    return summed


def _unfinished(
    rows: Sequence[Row], all_scores: Sequence[Scores], names: Mapping[tuple[str, str], str]
) -> tuple[list[str], int]:
    """A sentence for each of the first sequences that lack a score their numbers need (right after a domain was learnt, and at
    the end), and how many there are: each method of a run is to learn each of its orders with each of its seeds; one that learns
    no domain is scored in one order."""
    by_key, orders = {scores.key: scores for scores in all_scores}, domain_orders(rows)
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(row.run, []).append(row)
    sentences: list[str] = []
    lacking = 0
    for run, own_rows in by_run.items():
        kinds: dict[tuple[str | None, str], set[str]] = {}
        for row in own_rows:
            if row.task != GENERAL:
                kinds.setdefault((row.transfer, row.metric), set()).add(row.task)
        begun = dict.fromkeys((row.method, row.order, row.seed) for row in own_rows if row.learnt or is_reference(row))
        pairs = dict.fromkeys(
            (row.order, row.seed) for row in own_rows if row.learnt or row.method == BASE or is_reference(row)
        )
        scored_in = {row.method: row.order for row in reversed(own_rows) if is_reference(row)}
        by_way: dict[tuple[str, str], list[Row]] = {}
        for row in own_rows:
            by_way.setdefault((row.method, row.order), []).append(row)
        needed = {
            (method, order): _needed(
                orders[(run, order)], kinds,
                None if method in scored_in else places_of(by_way.get((method, order), ()), len(orders[(run, order)])),
            )
            for method in dict.fromkeys(method for method, *_ in begun)
            for order in ([scored_in[method]] if method in scored_in else dict.fromkeys(order for order, _ in pairs))
        }  # fmt: skip
        seeds: dict[str, list[int]] = {}
        for order, seed in pairs:
            seeds.setdefault(order, []).append(seed)
        due = dict.fromkeys((*way, seed) for way, scores in needed.items() if scores for seed in seeds[way[1]])

        def lacks(method: str, order: str, seed: int, run: str = run, needed: Any = needed) -> list[str]:
            missing = []
            for transfer, name, i, j in needed[method, order]:
                scores = by_key.get(Key(run, method, transfer, order, name))
                values = (
                    None
                    if scores is None
                    else scores.reference.get(seed)
                    if i is None
                    else scores.seeds.get(seed, {i: None})[i]
                )
                if values is None or values[j] is None:
                    domains = orders[(run, order)]
                    missing.append(f"{name} of {domains[j]}{'' if i is None else f' after {domains[i]}'}")
            return missing

        whole = {sequence for sequence in begun if sequence in due and not lacks(*sequence)}
        lacking += len(due) - len(whole)
        for method, order, seed in due:
            if len(sentences) == LISTED:
                break
            if (method, order, seed) not in whole:
                missing = lacks(method, order, seed)
                sentences.append(f"unfinished: {names[(run, method)]} (order {order}, seed {seed}) lacks {len(missing)} of "
                                 f"{len(needed[method, order])} scores, first {missing[0]}")  # fmt: skip
    if lacking > len(sentences):
        sentences.append(f"unfinished: {lacking - len(sentences):,} more sequences lack scores")
    return sentences, lacking


def _needed(
    domains: Sequence[str], kinds: Mapping[tuple[str | None, str], Container[str]], places: Sequence[int] | None
) -> list[tuple[str | None, str, int | None, int]]:
    """(transfer, metric, i, j) of each cell right after domain j was learnt or in the last row, where column j has that kind of
    score; i is None, once a column, where ``places`` is None as no domain is learnt."""
    last, first = len(domains) - 1, {name: j for j, name in reversed([*enumerate(domains)])}
    learnt_at = None if places is None else last_visits(places, domains)
    return [
        (transfer, name, i, j)
        for (transfer, name), tasks in kinds.items()
        for task, j in sorted(first.items(), key=lambda column: column[1])
        if task in tasks
        for i in ([None] if learnt_at is None else sorted({learnt_at[j], last}))
    ]


__all__ = ["AT_ONCE", "LEARNS_NONE", "General", "Line", "Measured", "Summary", "heading", "labels", "summarize"]
