"""Rates over a run: the shapes, the warm-up, agreement with transformers, and an exact resume."""

from __future__ import annotations

import gc
import json
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from eunoe.optim.schedules import SCHEDULES, SlantedTriangle, make_scheduler, multiplier, slanted_triangle, warmup_steps


def sgd(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])


def rates(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, n: int) -> list[float]:
    seen = []
    for _ in range(n):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("steps", [1, 10, 100])
@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_without_a_warm_up_rates_are_those_of_transformers(name: str, theirs: Any, steps: int) -> None:
    one, other = sgd(2e-5), sgd(2e-5)
    ours = rates(one, make_scheduler(one, name, steps), steps)
    assert ours == pytest.approx(rates(other, theirs(other, 0, steps), steps), rel=1e-14, abs=1e-21)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 3), (8, 7), (100, 10), (5, 4), (10, 1), (10, 2)])
@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_the_warm_up_is_that_of_transformers_one_step_earlier_and_the_fall_ends_with_theirs(
    name: str, theirs: Any, steps: int, warmup: int
) -> None:
    one, other, third = sgd(2e-5), sgd(2e-5), sgd(2e-5)
    ours = rates(one, make_scheduler(one, name, steps, warmup), steps + 1)
    rise = rates(other, theirs(other, warmup, steps), warmup + 1)[1:]
    fall = rates(third, theirs(third, warmup - 1, steps), steps + 1)
    expected = [*rise, *fall[warmup:]][: steps + 1]
    assert ours == pytest.approx(expected, rel=1e-14, abs=1e-21)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("warmup", [1, 2, 5, 0.05, 0.5, 1.0])
def test_no_step_has_the_rate_0_and_only_one_the_highest(name: str, warmup: float) -> None:
    shares = [multiplier(name, t, 20, warmup) for t in range(20)]
    rise = warmup_steps(warmup, 20)
    assert min(shares) > 0
    assert shares[:rise] == [(t + 1) / rise for t in range(rise)]
    assert shares.count(1.0) == (21 - rise if name == "constant" else 1)
    assert multiplier(name, 20, 20, warmup) == (1 if name == "constant" else 0)


def test_the_first_step_of_a_warm_up_trains() -> None:
    optimizer = sgd(1.0)
    (p,) = optimizer.param_groups[0]["params"]
    make_scheduler(optimizer, "linear", 10, 4)
    p.grad = torch.ones(1)
    optimizer.step()
    assert p.item() == -0.25


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 10**6), st.floats(0, 1), st.data())
def test_the_multiplier_lies_in_0_to_1_and_is_1_where_the_warm_up_ends(
    name: str, steps: int, warmup: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, 2 * steps))
    assert 0 <= multiplier(name, step, steps, warmup) <= 1
    assert multiplier(name, max(0, warmup_steps(warmup, steps) - 1), steps, warmup) == 1


def test_a_rate_that_has_reached_its_end_stays_there() -> None:
    assert [multiplier(name, 99, 10) for name in ("constant", "linear", "cosine")] == [1, 0, 0]


def test_a_share_of_the_run_is_a_warm_up_rounded_up() -> None:
    assert [warmup_steps(w, 25) for w in (0, 0.0, 0.1, 3, 1, 1.0)] == [0, 0, 3, 3, 1, 25]


@pytest.mark.parametrize("warmup", [-1, -0.5, 1.5, float("nan"), float("inf"), True])
def test_an_impossible_warm_up_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match=f"warmup {warmup}"):
        make_scheduler(sgd(1.0), "linear", 10, warmup)


@pytest.mark.parametrize("steps", [-1, 2.5, float("nan"), None, True])
def test_an_impossible_length_of_the_run_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"steps {steps}: give the length of the run"):
        make_scheduler(sgd(1.0), "linear", steps)


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


def late(lr: Any = 0.2) -> dict[str, Any]:
    return {"params": [nn.Parameter(torch.zeros(1))], "lr": lr}


