"""From the rows of runs over domains to what people read: matrices, averages with intervals, the answer in one sentence.

Nothing here is stored: everything is computed from the rows each time. A sequence is one method going once through one
order of the domains with one seed; it is the unit that averages and intervals run over. A score that several few-shot
samples were drawn for is their mean, as these are no independent repeats of the learning.

Forgetting is the loss at the end minus the loss right after learning (nats), or the score right after learning minus
the score at the end (points, 100 x the fraction); above 0 is always "worse". The formulas are in
``eunoe.evaluate.matrix``. Forward transfer is counted from the pretrained model (method ``base``), not from a model
that learnt only that domain: that is what every run measures.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from eunoe.atomic import write_bytes
from eunoe.errors import EunoeError
from eunoe.evaluate.matrix import drops, final_average, forward_transfer
from eunoe.evaluate.scores import mean_interval
from eunoe.report.schema import Row

BASE = "base"
GENERAL = "general"
CONFIDENCE = 0.95
COUNTED = ("support", "predicted", "correct")


# -- what a number is -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Metric:
    """How a metric is read: its words, its unit, how a stored value becomes a shown one, which way is better."""

    name: str
    title: str
    unit: str
    scale: float
    decimals: int
    higher_is_better: bool


LM_LOSS = Metric("lm_loss", "LM loss", "nats", 1.0, 3, False)
DISTANCE = Metric("anchor_distance", "Distance to the pretrained weights", "", 1.0, 2, False)
CKA = Metric("cka", "CKA", "", 1.0, 3, True)
# In the order they are shown; any other metric is a score in points and comes after these.
METRICS = (
    LM_LOSS,
    Metric("accuracy", "Accuracy", "points", 100.0, 1, True),
    Metric("macro_f1", "Macro-F1", "points", 100.0, 1, True),
)
NAMED = (
    *METRICS,
    Metric("matthews", "Matthews", "points", 100.0, 1, True),
    Metric("accuracy_mm", "Accuracy, mismatched", "points", 100.0, 1, True),
    DISTANCE,
)


def metric(name: str) -> Metric:
    """How ``name`` is read; ``lm_loss@TEXT`` and ``cka@TEXT`` are measures of retention on that general text.

    >>> metric("pearson").title, metric("pearson").scale
    ('Pearson', 100.0)
    >>> metric("lm_loss@brown").title, metric("lm_loss@brown").unit, metric("cka@brown").higher_is_better
    ('LM loss of brown', 'nats', True)
    """
    known = {m.name: m for m in NAMED}
    kind, mark, text = name.partition("@")
    if mark and kind == LM_LOSS.name:
        return replace(LM_LOSS, name=name, title=f"LM loss of {text}")
    if mark and kind == CKA.name:
        return replace(CKA, name=name, title=f"CKA on {text}")
    return known.get(name) or Metric(name, name.replace("_", " ").capitalize(), "points", 100.0, 1, True)


def is_retention(name: str) -> bool:
    """Does the metric say what is left of the pretrained model, and nothing of the task?

    >>> [is_retention(name) for name in ("lm_loss@brown", "anchor_distance", "cka@brown", "lm_loss", "accuracy")]
    [True, True, True, False, False]
    """
    return name == DISTANCE.name or name.partition("@")[:2] in ((LM_LOSS.name, "@"), (CKA.name, "@"))


def final_scores(rows: Iterable[Row]) -> list[Row]:
    """The rows that matrices are made of: scores after the last step, no measures of retention."""
    return [row for row in rows if row.at == "last" and not is_retention(row.metric)]


@dataclass(frozen=True)
class Estimate:
    """A mean over sequences. ``exact``: it is a change, and every difference that went into it was exactly 0."""

    values: tuple[float, ...]
    exact: bool = False

    @property
    def mean(self) -> float:
        return fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean (95 %); None for a single sequence."""
        return mean_interval(self.values, CONFIDENCE)


def number(value: float, of: Metric, *, signed: bool = False) -> str:
    """``value`` as shown: in the metric's unit and precision, never as minus zero.

    >>> number(0.21449, LM_LOSS), number(0.0634, metric("accuracy"), signed=True), number(-1e-9, LM_LOSS)
    ('0.214', '+6.3', '0.000')
    """
    text = f"{value * of.scale:{'+' if signed else ''}.{of.decimals}f}"
    return text.replace("-", "").replace("+", "") if float(text) == 0 else text


