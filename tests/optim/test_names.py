"""One plain name for a weight, whatever is wrapped around its model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eunoe.errors import EunoeError
from eunoe.evaluate.retention import distances
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import add_low_rank
from eunoe.optim.names import plain_name, plain_names
from tests.tiny import tiny_bert

W = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    "name",
    [
        W,
        f"module.{W}",
        f"_orig_mod.module.{W}",
        f"module._orig_mod.{W}",
        f"base_model.model.{W}",
        f"module.base_model.model.{W.replace('.weight', '.base_layer.weight')}",
        W.replace(".layer.0.", ".layer.0._checkpoint_wrapped_module."),
        f"_fsdp_wrapped_module.{W.replace('.layer.0.', '.layer.0._fsdp_wrapped_module.')}",
        W.replace(".weight", ".base.weight"),
        W.replace(".weight", ".modules_to_save.default.weight"),
    ],
)
def test_wrappers_come_off_in_any_order(name: str) -> None:
    assert plain_name(name) == W


@pytest.mark.parametrize("name", ["encoder.module.weight", "base.weight", "head.module.0.bias", "model.layers.0.w"])
def test_parts_of_a_model_that_are_called_like_a_wrapper_stay(name: str) -> None:
    assert plain_name(name) == name


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, model)


def test_the_weights_of_a_wrapped_model_are_those_of_the_bare_one() -> None:
    model = tiny_bert()
    bare = plain_names(model)
    assert list(bare) == [name for name, _ in model.named_parameters()]
    wrapped = plain_names(Wrapped(Wrapped(model, "module"), "_orig_mod"))
    assert list(wrapped) == list(bare)
    assert all(wrapped[name] is p for name, p in bare.items())
    assert list(plain_names(Wrapped(Wrapped(model, "model"), "base_model"))) == list(bare)
    other = copy.deepcopy(model)
    add_low_rank(other, 2)
    assert set(bare) <= set(plain_names(other))


def test_two_weights_of_one_plain_name_are_refused() -> None:
    both = nn.Module()
    both.module = nn.Linear(2, 2)
    both.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(EunoeError, match=r"two weights of Module are both weight"):
        plain_names(both)


def test_distances_see_a_model_through_a_low_rank_change() -> None:
    model = tiny_bert()
    base = anatomy(model).base
    layers = tuple(layer.name for layer in anatomy(model).layers)
    anchor = {name: p.detach().clone() for name, p in plain_names(base).items()}
    add_low_rank(model, 2)
    with torch.no_grad():
        for p in base.parameters():
            p += 1
    n = sum(value.numel() for value in anchor.values())
    assert distances(base, anchor, layers)["total"] == pytest.approx(n**0.5)
