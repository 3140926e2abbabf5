"""Which labelled rows are read: few-shot draws and splits, as functions from labels to row numbers.

The rules are those of CPT's release (EMNLP 2022, https://arxiv.org/abs/2210.05549), which shuffles with Hugging Face
datasets; that shuffle is ``numpy.random.default_rng(seed).permutation(n)``, so the same rows come out here without
that library. Real label sets have rare classes: where one has fewer rows than the rule takes, the draw takes all it has,
as the release does, and says how many: a table of few-shot scores must not hide that a class had too few.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from eunoe.errors import EunoeError
from eunoe.foreign import visible

CPT_TOTAL = 32
CPT_PER_CLASS = 8
CPT_CLASSES = 5
"""From this many classes on CPT draws of each class."""
ALL_CLASSES = "(all classes)"
"""Stands for the rows in all, where a draw is not of each class."""


def draw(
    labels: Sequence[str], shots: Literal["cpt"] | int, seed: int, classes: Sequence[str] = (), strict: bool = False
) -> tuple[list[int], dict[str, int]]:
    """A few-shot draw, and where it falls short: row numbers in shuffled order, and class -> rows it has where too few.

    ``shots``: CPT's rule, or that many rows a class. A class with fewer rows gives all it has; ``classes`` names those
    that must have rows, so that one without any is counted too. The 32 rows of CPT's rule are of no class: fewer are
    counted as ``ALL_CLASSES``. Raises ``EunoeError`` with the counts if ``strict``.

    >>> draw(["a", "a", "b"], 2, seed=0)
    ([2, 0, 1], {'b': 1})
    """
    k = CPT_PER_CLASS if shots == "cpt" else shots
    if k < 1:
        raise EunoeError(f"shots must be at least 1 row a class, received {k}.")
    counts = dict.fromkeys(classes, 0) | Counter(labels)
    total = shots == "cpt" and len(set(labels)) < CPT_CLASSES
    if total:
        short = {ALL_CLASSES: len(labels)} if len(labels) < CPT_TOTAL else {}
    else:
        short = {label: n for label, n in sorted(counts.items()) if n < k}
    if short and strict:
        raise EunoeError(f"{describe(short, shots)}, and shots_strict is set. Give more rows or ask for fewer, or leave "
                         "shots_strict out to take what there is.")  # fmt: skip
    order = _shuffled(len(labels), seed)
    return order[:CPT_TOTAL] if total else _first(order, labels, k), short


def describe(short: Mapping[str, int], shots: Literal["cpt"] | int) -> str:
    """Where a draw falls short, as a sentence's beginning: what it takes, and what there is.

    >>> describe({"b": 1}, 2)
    "the draw takes 2 rows of each class, but 'b' has 1"
    """
    if ALL_CLASSES in short:
        return f"CPT's rule draws {CPT_TOTAL} rows in all, but there are only {short[ALL_CLASSES]}"
    listed = ", ".join(f"{visible(label, 60)!r} has {n}" for label, n in list(short.items())[:20])
    more = f" and {len(short) - 20} more classes have too few" if len(short) > 20 else ""
    return f"the draw takes {CPT_PER_CLASS if shots == 'cpt' else shots} rows of each class, but {listed}{more}"


def _first(order: Sequence[int], labels: Sequence[str], k: int) -> list[int]:
    """The first ``k`` rows of each class, in the order given."""
    taken: Counter[str] = Counter()
    chosen = []
    for i in order:
        if taken[labels[i]] < k:
            taken[labels[i]] += 1
            chosen.append(i)
    return chosen


def resplit(
    train_labels: Sequence[str], dev_labels: Sequence[str], test_labels: Sequence[str], r: float
) -> tuple[list[int], list[int]]:
    """CPT's rule for small test sets: dev joins test, then the first floor(N (1 - r) / C) rows of each class leave train for it.

    N is the number of training rows, C that of their classes. Returns (train, test) as numbers of the rows
    laid end to end as train, dev, test: a number below N is a training row, the next ``len(dev_labels)`` are dev
    rows, then come the test rows. The test side lists test, dev, moved rows, in that order. Raises
    ``EunoeError`` if ``r`` is not in (0, 1) or a class would keep no row.

    ACL-ARC with r = 0.9 gives 1,520 / 421 rows and SciERC with r = 0.7 gives 2,260 / 2,388, as in the release.

    >>> resplit(["a", "a", "b", "b"], ["a"], ["b"], 0.5)
    ([1, 3], [5, 4, 0, 2])
    """
    if not 0 < r < 1:
        raise EunoeError(
            f"resplit must lie between 0 and 1, received {r}; CPT used 0.9 for ACL-ARC and 0.7 for SciERC."
        )
    n, counts = len(train_labels), Counter(train_labels)
    if not n:
        raise EunoeError("resplit needs training rows, but there are none.")
    share = math.floor(n * (1 - Fraction(repr(r))) / len(counts))  # exact: 1 - 0.9 in floats falls short of 0.1
    short = [label for label, count in sorted(counts.items()) if count <= share]
    if short:
        listed = ", ".join(f"{label!r} ({counts[label]} rows)" for label in short)
        raise EunoeError(f"resplit = {r} moves {share} rows of each class to the test rows, which leaves no training row of "
                         f"{listed}. Give a larger resplit.")  # fmt: skip
    seen: Counter[str] = Counter()
    kept: list[int] = []
    moved: list[int] = []
    for i, label in enumerate(train_labels):
        (moved if seen[label] < share else kept).append(i)
        seen[label] += 1
    dev, after = n + len(dev_labels), n + len(dev_labels) + len(test_labels)
    return kept, [*range(dev, after), *range(n, dev), *moved]


def random_split(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """``n`` rows into (train, test) at random; test gets ceil(share * n) rows: ``train_test_split`` of Hugging Face datasets.

    Raises ``EunoeError`` if a side would be empty.

    >>> [len(side) for side in random_split(100, 0.1, seed=2021)]
    [90, 10]
    """
    if not 0 < share < 1:
        raise EunoeError(f"test_share must lie between 0 and 1, received {share}; CPT used 0.1 for AG News.")
    test = math.ceil(share * n)  # in floats, as there
    if test >= n:
        raise EunoeError(f"test_share = {share} of {n} rows is {test}, which leaves none to train on. Give more rows.")
    order = _shuffled(n, seed)
    return order[test:], order[:test]


def evenly(n: int, count: int) -> list[int]:
    """At most ``count`` of ``n`` row numbers, rising and spread evenly, the first and the last among them.

    >>> evenly(10, 4)
    [0, 3, 6, 9]
    """
    if count >= n:
        return list(range(n))
    return [int(i) for i in np.linspace(0, n - 1, max(count, 1)).round()]


def _shuffled(n: int, seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).permutation(n)]
