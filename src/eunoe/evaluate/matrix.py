"""What was learnt and lost, as pure functions of the matrix of scores.

``R[i][j]`` is the score of task j after the model learnt domains 0..i (0-based, in the order of learning), or None
where it was not measured; a run fills the lower triangle, j <= i. Row T-1 is the end, the diagonal is "right after
it was learnt". The formulas are those of CPT (EMNLP 2022, https://arxiv.org/abs/2210.05549) and its released code:

    final average       mean_j R[T-1][j]
    forgetting rate     1/(T-1) * sum_{i<T-1} (R[i][i] - R[T-1][i])      below 0: later domains helped
    backward transfer   minus the forgetting rate
    forward transfer    mean_i (R[i][i] - one[i])                        ours, the paper has none

Three things differ. For a loss, where lower is better, ``higher_is_better=False`` turns every difference round, so that
a positive forgetting rate always means "worse than when it was learnt". And ``tasks`` names the columns to look at,
for a sequence in which some domains have no end task: their column is empty, yet learning them can still make the
model forget the others, so their rows must stay. ``learnt_at`` names the row right after each task was learnt, for
domains that were learnt at once: with R[i][i] read as R[learnt_at[i]][i], what was learnt last cannot be forgotten.

Sums are exactly rounded (``math.fsum``): equal scores give a difference of exactly 0, in any order of summing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isfinite
from typing import TypeAlias

Matrix: TypeAlias = Sequence[Sequence[float | None]]


def final_average(R: Matrix, *, tasks: Sequence[int] | None = None) -> float:
    """Mean of the last row: how good the model is at all ``tasks`` (default: every column) at the end.

    Raises ``ValueError`` if ``R`` is empty or not square, or a cell it reads is missing.

    >>> final_average([[0.8, None], [0.6, 0.9]])
    0.75
    """
    columns = _columns(R, tasks)
    return _mean([_cell(R, len(R) - 1, j) for j in columns])


def drops(
    R: Matrix,
    *,
    tasks: Sequence[int] | None = None,
    higher_is_better: bool = True,
    learnt_at: Sequence[int] | None = None,
) -> dict[int, float]:
    """Task -> how much worse it is at the end than right after it was learnt; what was learnt last has no drop.

    Raises ``ValueError`` as ``forgetting_rate`` does.

    >>> drops([[0.75, None, None], [0.5, 0.875, None], [0.5, 1.0, 0.25]])
    {0: 0.25, 1: -0.125}
    >>> drops([[0.75, None, None], [None] * 3, [0.5, 1.0, 0.25]], learnt_at=[0, 2, 2])  # the last two at once
    {0: 0.25}
    """
    last, at = len(R) - 1, range(len(R)) if learnt_at is None else learnt_at
    columns = [j for j in _columns(R, tasks) if at[j] != last]
    if not columns:
        raise ValueError("forgetting needs a task that was learnt before the last domain, and there is none")
    sign = 1.0 if higher_is_better else -1.0
    # Adding 0.0 turns the -0.0 of an unchanged loss into 0.0.
    return {j: sign * (_cell(R, at[j], j) - _cell(R, last, j)) + 0.0 for j in columns}


def forgetting_rate(R: Matrix, *, tasks: Sequence[int] | None = None, higher_is_better: bool = True) -> float:
    """Mean drop from "right after it was learnt" to the end, over all tasks but the last domain's.

    Raises ``ValueError`` if ``R`` is empty or not square, has no task before the last, or lacks a cell it reads.

    >>> forgetting_rate([[0.75, None, None], [0.5, 0.875, None], [0.5, 1.0, 0.25]])
    0.0625
    >>> forgetting_rate([[2.0, None], [2.5, 3.0]], higher_is_better=False)  # the loss of domain 0 rose by 0.5
    0.5
    """
    return _mean(list(drops(R, tasks=tasks, higher_is_better=higher_is_better).values()))


def backward_transfer(R: Matrix, *, tasks: Sequence[int] | None = None, higher_is_better: bool = True) -> float:
    """Minus ``forgetting_rate``: above 0 where later domains helped earlier ones.

    >>> backward_transfer([[0.5, None], [0.75, 0.9]])
    0.25
    """
    return 0.0 - forgetting_rate(R, tasks=tasks, higher_is_better=higher_is_better)


def forward_transfer(
    R: Matrix, one: Sequence[float | None], *, tasks: Sequence[int] | None = None, higher_is_better: bool = True,
    learnt_at: Sequence[int] | None = None,
) -> float:  # fmt: skip
    """Mean of ``R[i][i] - one[i]``: what a task gained, right after it was learnt, over the score ``one[i]``.

    ``one`` holds a score per column of a model to compare with: one that learnt only that domain (then this is what
    the domains before it gave), or one that learnt none (then it is what learning the domain gave as well).
    Raises ``ValueError`` as the others do, and if ``one`` has another length than ``R``.

    >>> forward_transfer([[0.75, None], [0.5, 1.0]], [0.5, 0.5])
    0.375
    """
    columns, at = _columns(R, tasks), range(len(R)) if learnt_at is None else learnt_at
    if len(one) != len(R):
        raise ValueError(f"one has {len(one)} scores for the {len(R)} columns of R")
    sign = 1.0 if higher_is_better else -1.0
    gains = []
    for j in columns:
        reference = one[j]
        if reference is None or not isfinite(reference):
            raise ValueError(f"one[{j}] is {'missing' if reference is None else reference}")
        gains.append(sign * (_cell(R, at[j], j) - reference) + 0.0)
    return _mean(gains)


def _columns(R: Matrix, tasks: Sequence[int] | None) -> Sequence[int]:
    """The columns to read, after the shape of ``R`` was checked."""
    if not R:
        raise ValueError("R is empty: it needs a row per learnt domain")
    for i, row in enumerate(R):
        if len(row) != len(R):
            raise ValueError(f"R must be square: it has {len(R)} rows, but R[{i}] has {len(row)} columns")
    columns = range(len(R)) if tasks is None else tasks
    if not columns:
        raise ValueError("tasks is empty: name a column of R")
    for j in columns:
        if not 0 <= j < len(R):
            raise ValueError(f"tasks names column {j}, but R has columns 0 to {len(R) - 1}")
    return columns


def _cell(R: Matrix, i: int, j: int) -> float:
    """``R[i][j]``, which must have been measured."""
    value = R[i][j]
    if value is None or not isfinite(value):
        raise ValueError(f"R[{i}][{j}] is {'missing' if value is None else value}: task {j} after domain {i}")
    return value


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
