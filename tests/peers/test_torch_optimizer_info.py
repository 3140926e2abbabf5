"""RecAdam as a row of torch's ``OptimizerInfo``: torch's own inputs and wrong inputs of AdamW, and its contract of an optimizer.

Needs ``expecttest``, which torch.testing._internal imports. After test/test_optim.py of https://github.com/pytorch/pytorch.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, PolynomialLR, ReduceLROnPlateau, StepLR

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam
from tests.peers import MAKERS, anchored, linear_problem, plain, run

common = pytest.importorskip(
    "torch.testing._internal.common_optimizers", reason="torch's OptimizerInfo needs the package expecttest"
)

WITHOUT = {
    "maximize": "RecAdam minimises: negate the loss",
    "amsgrad": "the paper and the release have no AMSGrad",
    "foreach": "the plain way takes one tensor after another, the fused way all at once",
    "capturable": "a step's numbers are Python's and change with the step, so it cannot be captured in a CUDA graph",
    "differentiable": "a step is not differentiated through",
}
INFO = common.OptimizerInfo(
    RecAdam,
    optim_inputs_func=common.optim_inputs_func_adamw,
    optim_error_inputs_func=common.optim_error_inputs_func_adamw,
    scheduler_inputs=(
        [lambda o: StepLR(o, gamma=0.9, step_size=10)],
        [lambda o: StepLR(o, gamma=0.9, step_size=10), lambda o: ReduceLROnPlateau(o)],
        [lambda o: LinearLR(o, start_factor=0.4, total_iters=4)],
        [
            lambda o: ExponentialLR(o, gamma=0.99),
            lambda o: LinearLR(o, start_factor=0.4),
            lambda o: ReduceLROnPlateau(o),
        ],
        [lambda o: PolynomialLR(o, power=0.9, total_iters=40)],
    ),
    supported_impls=("fused",),
    supports_complex=False,
)


def rows(inputs: list[Any], kwargs_of: Callable[[Any], dict[str, Any]]) -> list[Any]:
    """pytest's parameters; those with a flag that RecAdam has not are expected to fail, with the reason."""
    collected = []
    for one in inputs:
        lacking = [WITHOUT[flag] for flag in kwargs_of(one) if flag in WITHOUT]
        marks = [pytest.mark.xfail(reason=lacking[0], raises=TypeError, strict=True)] if lacking else []
        collected.append(pytest.param(one, marks=marks, id=getattr(one, "desc", "") or one.optimizer_error_input.desc))
    return collected


INPUTS = rows(INFO.optim_inputs_func("cpu", torch.float32), lambda one: one.kwargs)
ERRORS = rows(INFO.optim_error_inputs_func("cpu", torch.float32), lambda one: one.optimizer_error_input.kwargs)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("maker", MAKERS)
def test_every_input_of_adamw_goes_the_right_way(given: Any, transposed: bool, maker: str) -> None:
    ps, loss = linear_problem(transposed=transposed)
    losses = run(MAKERS[maker](ps, **given.kwargs), loss, 20)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("fused", [False, True])
def test_every_input_of_adamw_gives_its_bits_where_nothing_is_anchored(given: Any, fused: bool) -> None:
    (ps, loss), (qs, other) = linear_problem(), linear_problem()
    run(plain(ps, form="paper", fused=fused, **given.kwargs), loss, 10)
    run(torch.optim.AdamW(qs, fused=fused, foreach=False, **{"weight_decay": 0.0, **given.kwargs}), other, 10)
    assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))


@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs)
@pytest.mark.parametrize("maker", MAKERS)
def test_torchs_schedulers_alone_and_together_go_the_right_way(schedulers: Any, maker: str) -> None:
    ps, loss = linear_problem()
    optimizer = MAKERS[maker](ps, 1e-2)
    losses = run(optimizer, loss, 20, *(make(optimizer) for make in schedulers))
    assert losses[-1] < losses[0]


BOTH = "RecAdam takes a number and a tensor of one element in any mixture"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("given", ERRORS)
def test_every_wrong_input_of_adamw_is_refused_with_its_kind_of_error(given: Any, request: Any) -> None:
    wrong = given.optimizer_error_input
    if "both floats or both Tensors" in given.error_regex:
        request.applymarker(pytest.mark.xfail(reason=BOTH, strict=True))
    params = wrong.params if wrong.params is not None else [nn.Parameter(torch.randn(2, 3))]
    with pytest.raises(given.error_type):
        RecAdam(params, **{"lr": 1e-3, "anchor": None, **wrong.kwargs})


