"""What RecAdam warns of and refuses beyond a wrong number: forgotten anchors, odd tensors, settings that nobody would read."""

from __future__ import annotations

import copy
import warnings
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import nn

from eunoe.errors import EunoeError
from eunoe.optim import OPTIMIZERS, RecAdam, anchored_groups


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def anchored(p: nn.Parameter, lr: Any = 1e-4, **named: Any) -> RecAdam:
    return RecAdam([{"params": [p], "anchor": [p.detach() + 1]}], lr, **named)


# -- anchors that were forgotten ---------------------------------------------------------------------------------------
def test_weights_without_a_word_about_anchors_are_warned_of_once_at_the_callers_line() -> None:
    model = net()
    for params in (model.parameters(), [{"params": [p]} for p in model.parameters()], list(model.named_parameters())):
        with pytest.warns(
            UserWarning, match=r"weights without an anchor: 4\..*as AdamW.*anchored_groups.*anchor=None"
        ) as caught:
            RecAdam(params, lr=1e-4)
        assert [warning.filename for warning in caught] == [__file__]


def test_a_group_added_later_without_a_word_is_warned_of() -> None:
    optimizer = RecAdam(anchored_groups(net()), 1e-4)
    with pytest.warns(UserWarning, match="weights without an anchor: 1"):
        optimizer.add_param_group({"params": [("late", weight(2))]})
    with pytest.warns(UserWarning, match="weights without an anchor: 1"):
        copy.deepcopy(optimizer).add_param_group({"params": [("late", weight(2))]})


def test_where_no_anchor_is_meant_or_there_are_anchors_nothing_is_said() -> None:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = RecAdam(model.parameters(), lr=1e-4, anchor=None)
        said.add_param_group({"params": weight(2)})
        copy.deepcopy(said).add_param_group({"params": weight(2)})
        RecAdam([{"params": list(model.parameters()), "anchor": None}], 1e-4)
        RecAdam(anchored_groups(model), 1e-4).add_param_group({"params": [("late", weight(2))], "anchor": None})
        for entry in OPTIMIZERS.values():
            entry.build(model, entry.settings(), 1e-4)


def test_anchors_given_to_recadam_itself_are_those_of_groups_without_any() -> None:
    p, q = weight(3), weight(3)
    one = RecAdam([p], 1e-4, t0=99, anchor=[torch.zeros(3)])
    other = RecAdam([{"params": q, "anchor": [torch.zeros(3)]}], 1e-4, t0=99)
    for optimizer, w in ((one, p), (other, q)):
        w.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(p, q)
    assert (p < 1).all()


