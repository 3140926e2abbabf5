"""RecAdam's pull in post-training: a step by hand, the same as the optimizer's, and its course over a stage."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from eunoe.contract.way import Way
from eunoe.errors import EunoeError
from eunoe.methods.recadam import AnnealedPull, AnnealedSettings
from eunoe.optim.recadam import RecAdam
from tests.stages import stage
from tests.tiny import tiny_bert


def shifted(settings: AnnealedSettings) -> tuple[nn.Module, AnnealedPull, list[torch.Tensor]]:
    """A model that has moved since its stage began, its method, and where it was."""
    model = tiny_bert().double()
    method = AnnealedPull(model, settings, ["law"])
    method.begin(stage("law"))
    start = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
            p.grad = torch.randn_like(p)
    return model, method, start


def test_a_step_is_worked_out_by_hand() -> None:
    """Step 4 of 20, t0 at 5 steps: lambda = 1 / (1 + e^(-0.5 (4 - 5))); at half the learning rate, half the pull."""
    model, method, start = shifted(AnnealedSettings(k=0.5, t0=0.25, pull=0.4))
    before, grads = [p.detach().clone() for p in model.parameters()], [p.grad for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    method.on_optimizer(optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    method.before_step(3, 20)
    optimizer.step()
    share = 1 / (1 + math.exp(0.5))
    for p, old, grad, anchor in zip(model.parameters(), before, grads, start, strict=True):
        assert grad is not None
        moved = old - share * 0.1 * grad
        expected = moved - 0.5 * 0.4 * (1 - share) * (moved - anchor)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("curve", ["sigmoid", "linear"])
def test_with_adamw_it_is_the_optimizer_recadam(curve: Any) -> None:
    model, method, start = shifted(AnnealedSettings(anneal=curve, k=0.3, t0=0.5, pull=0.05))
    other = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    method.on_optimizer(adamw)
    recadam = RecAdam(
        [{"params": other, "anchor": start}], lr=1e-3, gamma=0.05 / 1e-3, anneal=curve, k=0.3, t0=5, form="released"
    )
    for step in range(10):
        method.before_step(step, 10)
        for mine, theirs in zip(model.parameters(), other, strict=True):
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.clone()
        adamw.step()
        recadam.step()
    for mine, theirs, old in zip(model.parameters(), other, start, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mine, old, atol=1e-2)


def test_a_stage_moves_less_the_later_the_pull_fades() -> None:
    start = {n: p.detach() for n, p in Way("ncl").make().model.named_parameters()}

    def moved(choice: Any) -> float:
        end = Way(choice).walked(1).finals[0]["weights"]
        return sum(float((end[n] - p).square().sum()) for n, p in start.items())

    late, early, never = (
        moved({"name": "recadam", "t0": 1.0, "k": 2.0}), moved({"name": "recadam", "t0": 0.2, "k": 2.0}),
        moved({"name": "recadam", "anneal": "constant"}),
    )  # fmt: skip
    assert late < 0.5 * early < 0.5 * never
    assert never == moved("ncl")


def test_the_optimizer_recadam_is_refused() -> None:
    model, method, _ = shifted(AnnealedSettings())
    with pytest.raises(EunoeError, match="the method recadam and the optimizer recadam would both pull"):
        method.on_optimizer(RecAdam([{"params": list(model.parameters()), "anchor": None}], lr=1e-3))
