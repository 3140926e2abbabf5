"""What is told before a run: the numbers are the optimizer's own, and silent failures are named with figures."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam, make_scheduler
from eunoe.optim.advice import lambda_curve, warnings
from eunoe.optim.table import RecAdamSettings


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize(("schedule", "warmup"), [("linear", 0.2), ("constant", 0)])
def test_the_pulls_are_those_that_the_optimizer_makes(form: Any, schedule: str, warmup: float) -> None:
    settings = RecAdamSettings(form=form, gamma=500.0 if form == "released" else 0.5, t0=0.5, rise=0.4, weight=0.9)
    curve = lambda_curve(settings, 1e-3, 20, schedule, warmup)
    k, t0 = settings.in_steps(20)
    p, anchor = nn.Parameter(torch.ones(1, dtype=torch.float64)), torch.zeros(1, dtype=torch.float64)
    optimizer = RecAdam(
        [{"params": [p], "anchor": [anchor]}], 1e-3, gamma=settings.gamma, k=k, t0=t0, weight=0.9, form=form
    )
    scheduler = make_scheduler(optimizer, schedule, 20, warmup)
    for _ in curve:
        p.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
    assert p.item() == pytest.approx(prod(1 - point.pull for point in curve), rel=1e-12)


def test_a_curve_has_a_point_for_each_step_with_lambda_pull_and_rate() -> None:
    curve = lambda_curve(RecAdamSettings(anneal="linear", t0=4), lr=2e-5, steps=4)
    assert [point.step for point in curve] == [1, 2, 3, 4]
    assert [point.lam for point in curve] == [0.25, 0.5, 0.75, 1.0]
    assert [point.pull for point in curve] == pytest.approx([0.1 * 0.75, 0.075 * 0.5, 0.05 * 0.25, 0])
    assert [point.rate for point in curve] == pytest.approx([5e-6, 7.5e-6, 7.5e-6, 5e-6])


def advice_on(
    start: Any = "pretrained", lr: float = 2e-5, steps: int = 1000, warmup: float = 0, **named: Any
) -> list[str]:
    return warnings(RecAdamSettings(**named), lr, steps, warmup=warmup, start=start)


def test_the_papers_settings_are_fine_from_either_start() -> None:
    for t0, k in ((250, 0.05), (500, 0.2), (1000, 1)):
        assert advice_on(steps=13400, t0=t0, k=k) == advice_on("random", steps=13400, t0=t0, k=k) == []


def test_a_run_that_ends_before_lambda_rises_is_told_that_nothing_is_learnt() -> None:
    (line,) = advice_on(steps=200)
    assert line.startswith("nothing is ever learnt: the target task gets 0.00% of the learning rate over the 200 steps")
    assert "t0 is 250" in line


@pytest.mark.parametrize("named", [{"k": "inf", "t0": 0}, {"anneal": "constant"}, {"weight": 0}, {"gamma": 1e-3}])
def test_a_pull_that_does_nothing_is_told_with_what_is_left(named: dict[str, Any]) -> None:
    (line,) = advice_on(**named)
    assert line.startswith("nothing is ever pulled: after all 1,000 steps ")
    assert "% of a distance to the pretrained weights would be left" in line


def test_a_random_start_that_is_not_rebuilt_by_t0_is_told_how_many_steps_it_takes() -> None:
    (line,) = advice_on("random", t0=20, k=1.0)
    assert "at t0, step 20, " in line
    assert "it takes 66 steps" in line  # 0.9^66 = 0.00096, at lr * gamma = 0.1
    assert advice_on(t0=20, k=1.0) == advice_on("random", t0=90, k=1.0) == []


def test_a_random_start_without_any_pull_is_told_so() -> None:
    assert any("Nothing pulls here at all" in line for line in advice_on("random", anneal="constant"))


def test_what_the_optimizer_refuses_is_refused_here_too() -> None:
    with pytest.raises(EunoeError, match="is above 2"):
        lambda_curve(RecAdamSettings(), 1e-3, 10)
    with pytest.raises(EunoeError, match="rise is 3"):
        warnings(RecAdamSettings(rise=3), 1e-5, 10)
    with pytest.raises(ValueError, match="unknown schedule"):
        lambda_curve(RecAdamSettings(), 1e-5, 10, "linaer")


@given(
    st.integers(0, 60),
    st.floats(0, 1),
    st.floats(0, 5) | st.just("inf"),
    st.floats(0, 100),
    st.floats(0, 2),
    st.sampled_from(["sigmoid", "linear", "constant"]),
    st.sampled_from(["pretrained", "random"]),
    st.floats(0, 1),
)
def test_any_allowed_settings_give_a_finite_curve_and_sentences(
    steps: int, pull: float, k: Any, t0: float, weight: float, form: Any, start: Any, warmup: float
) -> None:
    read = {"sigmoid": {"k": k, "t0": t0}, "linear": {"t0": t0}, "constant": {}}[form]
    settings = RecAdamSettings(gamma=pull / 1e-4, weight=weight, anneal=form, **read)
    curve = lambda_curve(settings, 1e-4, steps, "linear", warmup)
    assert len(curve) == steps
    assert all(0 <= point.pull <= 2 and 0 <= point.rate <= 2e-4 for point in curve)
    assert all("nan" not in line for line in warnings(settings, 1e-4, steps, "linear", warmup, start))