def shown(estimate: Estimate | None, of: Metric, *, signed: bool = False) -> str:
    """An estimate with the half width of its interval; ``-`` where there is none, ``0 (exactly)`` where nothing changed.

    >>> shown(Estimate((0.0, 0.0), exact=True), LM_LOSS), shown(Estimate((0.0002, -0.0002)), LM_LOSS)
    ('0 (exactly)', '0.000 ± 0.003')
    """
    if estimate is None:
        return "-"
    if estimate.exact:
        return "0 (exactly)"
    interval = estimate.interval
    # Equal values (the pretrained model, scored once per seed) are one number measured again, not a sure one.
    half = f" ± {number((interval[1] - interval[0]) / 2, of)}" if interval and interval[0] < interval[1] else ""
    return number(estimate.mean, of, signed=signed) + half


def typeset(text: str) -> str:
    """Hyphens that are minus signs become minus signs (as wide as a digit), straight apostrophes curly: for pages, as a
    terminal may have neither.

    >>> typeset("its domains' loss moved by -0.2 in run-2")
    'its domains’ loss moved by −0.2 in run-2'
    """
    return re.sub(r"(?<![^\W_])-(?=\d)", "\u2212", text).replace("'", "\u2019")


# -- matrices ---------------------------------------------------------------------------------------------------
class Key(NamedTuple):
    """What a matrix belongs to. ``transfer`` is None for the language model itself."""

    run: str
    method: str
    transfer: str | None
    order: str
    metric: str


@dataclass(frozen=True)
class Scores:
    """The matrices of one method in one order and one metric, one per seed.

    ``seeds[s][i][j]`` is the score of domain j after learning domains 0..i, None where not measured. ``before[s][j]`` is
    that of the pretrained model. ``tasks`` are the columns that this metric exists for in the run. ``n[j]`` is how many
    items a score of column j is a mean over.
    """

    key: Key
    domains: tuple[str, ...]
    tasks: tuple[int, ...]
    seeds: dict[int, list[list[float | None]]]
    before: dict[int, list[float | None]]
    n: dict[int, int]

    def mean(self) -> list[list[float | None]]:
        """Cell by cell, the mean over the seeds that measured it."""
        size = range(len(self.domains))
        return [[_average(R[i][j] for R in self.seeds.values()) for j in size] for i in size]

    def mean_before(self) -> list[float | None]:
        return [_average(row[j] for row in self.before.values()) for j in range(len(self.domains))]