# -- odd settings ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay", "gamma", "k", "t0", "weight"])
@pytest.mark.parametrize(
    "value", [nan, -inf, -1.0, None, True, "much", [1.0], 1j, torch.tensor([1.0, 2.0]), torch.tensor(nan)]
)
def test_no_setting_takes_an_odd_value(name: str, value: Any) -> None:
    named: dict[str, Any] = {"lr": 1e-4, name: value}
    with pytest.raises(EunoeError, match=rf"{name} is .*RecAdam needs a (finite )?number >= 0"):
        anchored(weight(2), **named)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"betas": (nan, 0.9)}, "betas are"), ({"betas": (0.9, inf)}, "betas are"), ({"betas": (True, 0.9)}, "betas are"),
        ({"betas": torch.tensor([0.9, 0.99])}, "betas are tensor.*two numbers"), ({"betas": "ab"}, "betas are 'ab'"),
        ({"betas": (torch.tensor([0.9, 0.9]), 0.9)}, "betas are"), ({"betas": (-0.1, 0.9)}, "betas are"),
        ({"correct_bias": "False"}, "correct_bias is 'False'; RecAdam needs True or False"),
        ({"fused": "yes"}, "fused is 'yes'; RecAdam needs None, False or True"),
        ({"compiled": 1}, "compiled is 1; RecAdam needs None, False or True"),
        ({"anneal": None}, "unknown annealing None"), ({"anneal": ["linear"]}, r"unknown annealing \['linear'\]"),
        ({"form": 3}, "unknown form of RecAdam 3"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_by_their_value(named: dict[str, Any], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        anchored(weight(2), **named)


@pytest.mark.parametrize("betas", [(0.8, 0.9), [0.8, 0.9], (torch.tensor(0.8).double(), torch.tensor([0.9]).double())])
def test_numbers_may_be_tensors_of_one_element(betas: Any) -> None:
    p, q = weight(3), weight(3)
    for w, optimizer in (
        (
            p,
            anchored(
                p,
                torch.tensor([1e-4]).double(),
                betas=betas,
                gamma=torch.tensor(500.0),
                eps=torch.tensor(1e-8).double(),
            ),
        ),
        (q, anchored(q, torch.tensor(1e-4).double(), betas=(0.8, 0.9), gamma=500.0)),
    ):
        for _ in range(3):
            w.grad = torch.ones(3)
            optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"gama": 1.0}, "unknown setting of RecAdam 'gama'. Did you mean gamma"),
        ({"anchors": []}, "unknown setting of RecAdam 'anchors'. Did you mean anchor"),
        ({"fused": True}, "a group sets fused, which holds for all groups"),
    ],
)
def test_a_setting_of_a_group_that_nothing_would_read_is_refused(group: dict[str, Any], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        RecAdam([{"params": [weight(2)], **group}], 1e-4, anchor=None)


def test_a_group_may_hold_what_others_read() -> None:
    optimizer = RecAdam([{"params": [weight(2)], "lr_scale": 0.5, "name": "head"}], 1e-4, anchor=None)
    assert optimizer.state_dict()["param_groups"][0]["lr_scale"] == 0.5


@pytest.mark.parametrize(
    "named", [{"anneal": "constant"}, {"weight": 0.0}, {"k": inf, "t0": 0}, {"anneal": "linear", "t0": 0}, {"anneal": "linear", "t0": 1}]
)  # fmt: skip
@pytest.mark.parametrize(("form", "lr"), [("paper", 1e-4), ("released", 0.1)])
def test_a_gamma_that_would_diverge_is_no_mistake_where_nothing_is_ever_pulled(
    named: dict[str, Any], form: str, lr: float
) -> None:
    p = weight(3)
    optimizer = anchored(p, lr, form=form, **named)
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    assert ((p < 1) & (p > 1 - 4 * lr)).all()
    RecAdam([weight(2)], lr, form=form, anchor=None)
    with pytest.raises(EunoeError, match="is above 2"):
        anchored(weight(2), lr, form=form)


# -- odd tensors -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", [{}, {"fused": False}, {"compiled": False}])
def test_odd_anchors_and_weights_move_as_plain_ones(way: dict[str, bool]) -> None:
    """Anchors of stride 0, empty weights, single numbers, transposed ones."""
    odd = [
        (nn.Parameter(torch.ones(5, 3)), torch.tensor(2.0).expand(5, 3)),
        (nn.Parameter(torch.ones(0, 3)), torch.ones(0, 3)),
        (nn.Parameter(torch.tensor(1.0)), torch.tensor(2.0)),
        (nn.Parameter(torch.ones(3, 5).t()), torch.full((3, 5), 2.0).t()),
        (nn.Parameter(torch.ones(3)), torch.full((3,), 2)),
    ]
    optimizer = RecAdam([{"params": [p for p, _ in odd], "anchor": [a for _, a in odd]}], 1e-4, t0=99, **way)
    for _ in range(2):
        for p, _ in odd:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p, _ in odd:
        torch.testing.assert_close(p, torch.full_like(p, 2 - 0.5**2), rtol=0, atol=1e-6)
    assert len(optimizer.state_dict()["param_groups"][0]["anchor"]) == 64


def test_a_weight_whose_elements_share_memory_is_refused_and_nothing_moves() -> None:
    first, expanded = weight(2), nn.Parameter(torch.ones(1).expand(4))
    optimizer = RecAdam([first, expanded], 1e-2, anchor=None)
    first.grad, expanded.grad = torch.ones(2), torch.ones(4)
    with pytest.raises(EunoeError, match=r"strides \(0,\).*weight.clone"):
        optimizer.step()
    assert first.tolist() == [1, 1]


def test_the_meta_device_is_refused_by_name() -> None:
    model = net().to("meta")
    with pytest.raises(EunoeError, match=r"on the meta device.*no values to recall.*anchor=FOLDER"):
        RecAdam(anchored_groups(model), 1e-4)
    optimizer = RecAdam(anchored_groups(model, anchor=net().state_dict()), 1e-4)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(EunoeError, match="nothing to move: load the model"):
        optimizer.step()


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        ("models/bert-base", "anchor is 'models/bert-base'.*anchored_groups"),
        (7, "anchor is 7"),
        ([None], "anchor number 0 of a group is NoneType.*anchor=None"),
        ([torch.ones(2), torch.ones(2)], "1 weights and 2 anchors.*ZeroRedundancyOptimizer"),
    ],
)
def test_what_is_no_list_of_anchors_is_refused(anchor: Any, message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        RecAdam([{"params": [weight(2)], "anchor": anchor}], 1e-4)


def test_a_single_tensor_is_the_anchor_of_a_single_weight() -> None:
    p = weight(1, 2)
    optimizer = RecAdam([{"params": p, "anchor": torch.zeros(1, 2)}], 1e-4, t0=99)
    p.grad = torch.zeros(1, 2)
    optimizer.step()
    assert p.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    "given", [None, [], {}, {"state": [], "param_groups": []}, {"state": {}, "param_groups": None}]
)
def test_what_is_no_state_of_an_optimizer_is_refused(given: Any) -> None:
    optimizer = RecAdam([nn.Parameter(torch.ones(2))], lr=0.1, anchor=None)
    with pytest.raises(
        EunoeError, match=r"saved optimizer state is a \w+ without param_groups .* give what state_dict\(\) returned"
    ):
        optimizer.load_state_dict(given)
