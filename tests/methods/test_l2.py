"""L2 and the pull that EWC shares with it: by hand, and in the training loop from what a step moved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eunoe.contract.way import CALM, Way, gradients
from eunoe.errors import EunoeError
from eunoe.methods.l2 import L2, L2Settings, pull
from tests.stages import stage
from tests.tiny import tiny_bert


def test_the_pull_is_the_gradient_of_half_the_weighted_squares() -> None:
    free, held, untouched = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(3))
    held.grad = torch.tensor([10.0, 10.0])
    named = {"free": free, "held": held, "untouched": untouched}
    anchor = {"free": torch.tensor([0.0, 4.0]), "held": torch.tensor([0.0, 4.0])}
    pull(named, anchor, 3.0)
    assert free.grad is not None
    assert free.grad.tolist() == [3.0, -6.0]
    assert held.grad.tolist() == [13.0, 4.0]
    assert untouched.grad is None
    pull(named, anchor, 3.0, {"held": torch.tensor([0.5, 2.0])})
    assert held.grad.tolist() == [13.0 + 1.5, 4.0 - 12.0]
    assert free.grad.tolist() == [3.0, -6.0], "what has no importance is not pulled"


def test_in_the_loop_each_gradient_gains_what_the_steps_before_moved() -> None:
    """SGD with learning rate r moves a weight by -r g, so the second gradient gains lambda times that."""
    met = {}
    for strength in (0.0, 0.7):
        way = Way({"name": "l2", "strength": strength}, double=True, **CALM)
        met[strength] = gradients(way, 0, 2)
    for name, first in met[0.0][0].items():
        torch.testing.assert_close(met[0.7][0][name], first, rtol=1e-12, atol=1e-15)
        gained = met[0.7][1][name] - met[0.0][1][name]
        torch.testing.assert_close(gained, -0.7 * 0.01 * first, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("anchor", "expected"), [("stage", 0.0), ("base", 2.0 * 0.5)])
def test_the_anchor_is_the_start_of_the_stage_or_the_pretrained_model(anchor: str, expected: float) -> None:
    model = tiny_bert()
    method = L2(model, L2Settings(strength=2.0, anchor=anchor), ["law", "sea"])  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    method.begin(stage("sea"))
    method.on_gradients()
    for p in model.parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, torch.full_like(p, expected), rtol=1e-5, atol=1e-5)


def test_weights_that_were_not_pretrained_cannot_be_pulled_to_the_base() -> None:
    model = tiny_bert()
    method = L2(model, L2Settings(anchor="base"), ["law"])
    model.extra = nn.Linear(2, 2)
    with pytest.raises(
        EunoeError, match=r"extra\.bias is not one of them: another method added it\. Use anchor: stage"
    ):
        method.begin(stage("law"))
