"""RecAdam's saved state: what it may be loaded into, what is refused at the load, and torch's distributed checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam, anchored_groups


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def optimizer_of(model: nn.Module, **named: Any) -> RecAdam:
    return RecAdam(anchored_groups(model, weight_decay=0.1), 1e-4, t0=3, k=1.0, **named)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        optimizer.step()


def trained(steps: int = 2) -> tuple[nn.Module, RecAdam]:
    model = net()
    optimizer = optimizer_of(model)
    train(model, optimizer, steps)
    return model, optimizer


def resumed(state: dict[str, Any], weights: dict[str, Any]) -> tuple[nn.Module, RecAdam]:
    model = net()
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(state)
    model.load_state_dict(weights)
    return model, optimizer


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("number", [int, float, lambda t: torch.tensor(t.item(), dtype=torch.int64)])
def test_a_counter_that_is_a_plain_number_is_resumed_in_the_same_bits(number: Callable[[Any], Any]) -> None:
    model, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry["step"] = number(entry["step"])
    other, again = resumed(state, model.state_dict())
    train(model, optimizer, 3, seed=5)
    train(other, again, 3, seed=5)
    assert same(model, other)


def adamws() -> dict[str, Any]:
    model = net()
    adamw = torch.optim.AdamW([list(model.parameters())[i] for i in (0, 2, 1, 3)])
    train(model, adamw, 1)
    state = adamw.state_dict()
    groups = [{**state["param_groups"][0], "params": ids} for ids in ([0, 1], [2, 3])]
    return {**state, "param_groups": groups}


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        state = copy.deepcopy(trained()[1].state_dict())
        change(state)
        return state

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (adamws, "group 0 of the saved optimizer state has no gamma, k, t0, .*AdamW"),
        (damaged(lambda s: s["param_groups"][1].pop("gamma")), "group 1 of the saved optimizer state has no gamma:"),
        (damaged(lambda s: s["param_groups"][0].update(t0=-3)), "t0 is -3; RecAdam needs a number >= 0"),
        (damaged(lambda s: s["param_groups"][0].update(lr=1.0)), "is above 2"),
        (damaged(lambda s: s["state"][2].pop("exp_avg_sq")), "has no exp_avg_sq for weight number 2, only step, exp_avg"),
        (damaged(lambda s: s["state"][1].pop("step")), "has no step for weight number 1"),
        (damaged(lambda s: s["state"][0].update(step=None)), "has step None for weight number 0"),
        (damaged(lambda s: s["state"][0].update(step=float("nan"))), "has step nan for weight number 0"),
        (damaged(lambda s: s["state"][0].update(step=1.5)), "has step 1.5 for weight number 0.*whole number"),
        (damaged(lambda s: s["state"][0].update(exp_avg=None)), "moments of shape NoneType where the weight"),
        (damaged(lambda s: s["state"][0].update(exp_avg_sq=torch.ones(3))), r"moments of shape \(3,\) where the weight"),
    ],
)  # fmt: skip
def test_a_state_that_a_step_would_fail_on_is_refused_at_the_load_and_changes_nothing(
    make: Callable[[], dict[str, Any]], message: str
) -> None:
    model, optimizer = trained(1)
    twin, other = trained(1)
    with pytest.raises(EunoeError, match=message):
        optimizer.load_state_dict(make())
    train(model, optimizer, 2, seed=4)
    train(twin, other, 2, seed=4)
    assert same(model, twin)


def test_a_state_of_the_first_releases_is_loaded() -> None:
    """They kept the fingerprint under a name of its own."""
    model, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["anchor_fingerprint"] = group.pop("anchor")
    other, again = resumed(state, model.state_dict())
    train(model, optimizer, 2, seed=5)
    train(other, again, 2, seed=5)
    assert same(model, other)
    again.load_state_dict(optimizer.state_dict())
    state["param_groups"][0]["anchor_fingerprint"] = "0" * 64
    with pytest.raises(EunoeError, match="belongs to another anchor: group 0"):
        again.load_state_dict(state)


def test_anchors_are_read_only_when_a_state_with_steps_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate saves and loads every new optimizer once: that must not read a model's anchors from disk."""
    hashed: list[int] = []
    import hashlib

    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *args: (hashed.append(1), real(*args))[1])
    model = net()
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 2)
    assert not hashed
    first = optimizer.state_dict()
    assert len(hashed) == len(optimizer.param_groups)
    assert optimizer.state_dict()["param_groups"] == first["param_groups"]
    assert len(hashed) == len(optimizer.param_groups)


@pytest.mark.parametrize("flat", [True, False])
def test_torchs_distributed_checkpoints_resume_in_the_same_bits(flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = trained()
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    weights = copy.deepcopy(model.state_dict())
    other = net()
    again = optimizer_of(other)
    set_optimizer_state_dict(other, again, state, options=options)
    other.load_state_dict(weights)
    train(model, optimizer, 3, seed=5)
    train(other, again, 3, seed=5)
    assert same(model, other)
    assert not same(model, net())
    elsewhere = net(1)
    with pytest.raises(EunoeError, match="belongs to another anchor"):
        set_optimizer_state_dict(elsewhere, optimizer_of(elsewhere), state, options=options)


def test_a_state_without_steps_fits_any_anchors_and_one_with_steps_does_not() -> None:
    model, other = net(), net(1)
    fresh, elsewhere = optimizer_of(model), optimizer_of(other)
    elsewhere.load_state_dict(fresh.state_dict())
    train(model, fresh, 1)
    with pytest.raises(EunoeError, match="belongs to another anchor"):
        elsewhere.load_state_dict(fresh.state_dict())
    plain = net()
    with pytest.raises(EunoeError, match="no anchor here"):
        RecAdam([{"params": list(plain.parameters())[i::2], "anchor": None} for i in (0, 1)], 1e-4).load_state_dict(
            optimizer_of(net()).state_dict()
        )


def test_what_a_wrapper_keeps_beside_a_weights_moments_is_left_there() -> None:
    """Lookahead and its like put values of their own into the optimizer's state, some before the first step."""
    model, twin = net(), net()
    optimizer, alone = optimizer_of(model), optimizer_of(twin)
    for p in model.parameters():
        optimizer.state[p]["slow"] = p.detach().clone()
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 2)
    train(twin, alone, 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2, seed=3)
    train(twin, alone, 2, seed=3)
    assert same(model, twin)
    assert all(
        torch.equal(optimizer.state[p]["slow"], q) for p, q in zip(model.parameters(), net().parameters(), strict=True)
    )