@pytest.mark.parametrize("maker", MAKERS)
def test_without_gradients_a_step_does_nothing(maker: str) -> None:
    ps, _ = linear_problem()
    before = [p.detach().clone() for p in ps]
    optimizer = MAKERS[maker](ps, weight_decay=0.1)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(ps, before, strict=True))
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("maker", MAKERS)
def test_with_gradients_of_0_a_weight_at_its_anchor_stays(maker: str) -> None:
    ps, _ = linear_problem()
    before = [p.detach().clone() for p in ps]
    optimizer = MAKERS[maker](ps)
    for _ in range(3):
        for p in ps:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.allclose(p, b, rtol=0, atol=1e-6) for p, b in zip(ps, before, strict=True))


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("way", ["copied", "torch.save, weights_only", "step as a number"])
def test_a_state_resumes_in_the_same_bits(maker: str, way: str) -> None:
    ps, loss = linear_problem()
    qs, other = linear_problem()
    first, second = MAKERS[maker](ps), MAKERS[maker](qs)
    run(first, loss, 7)
    state = copy.deepcopy(first.state_dict())
    if way.startswith("torch.save"):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    if way.startswith("step"):
        for entry in state["state"].values():
            entry["step"] = int(entry["step"])
    with torch.no_grad():
        for p, q in zip(ps, qs, strict=True):
            q.copy_(p)
    second.load_state_dict(state)
    assert run(first, loss, 5) == run(second, other, 5)


@pytest.mark.xfail(strict=True, raises=EunoeError, reason="a state without a setting is refused, not guessed at")
def test_a_state_of_an_older_version_without_a_setting_is_filled() -> None:
    ps, _ = linear_problem()
    state = plain(ps).state_dict()
    del state["param_groups"][0]["form"]
    plain(ps).load_state_dict(state)


def test_hooks_around_steps_and_states_are_called_in_order() -> None:
    ps, loss = linear_problem()
    optimizer, called = anchored(ps), []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, state: called.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: called.append("load"))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: called.append("load first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("loaded"))
    run(optimizer, loss, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["before", "after", "save", "saved", "load first", "load", "loaded"]


@pytest.mark.xfail(
    strict=True, raises=EunoeError, reason="a state is judged before hooks see it, so that a refusal changes nothing"
)
def test_a_load_hook_may_repair_a_foreign_state() -> None:
    ps, loss = linear_problem()
    adamw, optimizer = torch.optim.AdamW(ps), plain(ps)
    run(adamw, loss, 1)
    own = optimizer.state_dict()["param_groups"]
    optimizer.register_load_state_dict_pre_hook(lambda o, state: {**state, "param_groups": own})
    optimizer.load_state_dict(adamw.state_dict())


def test_a_state_post_hook_may_change_what_is_saved() -> None:
    ps, _ = linear_problem()
    optimizer = anchored(ps)
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "tag": 7})
    assert optimizer.state_dict()["tag"] == 7


def test_a_copy_has_every_public_attribute() -> None:
    optimizer = anchored(linear_problem()[0])
    public = lambda o: {name for name in vars(o) if not name.startswith("_")}  # noqa: E731
    assert public(copy.deepcopy(optimizer)) == public(optimizer)


def test_groups_have_their_own_rates_and_decays() -> None:
    (ps, loss), (qs, other) = linear_problem(), linear_problem()
    groups = lambda ws: [{"params": [ws[0]], "lr": 1e-2, "weight_decay": 0.1}, {"params": [ws[1]]}]  # noqa: E731
    run(plain(groups(ps), 1e-3, form="paper", fused=False), loss, 5)
    run(torch.optim.AdamW(groups(qs), 1e-3, weight_decay=0.0, foreach=False), other, 5)
    assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_rate_in_a_tensor_is_that_number(maker: str) -> None:
    (ps, loss), (qs, other) = linear_problem(torch.float64), linear_problem(torch.float64)
    one = run(MAKERS[maker](ps, torch.tensor(1e-2, dtype=torch.float64)), loss, 5)
    assert one == run(MAKERS[maker](qs, 1e-2), other, 5)


def test_names_of_weights_are_kept_and_saved() -> None:
    ps, loss = linear_problem()
    optimizer = anchored([("weight", ps[0]), ("bias", ps[1])])
    run(optimizer, loss, 1)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_an_empty_list_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        plain([])


def test_a_step_is_a_span_of_the_profiler() -> None:
    ps, loss = linear_problem()
    optimizer = anchored(ps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(optimizer, loss, 1)
    assert any(event.key == "Optimizer.step#RecAdam.step" for event in profile.key_averages())


def test_moments_are_cast_to_the_weights_of_the_optimizer_that_loads_them() -> None:
    (ps, loss), (qs, _) = linear_problem(), linear_problem(torch.float64)
    first, second = plain(ps), plain(qs)
    run(first, loss, 1)
    second.load_state_dict(first.state_dict())
    assert {second.state[q]["exp_avg"].dtype for q in qs} == {torch.float64}


@pytest.mark.xfail(strict=True, reason="moments of half weights stay float32: in bfloat16 0.999 v rounds to v")
def test_moments_have_the_dtype_of_half_weights() -> None:
    ps, loss = linear_problem(torch.bfloat16)
    optimizer = plain(ps)
    run(optimizer, loss, 1)
    assert optimizer.state[ps[0]]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.xfail(
    strict=True, raises=EunoeError, reason="complex weights are refused: give torch.view_as_real(weight)"
)
def test_complex_weights_move_as_their_real_and_imaginary_parts() -> None:
    p = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    optimizer = plain([p])
    p.grad = torch.randn(3, dtype=torch.complex64)
    optimizer.step()


def test_sparse_gradients_are_refused_as_by_adamw() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    for optimizer in (torch.optim.AdamW(table.parameters()), plain(table.parameters())):
        with pytest.raises((RuntimeError, EunoeError), match="sparse"):
            optimizer.step()
