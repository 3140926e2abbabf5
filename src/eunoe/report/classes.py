"""How often each class of an end task was right, predicted and there: the counts that rows carry, summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from eunoe.report.files import is_count
from eunoe.report.matrices import domain_orders, final_scores
from eunoe.report.schema import Row
from eunoe.report.summary import labels

COUNTED = ("support", "predicted", "correct")

Counts: TypeAlias = dict[str, int]
"""support, predicted and correct of one class."""


def class_counts(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Counts]]]:
    """(run, transfer, task) -> (label, when) -> class -> its counts, summed over sequences and few-shot samples.

    "when" is ``before`` (pretrained), ``learnt`` (right after its domain) or ``end``. Rows without counts are left out.
    """
    names, rows = labels(rows), final_scores(rows)
    orders = domain_orders(rows)
    counted: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Counts]]] = {}
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
        task = counted.setdefault((row.run, row.transfer, row.task), {})
        for when in (name for name, holds in whens.items() if holds):
            sums = task.setdefault((names[(row.run, row.method)], when), {})
            for name, counts in row.detail.items():
                total = sums.setdefault(name, dict.fromkeys(COUNTED, 0))
                for part in COUNTED:
                    total[part] += counts[part]
    return counted


def _counts(detail: dict[str, Any] | None) -> bool:
    return bool(detail) and all(
        isinstance(c, dict) and all(is_count(c.get(part)) for part in COUNTED) for c in (detail or {}).values()
    )


__all__ = ["COUNTED", "Counts", "class_counts"]
