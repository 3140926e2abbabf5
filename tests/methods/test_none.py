"""``none``: the pretrained model, in every domain. That its scores are the pretrained model's: test_adapter.py."""

from __future__ import annotations

import pytest
import torch

from eunoe.errors import EunoeError
from eunoe.methods import choose_method
from eunoe.models.heads import Classifier
from tests.tiny import tiny_bert


def test_it_learns_no_stage_and_end_tasks_train_everything() -> None:
    chosen = choose_method("none", "here")
    assert chosen.stages(["a", "b"]) == []
    method = chosen.build(tiny_bert(), ["a", "b"])
    for domain in (None, "a"):
        method.activate(domain)
        assert all(torch.equal(p, q) for p, q in zip(method.model.parameters(), tiny_bert().parameters(), strict=True))
    model = Classifier(method.model, 2, "first")
    assert method.for_end_task(model, "a") == {}
    assert all(p.requires_grad for p in model.parameters())


def test_it_goes_with_no_other_method() -> None:
    with pytest.raises(EunoeError, match="none and ncl cannot be combined"):
        choose_method({"name": ["none", "ncl"]}, "here").stages(["a"])
    with pytest.raises(EunoeError, match="cannot be combined: it learns nothing"):
        choose_method({"name": ["none", "adapter"]}, "here").build(tiny_bert(), ["a"])
