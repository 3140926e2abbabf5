"""Rates over a run: the shapes, the warm-up, agreement with transformers, and an exact resume."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from eunoe.optim.schedules import SCHEDULES, make_scheduler, multiplier, warmup_steps


def sgd(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])


def rates(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, n: int) -> list[float]:
    seen = []
    for _ in range(n):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 3), (1, 0), (7, 7), (100, 10), (5, 9)])
@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_rates_are_those_of_transformers(name: str, theirs: object, steps: int, warmup: int) -> None:
    one, other = sgd(2e-5), sgd(2e-5)
    ours = rates(one, make_scheduler(one, name, steps, warmup), steps)
    assert ours == pytest.approx(rates(other, theirs(other, warmup, steps), steps), rel=1e-14, abs=1e-21)  # type: ignore[operator]


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 10**6), st.floats(0, 1), st.data())
def test_the_multiplier_lies_in_0_to_1_and_is_1_when_the_warm_up_ends(
    name: str, steps: int, warmup: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, 2 * steps))
    assert 0 <= multiplier(name, step, steps, warmup) <= 1
    assert multiplier(name, warmup_steps(warmup, steps), steps, warmup) == 1


def test_a_rate_that_has_reached_its_end_stays_there() -> None:
    assert [multiplier(name, 99, 10) for name in ("constant", "linear", "cosine")] == [1, 0, 0]


def test_a_share_of_the_run_is_a_warm_up_rounded_up() -> None:
    assert [warmup_steps(w, 25) for w in (0, 0.0, 0.1, 3, 1, 1.0)] == [0, 0, 3, 3, 1, 25]


@pytest.mark.parametrize("warmup", [-1, -0.5, 1.5])
def test_an_impossible_warm_up_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match=f"warmup {warmup}"):
        make_scheduler(sgd(1.0), "linear", 10, warmup)


def test_an_unknown_schedule_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"'linaer'.*constant, linear, cosine"):
        make_scheduler(sgd(1.0), "linaer", 10)


def test_each_group_keeps_its_own_highest_rate() -> None:
    optimizer = sgd(1.0, 0.1)
    scheduler = make_scheduler(optimizer, "linear", 10)
    rates(optimizer, scheduler, 5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


def test_a_resume_from_json_has_the_same_rates_to_the_bit() -> None:
    whole = sgd(3e-5)
    undisturbed = rates(whole, make_scheduler(whole, "cosine", 30, 0.1), 30)
    first = sgd(3e-5)
    scheduler = make_scheduler(first, "cosine", 30, 0.1)
    begun = rates(first, scheduler, 11)
    saved = json.loads(json.dumps([scheduler.state_dict(), first.state_dict()]))
    second = sgd(3e-5)
    scheduler = make_scheduler(second, "cosine", 30, 0.1)
    second.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[0])
    assert begun + rates(second, scheduler, 19) == undisturbed
