from __future__ import annotations

import copy

import pytest
from torch import nn

from eunoe.errors import EunoeError
from eunoe.methods.base import Method, freeze, trainable
from tests.models.families import tiny


class WithHead(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(16, 2)


def test_on_an_end_task_everything_trains_at_one_rate() -> None:
    model = tiny("bert")
    freeze(model)
    end = WithHead(copy.deepcopy(model.bert))
    assert Method(model, None, ["a"]).for_end_task(end, "a") == {}
    assert len(trainable(end)) == len(list(end.parameters()))
    assert not trainable(model)


def test_a_frozen_backbone_leaves_the_head() -> None:
    model = tiny("bert")
    end = WithHead(copy.deepcopy(model.bert))
    Method(model, None, ["a"]).for_end_task(end, "a", "backbone")
    assert [name for name, _ in trainable(end)] == ["head.weight", "head.bias"]
    Method(model, None, ["a"]).for_end_task(end, "a", "none")
    assert len(trainable(end)) == len(list(end.parameters()))


def test_an_unknown_freeze_is_refused() -> None:
    with pytest.raises(EunoeError, match=r"unknown freeze 'backbon'. Did you mean backbone\?"):
        Method(tiny("bert"), None, ["a"]).for_end_task(WithHead(tiny("bert").bert), "a", "backbon")


def test_state_for_a_method_that_keeps_none_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps no state"):
        Method(tiny("bert"), None, ["a"]).load_state_dict({"s": 1.0})
