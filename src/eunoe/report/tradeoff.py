"""Learnt against forgotten: which methods nothing beats in both, which end best, and how sure one is ahead of another.

Methods are compared over the sequences (order and seed) that both went through: what a seed or an order does to both
cancels in the difference, so its interval (Student's t) is the one that says whether one is ahead of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from eunoe.report.matrices import BASE
from eunoe.report.metrics import Estimate, Metric
from eunoe.report.summary import LEARNS_NONE, Line, Summary


@dataclass(frozen=True)
class Mark:
    """A method that learns one domain after another, where it stands."""

    label: str
    forgot: Estimate
    learnt: Estimate


@dataclass(frozen=True)
class Tradeoff:
    """All methods of a run on one metric. In stored units; ``forgot`` above 0 is worse."""

    metric: Metric
    gained: bool
    """``learnt`` is what right after learning is better than the pretrained model; else the score right after learning itself,
    as the pretrained model was not scored."""
    marks: list[Mark]
    levels: dict[str, float]
    """What cannot forget, by name: the pretrained model, methods that learn nothing or all at once -> where it stands on the
    axis of ``learnt``."""

    @property
    def front(self) -> list[Mark]:
        """The marks that no other one beats or equals in both, by what they forgot; of several in one place the first."""
        up = 1.0 if self.gained or self.metric.higher_is_better else -1.0
        points = {(mark.forgot.mean, up * mark.learnt.mean): mark for mark in reversed(self.marks)}
        return [points[point] for point in undominated(list(points))]


def tradeoff(lines: Sequence[Line]) -> Tradeoff | None:
    """Of the lines of one metric and transfer; None where no method has both numbers.

    A method that lacks one of them, as its run is unfinished, has no mark.
    """
    rated = [line for line in lines if line.forgetting is not None]
    gained = any(line.forward for line in rated)
    what: Literal["gained", "learnt"] = "gained" if gained else "learnt"
    marks = [Mark(line.label, line.forgetting, learnt) for line in rated
             for learnt in [estimate(line, what)] if line.forgetting and learnt]  # fmt: skip
    if not marks:
        return None
    metric = lines[0].metric
    start = next((line.final.mean for line in lines if line.method == BASE and line.final), None)
    levels: dict[str, float] = {}
    for line in lines:
        if line.method == BASE:
            level = start
        elif line.no_rate:
            own = estimate(line, what) or (line.final if line.no_rate == LEARNS_NONE or not gained else None)
            level = own.mean if own else None
            if gained and line.no_rate == LEARNS_NONE and level is not None:
                level = None if start is None else (level - start) * (1 if metric.higher_is_better else -1)
        else:
            continue
        if level is not None:
            levels[line.label] = 0.0 if gained and line.method == BASE else level + 0.0
    return Tradeoff(metric, gained, marks, levels)


def estimate(line: Line, what: Literal["final", "learnt", "gained", "forgot"]) -> Estimate | None:
    """One number of a line over its sequences; None where no sequence has it."""
    values = tuple(value for one in line.measured.values() for value in [getattr(one, what)] if value is not None)
    return Estimate(values) if values else None


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (lost, score) that no other one beats with less lost and more scored, by what is lost.

    >>> undominated([(0.1, 0.5), (0.2, 0.4), (0.3, 0.7), (0.3, 0.6)])
    [(0.1, 0.5), (0.3, 0.7)]
    """
    kept: list[tuple[float, float]] = []
    for lost, score in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or score > kept[-1][1]:
            kept.append((lost, score))
    return kept


# -- who is ahead -----------------------------------------------------------------------------------------------
def main_lines(summary: Summary) -> list[Line]:
    """The lines that methods are ranked by: of the first metric that anything was forgotten in, or else of the first."""
    sections = [lines for _, lines in summary.sections()]
    return next(
        (lines for lines in sections if any(line.forgetting for line in lines)), sections[0] if sections else []
    )


def ranked(lines: Iterable[Line]) -> list[Line]:
    """The methods that learn one domain after another, the best at the end first; of equal ones that which forgot less."""
    rated = [line for line in lines if line.forgetting and line.final and line.method != BASE]

    def key(line: Line) -> tuple[float, float]:
        assert line.final is not None and line.forgetting is not None  # noqa: PT018
        return (-line.final.mean if line.metric.higher_is_better else line.final.mean, line.forgetting.mean)

    return sorted(rated, key=key)


def ahead(first: Line, second: Line) -> Estimate | None:
    """By how much ``first`` ends better than ``second``, over the sequences that both have; below 0: worse. None without any.

    Of two runs, their sequences of the same order and seed are paired.
    """
    sign = 1.0 if first.metric.higher_is_better else -1.0
    gaps = []
    for key, one in first.measured.items():
        other = second.measured.get(key)
        if one.final is not None and other is not None and other.final is not None:
            gaps.append(sign * (one.final - other.final) + 0.0)
    return Estimate(tuple(gaps), all(gap == 0 for gap in gaps)) if gaps else None


def distinct(gap: Estimate | None) -> bool | None:
    """Can the difference be distinguished from 0? None where nobody can say: no common sequence, or one alone."""
    if gap is None or gap.interval is None:
        return None
    low, high = gap.interval
    return low > 0 or high < 0


__all__ = [
    "Mark", "Tradeoff", "ahead", "distinct", "estimate", "main_lines", "ranked", "tradeoff", "undominated",
]  # fmt: skip