@pytest.mark.parametrize("lr", [0.2, torch.tensor(0.2, dtype=torch.float64)])
def test_a_group_added_later_has_its_own_rate_times_the_schedule_from_its_first_step(lr: Any) -> None:
    optimizer, both = sgd(1.0), sgd(1.0, 0.2)
    scheduler, other = make_scheduler(optimizer, "cosine", 10, 3), make_scheduler(both, "cosine", 10, 3)
    rates(optimizer, scheduler, 5)
    rates(both, other, 5)
    group = late(lr)
    optimizer.add_param_group(group)
    (p,), (q,) = optimizer.param_groups[1]["params"], both.param_groups[1]["params"]
    for _ in range(4):
        p.grad, q.grad = torch.ones(1), torch.ones(1)
        optimizer.step()
        both.step()
        assert p.item() == pytest.approx(q.item(), rel=1e-6)
        scheduler.step()
        other.step()
        assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([g["lr"] for g in both.param_groups])
    assert p.item() < 0
    assert scheduler.state_dict()["base_lrs"] == pytest.approx([1.0, 0.2])


def test_a_schedule_that_is_gone_has_no_say_over_new_groups() -> None:
    optimizer = sgd(1.0)
    first = make_scheduler(optimizer, "linear", 2)
    rates(optimizer, first, 2)
    del first
    gc.collect()
    optimizer.add_param_group(late())
    optimizer.step()
    assert optimizer.param_groups[1]["lr"] == 0.2


def test_an_optimizer_that_accelerate_has_wrapped_takes_new_groups_in_too() -> None:
    optimizer = sgd(1.0)
    Accelerator(cpu=True)  # sets up what the wrapper asks
    wrapped = AcceleratedOptimizer(optimizer, device_placement=False)
    scheduler = make_scheduler(wrapped, "linear", 4)
    wrapped.step()
    scheduler.step()
    optimizer.add_param_group(late())
    wrapped.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75, 0.15])


def by_the_paper(t: int, steps: int, cut_frac: float, ratio: float) -> float:
    """ULMFiT, equation 3, as printed, for a highest rate of 1."""
    cut = math.floor(steps * cut_frac)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize(("steps", "cut_frac", "ratio"), [(100, 0.1, 32), (40, 0.25, 8), (16, 0.125, 8), (10, 0.1, 32)])
def test_the_slanted_triangle_is_the_papers_where_the_cut_is_whole(steps: int, cut_frac: float, ratio: float) -> None:
    for t in range(steps + 1):
        assert slanted_triangle(t, steps, cut_frac, ratio) == pytest.approx(by_the_paper(t, steps, cut_frac, ratio))


def test_the_slanted_triangle_never_falls_below_its_lowest_and_bears_short_runs() -> None:
    assert by_the_paper(15, 15, 0.1, 32) < -0.5  # why ours divides by steps - cut
    assert slanted_triangle(15, 15) == pytest.approx(1 / 32)
    for steps in (1, 2, 5, 9, 15, 33):
        shares = [slanted_triangle(t, steps) for t in range(steps)]
        assert min(shares) >= 1 / 32
        assert max(shares) == (1.0 if steps > 1 else 1 / 32)
    for wrong in ((0.0, 32), (1.0, 32), (0.1, 0.5)):
        with pytest.raises(ValueError, match="give 0 < cut_frac < 1 and ratio >= 1"):
            slanted_triangle(0, 10, *wrong)


def test_the_scheduler_of_the_triangle_resumes_to_the_same_rates() -> None:
    def made() -> tuple[torch.optim.Optimizer, SlantedTriangle]:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.5)]
        optimizer = torch.optim.SGD(groups, lr=9.0)
        return optimizer, SlantedTriangle(optimizer, 20, 0.25, 8)

    def rates(optimizer: torch.optim.Optimizer, scheduler: SlantedTriangle, steps: int) -> list[list[float]]:
        seen = []
        for _ in range(steps):
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return seen

    whole = rates(*made(), 20)
    assert whole == [[slanted_triangle(t, 20, 0.25, 8) * lr for lr in (1.0, 0.5)] for t in range(20)]
    optimizer, scheduler = made()
    rates(optimizer, scheduler, 7)
    again, resumed = made()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert rates(again, resumed, 13) == whole[7:]
