"""The scores of an end task, and how sure one can be of them. All scores are fractions, never percent.

Macro-F1 is the papers' MF1: the unweighted mean over classes of the F1 of each class (scikit-learn computes it).
The mean runs over the classes OF THE TASK: one that occurs neither among the gold labels nor among the predictions
counts as 0. scikit-learn's default leaves such a class out, which lets a small test set raise the score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from math import fsum, isfinite, sqrt
from statistics import NormalDist
from typing import TypedDict

# scikit-learn and scipy.stats are loaded by what needs them: a second that no command need wait for at its start


class ClassCounts(TypedDict):
    """One class of a task: test rows that have it, that were given it, and that have it and were given it."""

    support: int
    predicted: int
    correct: int


class ClassificationScores(TypedDict):
    """``accuracy`` and ``macro_f1`` are fractions in [0, 1]; ``n`` is the number of test rows."""

    accuracy: float
    macro_f1: float
    n: int
    detail: dict[str, ClassCounts]


class RegressionScores(TypedDict):
    """``pearson`` and ``spearman`` lie in [-1, 1]; ``n`` is the number of test rows."""

    pearson: float
    spearman: float
    n: int


def classification_scores(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Sequence[Hashable]
) -> ClassificationScores:
    """Accuracy, macro-F1 and counts per class of ``predicted`` against ``gold``, two lists of one length.

    ``labels`` are all classes of the task, in the order the counts should have. Raises ``ValueError`` on lists that
    are empty or of unequal length, on repeated labels, and on a gold or predicted label that the task does not have.

    >>> scores = classification_scores(["a", "a", "b", "b"], ["a", "b", "b", "b"], ["a", "b", "c"])
    >>> scores["accuracy"], round(scores["macro_f1"], 4)  # F1 of a, b, c: 2/3, 4/5, 0
    (0.75, 0.4889)
    >>> scores["detail"]["b"]
    {'support': 2, 'predicted': 3, 'correct': 2}
    """
    from sklearn.metrics import f1_score

    if not len(gold) or len(gold) != len(predicted):
        raise ValueError(f"need as many predictions as gold labels, and at least one: {len(predicted)} and {len(gold)}")
    names = [str(label) for label in labels]
    if len(set(names)) != len(names):
        raise ValueError(f"labels repeat: {names}")
    index = {label: i for i, label in enumerate(labels)}
    for what, given in (("gold", gold), ("predicted", predicted)):
        strange = next((label for label in given if label not in index), None)
        if strange is not None or (None in given and None not in index):
            raise ValueError(f"{what} label {strange!r} is none of the task's classes {names}")
    g = [index[label] for label in gold]
    p = [index[label] for label in predicted]
    support, predictions = Counter(g), Counter(p)
    correct = Counter(a for a, b in zip(g, p, strict=True) if a == b)
    return ClassificationScores(
        accuracy=sum(correct.values()) / len(g),
        macro_f1=float(f1_score(g, p, labels=list(range(len(names))), average="macro", zero_division=0)),
        n=len(g),
        detail={
            name: ClassCounts(support=support[i], predicted=predictions[i], correct=correct[i])
            for i, name in enumerate(names)
        },
    )


def regression_scores(gold: Sequence[float], predicted: Sequence[float]) -> RegressionScores:
    """Pearson's and Spearman's correlation of two lists of numbers of one length.

    Where one of the lists is constant a correlation is not defined; it is given as 0, as a model that answers the
    same to everything shows no relation. Raises ``ValueError`` on fewer than two pairs, on lists of unequal length
    and on numbers that are not finite.

    >>> scores = regression_scores([1, 2, 3, 4], [1, 2, 3, 10])
    >>> round(scores["pearson"], 4), round(scores["spearman"], 4)
    (0.8854, 1.0)
    """
    from scipy.stats import pearsonr, spearmanr

    if len(gold) != len(predicted) or len(gold) < 2:
        raise ValueError(f"need two lists of one length, at least 2: {len(predicted)} predictions, {len(gold)} gold")
    for what, given in (("gold", gold), ("predicted", predicted)):
        strange = next((value for value in given if not isfinite(value)), None)
        if strange is not None:
            raise ValueError(f"{what} holds {strange}, which is not a finite number")
    # without spread there is no correlation; nan would spoil every average it enters
    if min(gold) == max(gold) or min(predicted) == max(predicted):
        return RegressionScores(pearson=0.0, spearman=0.0, n=len(gold))
    return RegressionScores(
        pearson=float(pearsonr(gold, predicted).statistic),
        spearman=float(spearmanr(gold, predicted).statistic),
        n=len(gold),
    )


def matthews(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Matthews' correlation of two lists of classes, in [-1, 1]; 0 where one of them is constant (GLUE's metric of CoLA).

    >>> matthews(["a", "a", "b", "b"], ["a", "b", "b", "b"]).__round__(4)
    0.5774
    """
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef([str(g) for g in gold], [str(p) for p in predicted]))


