"""Which labelled rows are read: few-shot draws and splits, as functions from labels to row numbers.

The rules are those of CPT's release (EMNLP 2022, https://arxiv.org/abs/2210.05549), which shuffles with Hugging Face
datasets; that shuffle is ``numpy.random.default_rng(seed).permutation(n)``, so the same rows come out here without
that library. Where the release would hand on fewer rows than its rule says, these functions refuse instead: a
table of few-shot scores must not hide that a class had no rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from eunoe.errors import EunoeError

CPT_TOTAL = 32
CPT_PER_CLASS = 8


def cpt_rule(labels: Sequence[str], seed: int = 2022) -> list[int]:
    """CPT's few-shot draw: shuffle; with fewer than 5 classes the first 32 rows in all, otherwise the first 8 of each class.

    Returns row numbers in shuffled order. The draw of 32 is not stratified, as in the release. Raises
    ``EunoeError`` if there are fewer than 32 rows, or a class has fewer than 8.

    >>> len(cpt_rule(["good", "bad"] * 40))
    32
    """
    if len(set(labels)) >= 5:
        return per_class(labels, CPT_PER_CLASS, seed)
    if len(labels) < CPT_TOTAL:
        raise EunoeError(f"CPT's rule draws {CPT_TOTAL} rows in all, but there are only {len(labels)}. Give more rows, or set "
                         "shots to a number a class or to all.")  # fmt: skip
    return _shuffled(len(labels), seed)[:CPT_TOTAL]


def per_class(labels: Sequence[str], k: int, seed: int) -> list[int]:
    """A balanced draw: after a seeded shuffle the first ``k`` rows of each class, in shuffled order.

    Raises ``EunoeError`` naming each class with fewer than ``k`` rows.

    >>> sorted(per_class(["a", "b", "a", "b"], 2, seed=0))
    [0, 1, 2, 3]
    """
    if k < 1:
        raise EunoeError(f"shots must be at least 1 row a class, received {k}.")
    short = {label: n for label, n in sorted(Counter(labels).items()) if n < k}
    if short:
        listed = ", ".join(f"{label!r} has {n}" for label, n in short.items())
        raise EunoeError(f"{k} rows of each class are asked for, but {listed}. Give more rows, or ask for at most "
                         f"{min(short.values())} a class.")  # fmt: skip
    taken: Counter[str] = Counter()
    chosen = []
    for i in _shuffled(len(labels), seed):
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
