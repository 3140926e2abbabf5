"""The formulas of the score matrix: hand-made numbers, what is refused, and laws that hold for any matrix."""

from __future__ import annotations

import ast
import doctest
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.evaluate import matrix
from eunoe.evaluate.matrix import backward_transfer, drops, final_average, forgetting_rate, forward_transfer

# Worked by hand: drops 0.80-0.68 = 0.12, 0.70-0.66 = 0.04, 0.60-0.61 = -0.01, mean 0.05.
R = [
    [0.80, None, None, None],
    [0.78, 0.70, None, None],
    [0.70, 0.69, 0.60, None],
    [0.68, 0.66, 0.61, 0.65],
]


def test_the_examples_of_the_docstrings_hold() -> None:
    results = doctest.testmod(matrix)
    assert results.attempted >= 6
    assert results.failed == 0


def test_a_matrix_worked_by_hand() -> None:
    assert final_average(R) == pytest.approx((0.68 + 0.66 + 0.61 + 0.65) / 4, abs=1e-15)
    assert forgetting_rate(R) == pytest.approx(0.05, abs=1e-15)
    assert backward_transfer(R) == pytest.approx(-0.05, abs=1e-15)
    assert forward_transfer(R, [0.5, 0.6, 0.7, 0.6]) == pytest.approx((0.3 + 0.1 - 0.1 + 0.05) / 4, abs=1e-15)


def test_a_loss_that_rose_is_forgetting_and_one_below_the_reference_is_a_gain() -> None:
    loss = [[2.0, None], [2.5, 3.0]]
    assert forgetting_rate(loss, higher_is_better=False) == 0.5
    assert backward_transfer(loss, higher_is_better=False) == -0.5
    assert forward_transfer(loss, [2.25, 3.25], higher_is_better=False) == 0.25


def test_domains_without_an_end_task_keep_their_row_but_not_their_column() -> None:
    # Only tasks 0 and 2 of four exist: the drops are 0.80-0.68 and 0.60-0.61.
    sparse = [[value if j in (0, 2) else None for j, value in enumerate(row)] for row in R]
    assert forgetting_rate(sparse, tasks=[0, 2]) == pytest.approx(0.055, abs=1e-15)
    assert final_average(sparse, tasks=[0, 2]) == pytest.approx(0.645, abs=1e-15)
    with pytest.raises(ValueError, match=r"R\[3\]\[1\] is missing"):
        final_average(sparse)


def test_an_unchanged_loss_is_plus_zero_not_minus_zero() -> None:
    same = [[2.1, None], [2.1, 3.0]]
    for value in (forgetting_rate(same, higher_is_better=False), backward_transfer(same)):
        assert str(value) == "0.0"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], "R is empty"),
        ([[1.0, 2.0], [1.0]], r"R\[1\] has 1 columns"),
        ([[1.0], [1.0]], r"R\[0\] has 1 columns"),
        ([[None, None], [0.5, 0.5]], r"R\[0\]\[0\] is missing: task 0 after domain 0"),
        ([[0.5, None], [None, 0.5]], r"R\[1\]\[0\] is missing: task 0 after domain 1"),
        ([[0.5, None], [float("nan"), 0.5]], r"R\[1\]\[0\] is nan"),
        ([[0.5]], "before the last domain"),
    ],
)
def test_a_matrix_that_cannot_be_read_is_refused_by_name(bad: list[list[float | None]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        forgetting_rate(bad)


def test_forward_transfer_refuses_a_reference_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="one has 1 scores for the 2 columns"):
        forward_transfer([[1.0, None], [1.0, 1.0]], [0.5])
    with pytest.raises(ValueError, match=r"one\[1\] is missing"):
        forward_transfer([[1.0, None], [1.0, 1.0]], [0.5, None])
    with pytest.raises(ValueError, match="tasks names column 2"):
        forward_transfer([[1.0, None], [1.0, 1.0]], [0.5, 0.5], tasks=[2])
    with pytest.raises(ValueError, match="tasks is empty"):
        final_average([[1.0]], tasks=[])


def test_only_the_needed_cells_are_read() -> None:
    holes = [[0.5, None, None], [None, 0.75, None], [0.25, 0.5, 1.0]]
    assert forgetting_rate(holes) == 0.25


def test_the_module_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(matrix.__file__).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)


scores = st.floats(-100, 100, allow_nan=False)


@st.composite
def filled(draw: st.DrawFn, least: int = 2) -> list[list[float | None]]:
    size = draw(st.integers(least, 7))
    return [[draw(scores) if j <= i else None for j in range(size)] for i in range(size)]


@given(filled())
def test_backward_transfer_is_minus_the_forgetting_rate(r: list[list[float | None]]) -> None:
    assert backward_transfer(r) == -forgetting_rate(r)


@given(filled())
def test_higher_is_better_only_turns_the_sign(r: list[list[float | None]]) -> None:
    assert forgetting_rate(r, higher_is_better=False) == -forgetting_rate(r)
    one = [0.0] * len(r)
    assert forward_transfer(r, one, higher_is_better=False) == -forward_transfer(r, one)


@given(filled(), scores)
def test_a_model_that_never_changes_forgets_exactly_nothing(r: list[list[float | None]], shift: float) -> None:
    frozen = [[r[j][j] if j <= i else None for j in range(len(r))] for i in range(len(r))]
    assert forgetting_rate(frozen) == 0.0
    assert final_average(frozen) == forward_transfer(frozen, [0.0] * len(r))


@given(filled())
def test_cells_above_the_diagonal_and_between_change_nothing(r: list[list[float | None]]) -> None:
    size = len(r)
    stripped = [[r[i][j] if j == i or i == size - 1 else None for j in range(size)] for i in range(size)]
    assert forgetting_rate(stripped) == forgetting_rate(r)
    assert final_average(stripped) == final_average(r)


@given(filled(), st.randoms(use_true_random=False))
def test_the_order_of_the_tasks_does_not_matter(r: list[list[float | None]], chance: random.Random) -> None:
    tasks = list(range(len(r)))
    chance.shuffle(tasks)
    assert final_average(r, tasks=tasks) == final_average(r)
    assert forgetting_rate(r, tasks=tasks) == forgetting_rate(r)


@given(filled())
def test_the_forgetting_rate_lies_between_its_drops(r: list[list[float | None]]) -> None:
    every = drops(r)
    assert sorted(every) == list(range(len(r) - 1))
    assert min(every.values()) - 1e-9 <= forgetting_rate(r) <= max(every.values()) + 1e-9