def f1(gold: Sequence[Hashable], predicted: Sequence[Hashable], positive: Hashable) -> float:
    """F1 of the class ``positive``; 0 where it is neither given nor predicted (GLUE's second metric of MRPC and QQP).

    >>> f1([1, 1, 0], [1, 0, 0], 1).__round__(4)
    0.6667
    """
    hits = sum(g == p == positive for g, p in zip(gold, predicted, strict=True))
    marked = sum(p == positive for p in predicted) + sum(g == positive for g in gold)
    return 2 * hits / marked if marked else 0.0


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The spans (begin, end, type) of one sentence's tags in IOB1, IOB2 or IOBES, read as CoNLL's script reads them.

    A span begins at B- or S-, and at I- or E- of another type than the span that runs; it ends before O, before a new one begins, and
    after E- or S-.

    >>> sorted(spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC')]
    """
    made: set[tuple[int, int, str]] = set()
    begin, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, new = tag.partition("-")
        if kind and (mark in ("O", "B", "S") or new != kind):
            made.add((begin, i, kind))
            kind = ""
        if mark == "O":
            continue
        if not kind:
            begin, kind = i, new
        if mark in ("E", "S"):
            made.add((begin, i + 1, kind))
            kind = ""
    return made


def are_spans(tags: Iterable[str]) -> bool:
    """Do the tags mark spans (O, B-, I-, E-, S- and a type)? Parts of speech do not.

    >>> are_spans(["O", "B-PER", "I-PER"]), are_spans(["NN", "O"]), are_spans(["O"])
    (True, False, False)
    """
    different = set(tags) - {"O"}
    return bool(different) and all(tag[:2] in ("B-", "I-", "E-", "S-") and len(tag) > 2 for tag in different)


def span_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall of the spans of all sentences: one is right if its begin, end and type are. 0 where there is none.

    >>> span_scores([["B-X", "I-X", "B-Y"]], [["B-X", "I-X", "O"]])
    {'span_f1': 0.6666666666666666, 'span_precision': 1.0, 'span_recall': 0.5}
    """
    pairs = [(spans(g), spans(p)) for g, p in zip(gold, predicted, strict=True)]
    hits, given, right = (
        sum(map(len, part)) for part in ([g & p for g, p in pairs], [p for _, p in pairs], [g for g, _ in pairs])
    )
    return {
        "span_f1": 2 * hits / (given + right) if given + right else 0.0,
        "span_precision": hits / given if given else 0.0,
        "span_recall": hits / right if right else 0.0,
    }


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) for the fraction behind ``k`` hits in ``n`` independent trials.

    It stays inside [0, 1] and holds its level for small n and for k = 0 or n, where the usual mean +- 1.96 standard
    errors has no width. Raises ``ValueError`` unless 0 <= k <= n, n >= 1 and 0 < confidence < 1.

    >>> low, high = wilson_interval(10, 10)
    >>> round(low, 4), high
    (0.7225, 1.0)
    """
    if not (n >= 1 and 0 <= k <= n):
        raise ValueError(f"need 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
    z = NormalDist().inv_cdf((1 + _level(confidence)) / 2)
    share = k / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The ends are exactly 0 and 1 on paper; rounding must not move them, nor push the interval off the share.
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval for the mean of independent repeats (seeds); None for a single value, which has no spread.

    Raises ``ValueError`` on no values, on values that are not finite, and unless 0 < confidence < 1.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    from scipy.special import stdtrit

    n = len(values)
    if not n or not all(isfinite(value) for value in values):
        raise ValueError(f"need at least one value, all finite, got {list(values)}")
    level = _level(confidence)
    if n == 1:
        return None
    if min(values) == max(values):
        return (values[0], values[0])  # fsum / n may differ from it in the last bit
    mean = fsum(values) / n
    spread = sqrt(fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * spread / sqrt(n)
    return (mean - half, mean + half)


def _level(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return confidence
