"""Scores of end tasks against counts made by hand and against scikit-learn and scipy; intervals against their laws."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t
from sklearn.metrics import precision_recall_fscore_support

from eunoe.evaluate import scores as module
from eunoe.evaluate.scores import classification_scores, mean_interval, regression_scores, wilson_interval


def test_the_examples_of_the_docstrings_hold() -> None:
    results = doctest.testmod(module)
    assert results.attempted >= 8
    assert results.failed == 0


def test_a_class_the_task_has_but_nobody_saw_counts_as_zero() -> None:
    perfect_but_for_c = classification_scores([0, 1], [0, 1], [0, 1, 2])
    assert perfect_but_for_c["accuracy"] == 1.0
    assert perfect_but_for_c["macro_f1"] == pytest.approx(2 / 3, abs=1e-15)
    assert perfect_but_for_c["detail"]["2"] == {"support": 0, "predicted": 0, "correct": 0}


def test_numpy_labels_are_the_same_labels() -> None:
    assert classification_scores(np.array([0, 1, 1]), np.array([0, 1, 0]), [0, 1]) == classification_scores(
        [0, 1, 1], [0, 1, 0], [0, 1]
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_macro_f1_is_the_mean_over_all_classes_of_the_task(pairs: list[tuple[int, int]]) -> None:
    gold, predicted = [g for g, _ in pairs], [p for _, p in pairs]
    result = classification_scores(gold, predicted, [0, 1, 2, 3])
    f1 = []
    for counts in result["detail"].values():
        both = counts["support"] + counts["predicted"]
        f1.append(2 * counts["correct"] / both if both else 0.0)
    assert result["macro_f1"] == pytest.approx(sum(f1) / 4, abs=1e-12)
    _, _, theirs, _ = precision_recall_fscore_support(gold, predicted, labels=[0, 1, 2, 3], zero_division=0)
    assert f1 == pytest.approx(list(theirs), abs=1e-12)
    assert result["accuracy"] == sum(c["correct"] for c in result["detail"].values()) / len(pairs)
    assert sum(c["support"] for c in result["detail"].values()) == result["n"] == len(pairs)
    assert sum(c["predicted"] for c in result["detail"].values()) == len(pairs)


@pytest.mark.parametrize(
    ("gold", "predicted", "labels", "words"),
    [
        ([], [], ["a"], "at least one"),
        (["a"], ["a", "a"], ["a"], "2 and 1"),
        (["z"], ["a"], ["a"], "gold label 'z'"),
        (["a"], ["z"], ["a"], "predicted label 'z'"),
        (["a"], [None], ["a"], "predicted label None"),
        (["a"], ["a"], ["a", "a"], "labels repeat"),
    ],
)
def test_labels_that_do_not_fit_are_refused(gold: list[str], predicted: list[str], labels: list[str], words: str):
    with pytest.raises(ValueError, match=words):
        classification_scores(gold, predicted, labels)


def test_a_constant_answer_correlates_with_nothing() -> None:
    assert regression_scores([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0, "n": 3}


def test_correlations_know_their_sign_and_their_ranks() -> None:
    result = regression_scores([0.0, 1.0, 2.0, 3.0], [9.0, 4.0, 1.0, 0.0])
    assert result["spearman"] == pytest.approx(-1.0)
    assert result["pearson"] == pytest.approx(-15 / math.sqrt(5 * 49), abs=1e-12)


@pytest.mark.parametrize(
    ("gold", "predicted", "words"),
    [([1.0], [1.0], "at least 2"), ([1.0, 2.0], [1.0], "one length"), ([1.0, 2.0], [1.0, math.nan], "predicted holds")],
)
def test_numbers_that_do_not_fit_are_refused(gold: list[float], predicted: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        regression_scores(gold, predicted)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_agrees_with_scipy_and_holds_the_share(kn: tuple[int, int], confidence: float) -> None:
    k, n = kn
    low, high = wilson_interval(k, n, confidence)
    theirs = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0.0 <= low <= k / n <= high <= 1.0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    interval = mean_interval(values, 0.9)
    assert interval is not None
    sem = np.std(values, ddof=1) / math.sqrt(len(values))
    half = t.ppf(0.95, len(values) - 1) * sem
    assert interval == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-6)


def test_one_value_has_no_interval_and_equal_values_have_no_width() -> None:
    assert mean_interval([3.0]) is None
    assert mean_interval([0.1, 0.1, 0.1]) == (0.1, 0.1)


def test_intervals_refuse_what_they_cannot_say() -> None:
    for k, n in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="0 <= k <= n"):
            wilson_interval(k, n)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, 95)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.inf])
