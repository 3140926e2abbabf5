"""From the rows of runs over domains to matrices of scores, and the same as a table for other programs.

Nothing here is stored: everything is computed from the rows each time. A sequence is one method going once through one
order of the domains with one seed. A score that several few-shot samples were drawn for is their mean, as these are no
independent repeats of the learning.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import NamedTuple

from eunoe.atomic import write_bytes
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.report.metrics import METRICS, is_retention
from eunoe.report.schema import Row

BASE = "base"
GENERAL = "general"


def final_scores(rows: Iterable[Row]) -> list[Row]:
    """The rows that matrices are made of: scores after the last step, no measures of retention."""
    return [row for row in rows if row.at == "last" and not is_retention(row.metric)]


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
    that of the pretrained model. ``reference[s][j]`` is that of a method that learns no domain, which has no ``seeds``.
    ``tasks`` are the columns that this metric exists for in the run. ``n[j]`` is how many items a score of column j is a
    mean over. ``places[j]`` is the row right after domain j was learnt: j, unless several were learnt at once. The column of a
    domain that an order names again is the first of its name; the others are empty and no ``tasks``.
    """

    key: Key
    domains: tuple[str, ...]
    tasks: tuple[int, ...]
    seeds: dict[int, list[list[float | None]]]
    before: dict[int, list[float | None]]
    n: dict[int, int]
    places: tuple[int, ...]
    reference: dict[int, list[float | None]]

    def mean(self) -> list[list[float | None]]:
        """Cell by cell, the mean over the seeds that measured it."""
        size = range(len(self.domains))
        return [[_average(R[i][j] for R in self.seeds.values()) for j in size] for i in size]

    def mean_before(self) -> list[float | None]:
        return [_average(row[j] for row in self.before.values()) for j in range(len(self.domains))]

    def mean_end(self) -> list[float | None]:
        """The last row's mean; of a method that learns no domain, that of its only scores."""
        if self.seeds:
            return self.mean()[-1]
        return [_average(row[j] for row in self.reference.values()) for j in range(len(self.domains))]

    @property
    def at_once(self) -> bool:
        """Were all of several domains learnt at once?"""
        return len(self.domains) > 1 and set(self.places) == {len(self.domains) - 1}

    @property
    def columns(self) -> list[int]:
        """Those that can hold scores: the first of each domain."""
        return [self.domains.index(name) for name in dict.fromkeys(self.domains)]

    def visits(self, j: int) -> list[int]:
        """The rows right after domain j was learnt: several where it returns."""
        return [at for at, name in zip(self.places, self.domains, strict=True) if name == self.domains[j]]

    @property
    def learnt_at(self) -> list[int]:
        """Column -> the row right after its domain was learnt last: from there on it can be forgotten."""
        return last_visits(self.places, self.domains)