def _average(values: Iterable[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return fsum(held) / len(held) if held else None


def check_rows(rows: Sequence[Row]) -> None:
    """Raises ``EunoeError`` where two rows give one score two values."""
    seen: dict[tuple[object, ...], float] = {}
    for row in rows:
        held = seen.setdefault((row.run, *row.key), row.value)
        if held != row.value:
            raise EunoeError(
                f"two rows of run {row.run!r} give {row.metric} of {row.task!r} ({row.method}, seed {row.seed}, after "
                f"{list(row.learnt)}) as {held} and {row.value}. Rows of different runs need different run names."
            )


def domain_orders(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[str, ...]]:
    """(run, order) -> its domains as learnt; those that no method has come to yet follow, in the order they were scored.

    Raises ``EunoeError`` if two sequences of one order learnt different domains.
    """
    longest: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in rows:
        held = longest.setdefault((row.run, row.order), ())
        short, long = sorted((held, row.learnt), key=len)
        if short != long[: len(short)]:
            raise EunoeError(
                f"order {row.order!r} of run {row.run!r} is learnt as {list(long)} and as {list(short)} (method {row.method}). "
                "Rows of one order must agree: give the two orders two names."
            )
        longest[(row.run, row.order)] = long
    later: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.task != GENERAL and row.task not in longest[(row.run, row.order)]:
            later.setdefault((row.run, row.order), {})[row.task] = None
    return {k: domains + tuple(later.get(k, {})) if domains else () for k, domains in longest.items()}


def matrices(rows: Sequence[Row]) -> list[Scores]:
    """All matrices, by run and metric, methods in the order they first appear. ``base`` is in each one's ``before``."""
    check_rows(rows)
    rows = final_scores(rows)
    own = [row for row in rows if row.task != GENERAL]
    columns: dict[tuple[str, str | None, str], set[str]] = {}
    for row in own:
        columns.setdefault((row.run, row.transfer, row.metric), set()).add(row.task)
    keys = dict.fromkeys(_key(row) for row in own if row.learnt)
    held: dict[Key, list[Row]] = {}
    for row in own:
        held.setdefault(_key(row), []).append(row)
    runs = list(dict.fromkeys(row.run for row in rows))
    orders = domain_orders(rows)
    found = []
    for key in sorted(keys, key=lambda k: (runs.index(k.run), _metric_rank(k.metric), k.metric)):
        domains = orders[(key.run, key.order)]
        mine = [row for row in held[key] if row.learnt]
        tasks = columns[(key.run, key.transfer, key.metric)]
        cells = _cells(mine)
        base = [row for row in held.get(key._replace(method=BASE), []) if not row.learnt]
        start = _cells(base)
        seeds = list(dict.fromkeys(row.seed for row in mine))
        found.append(Scores(
            key=key, domains=domains, tasks=tuple(j for j, name in enumerate(domains) if name in tasks),
            seeds={s: [[cells.get((s, domains[: i + 1], name)) for name in domains] for i in range(len(domains))] for s in seeds},
            before={s: [start.get((s, (), name)) for name in domains] for s in dict.fromkeys(row.seed for row in base)},
            n={domains.index(row.task): row.n for row in mine if row.task in domains},
        ))  # fmt: skip
    return found


def _key(row: Row) -> Key:
    return Key(row.run, row.method, row.transfer, row.order, row.metric)


def _metric_rank(name: str) -> int:
    names = [m.name for m in METRICS]
    return names.index(name) if name in names else len(names)


def _cells(rows: Sequence[Row]) -> dict[tuple[int, tuple[str, ...], str], float]:
    """(seed, learnt, task) -> the mean over few-shot samples; left out until all samples of that task are there."""
    samples: dict[tuple[int, str], set[int | None]] = {}
    cells: dict[tuple[int, tuple[str, ...], str], dict[int | None, float]] = {}
    for row in rows:
        samples.setdefault((row.seed, row.task), set()).add(row.shots_seed)
        cells.setdefault((row.seed, row.learnt, row.task), {})[row.shots_seed] = row.value
    return {k: fsum(v.values()) / len(v) for k, v in cells.items() if set(v) == samples[(k[0], k[2])]}


# -- the summary ------------------------------------------------------------------------------------------------
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
        told = self.after or self.before
        return len(told.values) if told else 0


@dataclass(frozen=True)
class Summary:
    """All that the tables show, and the answer. ``unfinished`` holds one sentence per sequence that lacks scores."""

    answer: str
    lines: list[Line]
    general: list[General]
    unfinished: list[str]
    matrices: list[Scores]

    def sections(self) -> list[tuple[str, list[Line]]]:
        """The lines by metric, each with its heading."""
        by: dict[tuple[str, str | None], list[Line]] = {}
        for line in self.lines:
            by.setdefault((line.metric.name, line.transfer), []).append(line)
        several = len({t for _, t in by if t is not None}) > 1
        return [(heading(lines[0].metric, t if several else None), lines) for (_, t), lines in by.items()]


def heading(of: Metric, transfer: str | None) -> str:
    """What a section is called.

    >>> heading(LM_LOSS, None)
    "LM loss on the domains' own text, nats (lower is better)"
    """
    if of is LM_LOSS:
        return "LM loss on the domains' own text, nats (lower is better)"
    return f"{of.title} on the end tasks{f' after {transfer}' if transfer else ''}, points (higher is better)"


def labels(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """(run, method) -> the method's name, with the run's before it where several runs have that method."""
    pairs = list(dict.fromkeys((row.run, row.method) for row in rows))
    names = [method for _, method in pairs]
    return {(run, method): f"{run}: {method}" if names.count(method) > 1 else method for run, method in pairs}


def summarize(rows: Sequence[Row]) -> Summary:
    """Everything reported, from the rows. Raises ``EunoeError`` if rows contradict each other; holes are told, not raised."""
    found, names = matrices(rows), labels(rows)
    rows = final_scores(rows)
    grouped: dict[tuple[str, str, str | None, str], list[Scores]] = {}
    for scores in found:
        k = scores.key
        grouped.setdefault((k.run, k.metric, k.transfer, k.method), []).append(scores)
        if scores.before:  # the pretrained model's own line, for comparison
            grouped.setdefault((k.run, k.metric, k.transfer, BASE), [])
    lines = []
    for (run, name, transfer, method), group in grouped.items():
        if method == BASE:
            others = [s for s in found if (s.key.run, s.key.metric, s.key.transfer) == (run, name, transfer)]
            group = [s for i, s in enumerate(others) if s.key.order not in {o.key.order for o in others[:i]}]
            lines.append(_base_line(names[(run, BASE)], metric(name), transfer, group))
        else:
            lines.append(_line(names[(run, method)], method, metric(name), transfer, group))
    # base first in each section
    lines = [line for _, group in _by_section(lines) for line in group]
    general = _general(rows, names)
    unfinished = _unfinished(rows, found, names)
    return Summary(_answer(rows, lines, found, unfinished), lines, general, unfinished, found)


def _by_section(lines: list[Line]) -> list[tuple[tuple[str, str | None], list[Line]]]:
    by: dict[tuple[str, str | None], list[Line]] = {}
    for line in lines:
        by.setdefault((line.metric.name, line.transfer), []).append(line)
    order = sorted(by, key=lambda k: (_metric_rank(k[0]), k[0]))
    return [(k, sorted(by[k], key=lambda line: line.method != BASE)) for k in order]


def _line(label: str, method: str, of: Metric, transfer: str | None, group: Sequence[Scores]) -> Line:
    final, forgot, forward = [], [], []
    per_domain: dict[str, list[float]] = {}
    better = of.higher_is_better
    for scores in group:
        for seed, R in scores.seeds.items():
            # A hole (an unfinished run) or a single domain leaves out what needs it, and only that.
            with suppress(ValueError):
                final.append(final_average(R, tasks=scores.tasks))
            with suppress(ValueError):
                lost = drops(R, tasks=scores.tasks, higher_is_better=better)
                forgot.append(lost)
                for j, value in lost.items():
                    per_domain.setdefault(scores.domains[j], []).append(value)
            with suppress(ValueError):
                before = scores.before.get(seed, [])
                forward.append(forward_transfer(R, before, tasks=scores.tasks, higher_is_better=better))
    exact = all(value == 0 for lost in forgot for value in lost.values())
    rates = tuple(fsum(lost.values()) / len(lost) for lost in forgot)
    return Line(
        label, method, of, transfer,
        final=Estimate(tuple(final)) if final else None,
        forgetting=Estimate(rates, exact) if rates else None,
        backward=Estimate(tuple(0.0 - rate for rate in rates), exact) if rates else None,
        forward=Estimate(tuple(forward)) if forward else None,
        per_domain={name: Estimate(tuple(v), all(x == 0 for x in v)) for name, v in per_domain.items()},
    )  # fmt: skip


def _base_line(label: str, of: Metric, transfer: str | None, group: Sequence[Scores]) -> Line:
    """The pretrained model: an average and nothing else, as it learnt nothing that it could forget."""
    averages = []
    for scores in group:
        for row in scores.before.values():
            held = [row[j] for j in scores.tasks]
            if None not in held:
                averages.append(fsum(v for v in held if v is not None) / len(held))
    return Line(label, BASE, of, transfer, Estimate(tuple(averages)) if averages else None, None, None, None, {})


def _general(rows: Sequence[Row], names: dict[tuple[str, str], str]) -> list[General]:
    own = [row for row in rows if row.task == GENERAL and row.metric == LM_LOSS.name]
    orders = domain_orders(rows)
    start = {(row.run, row.order, row.seed): row.value for row in own if row.method == BASE and not row.learnt}
    found = []
    for run, method in dict.fromkeys((row.run, row.method) for row in own):
        mine = [row for row in own if (row.run, row.method) == (run, method)]
        ends = [row for row in mine if row.learnt and row.learnt == orders[(run, row.order)]]
        if method == BASE:
            continue
        if not any(row.learnt for row in mine):  # a model scored on its own, such as a head before it was trained
            found.append(General(names[(run, method)], Estimate(tuple(row.value for row in mine)), None, None))
            continue
        pairs = [(start[k], row.value) for row in ends if (k := (run, row.order, row.seed)) in start]
        change = tuple(after - before + 0.0 for before, after in pairs)
        found.append(General(
            names[(run, method)],
            before=Estimate(tuple(before for before, _ in pairs)) if pairs else None,
            after=Estimate(tuple(row.value for row in ends)) if ends else None,
            change=Estimate(change, all(value == 0 for value in change)) if change else None,
        ))  # fmt: skip
    return found


def _unfinished(rows: Sequence[Row], found: Sequence[Scores], names: dict[tuple[str, str], str]) -> list[str]:
    """One sentence for each sequence that lacks a score its numbers need: the diagonal and the last row."""
    by_key, orders = {s.key: s for s in found}, domain_orders(rows)
    sentences = []
    for run in dict.fromkeys(row.run for row in rows):
        here = [row for row in rows if row.run == run]
        methods = list(dict.fromkeys(row.method for row in here if row.learnt))
        sequences = list(dict.fromkeys((row.order, row.seed) for row in here if row.learnt or row.method == BASE))
        kinds: dict[tuple[str | None, str], set[str]] = {}
        for row in here:
            if row.task != GENERAL:
                kinds.setdefault((row.transfer, row.metric), set()).add(row.task)
        for method in methods:
            for order, seed in sequences:
                domains, missing, needed = orders[(run, order)], [], 0
                for (transfer, name), tasks in kinds.items():
                    scores = by_key.get(Key(run, method, transfer, order, name))
                    R = scores.seeds.get(seed) if scores else None
                    for j, task in enumerate(domains):
                        for i in sorted({j, len(domains) - 1}) if task in tasks else ():
                            needed += 1
                            if R is None or R[i][j] is None:
                                missing.append(f"{name} of {task} after {domains[i]}")
                if missing:
                    where = f"{names[(run, method)]} (order {order}, seed {seed})"
                    lacks = f"lacks {len(missing)} of {needed} scores, first {missing[0]}"
                    sentences.append(f"unfinished: {where} {lacks}")
    return sentences


# -- the answer -------------------------------------------------------------------------------------------------
def _answer(rows: Sequence[Row], lines: Sequence[Line], found: Sequence[Scores], unfinished: Sequence[str]) -> str:
    """What was forgotten, in one sentence, least first."""
    learners = [line for line in lines if line.method != BASE]
    if not learners:
        if any(row.learnt for row in rows):
            return "Only general text was scored after learning, so forgetting of the domains cannot be told."
        return "No domain has been learnt yet, so nothing can be said about forgetting."
    text = {line.label: line for line in learners if line.metric is LM_LOSS}
    ends = [line for line in learners if line.metric is not LM_LOSS]
    first = (ends[0].metric, ends[0].transfer) if ends else None
    end = {line.label: line for line in ends if (line.metric, line.transfer) == first}
    told = []
    for label in dict.fromkeys(line.label for line in learners):
        nats = text[label].forgetting if label in text else None
        points = end[label].forgetting if label in end else None
        if nats is not None or points is not None:
            told.append((label, nats, points))
    if not told:
        single = next((s.domains for s in found if len(s.domains) == 1), None)
        if single and all(len(s.domains) == 1 for s in found):
            return f"One domain was learnt ({single[0]}), so nothing could be forgotten yet: forgetting needs at least two."
        if unfinished:
            return "Unfinished: no method has all the scores that forgetting is counted from."
        return "Forgetting cannot be told: only the domain learnt last was scored."
    told.sort(key=lambda t: (_rank(t[1]), _rank(t[2])))
    score = first[0].title.lower() if first and first[0].name != "macro_f1" else "macro-F1"
    parts = []
    for i, (label, nats, points) in enumerate(told):
        full = i == 0  # the first says of what; the others are read like it
        said = []
        if nats:
            said.append(_said(nats, LM_LOSS, "nats of its domains' language" if full else "nats"))
        if points:
            whose = "their" if nats else "its domains'"
            said.append(_said(points, end[label].metric, f"{score} points on {whose} end tasks" if full else "points"))
        parts.append(f"{label} {'forgot ' if full else ''}{said[0]}" + "".join(f" ({more})" for more in said[1:]))
    doubts = {_doubt(estimate) for _, *both in told for estimate in both if estimate}
    tail = "".join(f" {means}" for doubt, means in DOUBTS.items() if doubt in doubts)
    if unfinished:
        one = len(unfinished) == 1
        tail += f" Unfinished: {len(unfinished)} sequence{'' if one else 's'} still lack{'s' if one else ''} scores."
    return ", ".join(parts) + "." + tail


def _rank(estimate: Estimate | None) -> float:
    return estimate.mean if estimate else float("inf")


DOUBTS = {
    "below": "Clearly below 0: later domains helped.",
    "unclear": "Unclear: cannot be told from 0.",
    "alone": "Without ±: one sequence.",
    "equal": "Without ±: equal in all sequences.",
}
"""What may have to be said of forgotten figures, and the sentence that says it."""


def _doubt(estimate: Estimate) -> str:
    """Which of ``DOUBTS`` holds, if any.

    >>> _doubt(Estimate((-0.1, -0.11))), _doubt(Estimate((0.02, -0.01))), _doubt(Estimate((-0.1,))), _doubt(Estimate((0.1, 0.11)))
    ('below', 'unclear', 'alone', '')
    """
    if estimate.exact:
        return ""
    if estimate.interval is None:
        return "alone"
    low, high = estimate.interval
    if low == high:
        return "equal"
    return "below" if high < 0 else "unclear" if low <= 0 else ""


def _said(estimate: Estimate, of: Metric, what: str) -> str:
    """
    >>> _said(Estimate((0.02, -0.01)), metric("accuracy"), "points")
    '0.5 ± 19.1 points, unclear'
    """
    value = "exactly 0" if estimate.exact else shown(estimate, of)
    return f"{value} {what}" + (", unclear" if _doubt(estimate) == "unclear" else "")


def answer(rows: Sequence[Row]) -> str:
    """What was forgotten, in one sentence, the method that forgot least first.

    For example "cpt forgot exactly 0 nats of its domains' language (exactly 0 accuracy points on their end tasks), ncl
    0.214 ± 0.031 nats (6.3 ± 2.5 points)." What follows says which figures are unclear or of one sequence. Runs that are
    unfinished, have one domain or no end tasks get a sentence that says so.
    """
    return summarize(rows).answer


# -- for other programs -----------------------------------------------------------------------------------------
def write_matrix(rows: Sequence[Row], path: Path) -> None:
    """Every cell of every matrix as one line of CSV, in full precision; the file appears whole or not at all.

    Measures of retention, and scores before the last step, are no cells.

    ``learnt`` counts the domains learnt before the score, ``after`` names the last of them; 0 and empty: the pretrained model.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["run", "method", "transfer", "order", "seed", "shots_seed", "metric", "learnt", "after", "task", "value", "n"]
    )
    for row in final_scores(rows):
        after = row.learnt[-1] if row.learnt else ""
        writer.writerow([row.run, row.method, row.transfer or "", row.order, row.seed,
                         "" if row.shots_seed is None else row.shots_seed, row.metric, len(row.learnt), after, row.task,
                         repr(row.value), row.n])  # fmt: skip
    write_bytes(path, out.getvalue().encode("utf-8", "replace"))


Counts: TypeAlias = dict[str, int]
"""support, predicted and correct of one class."""


def class_counts(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Counts]]]:
    """(run, transfer, task) -> (label, when) -> class -> its counts, summed over sequences and few-shot samples.

    "when" is ``before`` (pretrained), ``learnt`` (right after its domain) or ``end``. Rows without counts are left out.
    """
    names, rows = labels(rows), final_scores(rows)
    orders = domain_orders(rows)
    found: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Counts]]] = {}
    taken: set[tuple[object, ...]] = set()
    for row in rows:
        if not _counts(row.detail) or row.detail is None or row.transfer is None:
            continue
        test = (row.run, row.method, row.transfer, row.order, row.seed, row.shots_seed, row.learnt, row.task)
        if test in taken:  # accuracy and macro-F1 of one test carry the same counts
            continue
        taken.add(test)
        whens = {"before": not row.learnt, "learnt": row.learnt[-1:] == (row.task,)}
        whens["end"] = bool(row.learnt) and row.learnt == orders[(row.run, row.order)]
        task = found.setdefault((row.run, row.transfer, row.task), {})
        for when in (name for name, holds in whens.items() if holds):
            sums = task.setdefault((names[(row.run, row.method)], when), {})
            for name, counts in row.detail.items():
                held = sums.setdefault(name, dict.fromkeys(COUNTED, 0))
                for part in COUNTED:
                    held[part] += counts[part]
    return found


def _counts(detail: dict[str, Any] | None) -> bool:
    return bool(detail) and all(
        isinstance(c, dict) and all(isinstance(c.get(part), int) for part in COUNTED) for c in (detail or {}).values()
    )


__all__ = [
    "BASE", "CKA", "DISTANCE", "GENERAL", "LM_LOSS", "Estimate", "General", "Key", "Line", "Metric", "Scores", "Summary", "answer",
    "check_rows", "class_counts", "domain_orders", "final_scores", "heading", "is_retention", "labels", "matrices", "metric", "number",
    "shown", "summarize", "typeset", "write_matrix",
]  # fmt: skip
