"""lambda(t): the three curves, their special cases, and that nothing overflows."""

from __future__ import annotations

from math import exp, inf, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.optim.anneal import ANNEALINGS, anneal

steps = st.integers(1, 10**7)
rates = st.floats(0, 1e6) | st.just(inf)
centres = st.floats(0, 1e7)


@given(st.sampled_from(sorted(ANNEALINGS)), steps, rates, centres)
def test_lambda_lies_in_0_to_1(name: str, t: int, k: float, t0: float) -> None:
    assert isfinite(anneal(name, t, k, t0))
    assert 0 <= anneal(name, t, k, t0) <= 1


@given(st.sampled_from(sorted(ANNEALINGS)), steps, steps, rates, centres)
def test_lambda_never_falls(name: str, t: int, more: int, k: float, t0: float) -> None:
    assert anneal(name, t + more, k, t0) >= anneal(name, t, k, t0)


@given(st.integers(1, 600), st.floats(0, 1), st.floats(0, 600))
def test_the_sigmoid_is_the_formula_of_the_paper(t: int, k: float, t0: float) -> None:
    assert anneal("sigmoid", t, k, t0) == pytest.approx(1 / (1 + exp(-k * (t - t0))), rel=1e-12)


def test_a_steep_sigmoid_far_before_its_centre_is_0_and_not_nan() -> None:
    assert anneal("sigmoid", 1, 1.0, 1000) == 0.0
    assert anneal("sigmoid", 1, 5.0, 10**9) == 0.0


def test_k_0_is_one_half_at_every_step_and_k_infinite_is_a_step() -> None:
    assert [anneal("sigmoid", t, 0.0, 250) for t in (1, 250, 10**6)] == [0.5] * 3
    assert [anneal("sigmoid", t, inf, 250) for t in (1, 249, 250, 251)] == [0.0, 0.0, 0.5, 1.0]


def test_linear_rises_to_1_at_t0_and_constant_is_1() -> None:
    assert [anneal("linear", t, 0.5, 4) for t in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert anneal("linear", 1, 0.5, 0) == 1.0
    assert anneal("constant", 1, 0.5, 250) == 1.0


def test_an_unknown_name_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"'sigmod'.*sigmoid, linear, constant"):
        anneal("sigmod", 1, 0.5, 250)