def _average(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return fsum(measured) / len(measured) if measured else None


def check_rows(rows: Sequence[Row]) -> None:
    """Raises ``EunoeError`` where two rows give one score two values."""
    seen: dict[tuple[object, ...], float] = {}
    for row in rows:
        first = seen.setdefault((row.run, *row.key), row.value)
        if first != row.value:
            raise EunoeError(
                f"two rows of run {row.run!r} give {row.metric} of {row.task!r} ({row.method}, seed {row.seed}, after "
                f"{visible(list(row.learnt))}) as {first} and {row.value}. Rows of different runs need different run names."
            )


def domain_orders(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[str, ...]]:
    """(run, order) -> its domains as learnt; those that no method has come to yet follow, in the order they were scored.

    Raises ``EunoeError`` if two sequences of one order learnt different domains.
    """
    longest: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in rows:
        known = longest.setdefault((row.run, row.order), ())
        short, long = sorted((known, row.learnt), key=len)
        if short != long[: len(short)]:
            raise EunoeError(
                f"order {row.order!r} of run {row.run!r} is learnt as {visible(list(long))} and as {visible(list(short))} "
                f"(method {row.method}). Rows of one order must agree: give the two orders two names."
            )
        longest[(row.run, row.order)] = long
    later: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.task != GENERAL and row.task not in longest[(row.run, row.order)]:
            later.setdefault((row.run, row.order), {})[row.task] = None
    scored = {(row.run, row.order) for row in rows if row.learnt or is_reference(row)}
    return {k: domains + tuple(later.get(k, {})) if k in scored else () for k, domains in longest.items()}


def is_reference(row: Row) -> bool:
    """Is it a score on a domain of a method that learns no domain?"""
    return not row.learnt and row.method != BASE and row.task != GENERAL


def last_visits(places: Sequence[int], domains: Sequence[str]) -> list[int]:
    """Column -> the last of ``places`` of its domain.

    >>> last_visits([0, 1, 2], ["a", "b", "a"])
    [2, 1, 2]
    """
    last = dict(zip(domains, places, strict=True))
    return [last[name] for name in domains]


def places_of(rows: Iterable[Row], domains: int) -> tuple[int, ...]:
    """Place in the order -> the row of the matrix right after it was learnt, for the rows of one method in one order."""
    places = list(range(domains))
    for row in rows:
        if row.at_once:
            last = len(row.learnt) - 1
            places[last + 1 - row.at_once : last + 1] = [last] * row.at_once
    return tuple(places)


def matrices(rows: Sequence[Row]) -> list[Scores]:
    """All matrices, by run and metric, methods in the order they first appear. ``base`` is in each one's ``before``."""
    check_rows(rows)
    rows = final_scores(rows)
    runs = {name: i for i, name in enumerate(dict.fromkeys(row.run for row in rows))}
    orders = domain_orders(rows)
    rows = [row for row in rows if row.task != GENERAL]
    columns: dict[tuple[str, str | None, str], set[str]] = {}
    grouped: dict[Key, list[Row]] = {}
    for row in rows:
        columns.setdefault((row.run, row.transfer, row.metric), set()).add(row.task)
        grouped.setdefault(_key(row), []).append(row)
    keys = dict.fromkeys(_key(row) for row in rows if row.learnt or is_reference(row))
    return [
        _scores(key, orders[(key.run, key.order)], columns[(key.run, key.transfer, key.metric)],
                grouped[key],
                [row for row in grouped.get(key._replace(method=BASE), []) if not row.learnt])
        for key in sorted(keys, key=lambda k: (runs[k.run], metric_rank(k.metric), k.metric))
    ]  # fmt: skip


def _scores(
    key: Key, domains: tuple[str, ...], scored: Container[str], rows: Sequence[Row], base: Sequence[Row]
) -> Scores:
    cells, start = _cells(rows), _cells(base)
    columns = [name if domains.index(name) == j else None for j, name in enumerate(domains)]

    def line(
        scores: Mapping[tuple[int, tuple[str, ...], str], float], seed: int, learnt: tuple[str, ...]
    ) -> list[float | None]:
        return [None if name is None else scores.get((seed, learnt, name)) for name in columns]

    states = [domains[: i + 1] for i in range(len(domains))]
    places = {name: j for j, name in reversed([*enumerate(domains)])}
    return Scores(
        key=key, domains=domains, tasks=tuple(j for j, name in enumerate(columns) if name is not None and name in scored),
        seeds={s: [line(cells, s, learnt) for learnt in states]
               for s in dict.fromkeys(row.seed for row in rows if row.learnt)},
        before={s: line(start, s, ()) for s in dict.fromkeys(row.seed for row in base)},
        n={places[row.task]: row.n for row in rows if row.task in places},
        places=places_of(rows, len(domains)),
        reference={s: line(cells, s, ()) for s in dict.fromkeys(r.seed for r in rows if not r.learnt)},
    )  # fmt: skip


def _key(row: Row) -> Key:
    return Key(row.run, row.method, row.transfer, row.order, row.metric)


def metric_rank(name: str) -> int:
    """Where a metric comes among the others, as ``METRICS`` lists them."""
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


# -- for other programs ----------------------------------------------------------------------------------------------
def write_matrix(rows: Sequence[Row], path: Path) -> None:
    """Write ``matrix_csv(rows)``; the file appears whole or not at all."""
    write_bytes(path, matrix_csv(rows))


def matrix_csv(rows: Sequence[Row]) -> bytes:
    """Every cell of every matrix as one line of CSV, in full precision. Measures of retention, and scores before the last
    step, are no cells.

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
    return out.getvalue().encode("utf-8", "replace")


__all__ = [
    "BASE", "GENERAL", "Key", "Scores", "check_rows", "domain_orders", "final_scores", "is_reference", "last_visits", "matrices",
    "matrix_csv", "metric_rank", "places_of", "write_matrix",
]  # fmt: skip
