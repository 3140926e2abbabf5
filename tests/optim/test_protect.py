"""Protected entries stay, to the bit, under every optimizer, with moments, weight decay and momentum at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.errors import EunoeError
from eunoe.optim import Protected, RecAdam, make_scheduler

MAKE: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.5),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.5, fused=True),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.5),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.1, momentum=0.9, weight_decay=0.5),
    "recadam": lambda ps: RecAdam(
        [{"params": ps, "anchor": [torch.ones_like(p) for p in ps]}], 0.1, gamma=5.0, t0=2, weight_decay=0.5
    ),
}


def weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]


def train(optimizer: Optimizer, ps: list[nn.Parameter], steps: int, seed: int = 1) -> None:
    torch.manual_seed(seed)
    for _ in range(steps):
        for p in ps:
            p.grad = torch.randn_like(p)
        optimizer.step()


def mask(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 2 == 0


@pytest.mark.parametrize("name", MAKE)
def test_kept_entries_do_not_move_by_a_bit_and_the_others_move_as_without_protection(name: str) -> None:
    ps, free = weights(), weights()
    optimizer, unprotected = MAKE[name](ps), MAKE[name](free)
    train(optimizer, ps, 3)  # so that moments are at work when protection starts
    train(unprotected, free, 3)
    keep = mask(4, 3)
    before = ps[0].detach().clone()
    Protected(optimizer, {ps[0]: keep})
    train(optimizer, ps, 4, seed=2)
    train(unprotected, free, 4, seed=2)
    assert torch.equal(ps[0][keep], before[keep])
    assert torch.equal(ps[0][~keep], free[0][~keep])
    assert torch.equal(ps[1], free[1])


def test_a_gradient_that_is_no_number_cannot_reach_a_kept_entry() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = MAKE["adamw"]([p])
    Protected(optimizer, {p: torch.tensor([True, False])})
    p.grad = torch.tensor([float("nan"), 1.0])
    optimizer.step()
    assert p[0] == 1
    assert p.isfinite().all()


def test_after_release_every_entry_moves() -> None:
    ps = weights()
    optimizer = MAKE["adamw"](ps)
    guard = Protected(optimizer, {ps[0]: torch.ones(4, 3, dtype=torch.bool)})
    before = ps[0].detach().clone()
    train(optimizer, ps, 1)
    assert torch.equal(ps[0], before)
    guard.release()
    train(optimizer, ps, 1)
    assert (ps[0] != before).all()


def test_protection_holds_with_a_scheduler_a_closure_and_accelerate() -> None:
    from accelerate import Accelerator

    p = nn.Parameter(torch.ones(2))
    optimizer = MAKE["recadam"]([p])
    Protected(optimizer, {p: torch.tensor([True, False])})
    scheduler = make_scheduler(optimizer, "linear", 3)
    prepared: Any = Accelerator(cpu=True).prepare(optimizer)

    def closure() -> Tensor:
        prepared.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    for _ in range(2):
        prepared.step(closure)
        scheduler.step()
    assert p[0] == 1
    assert p[1] != 1


@pytest.mark.parametrize("bad", [torch.ones(4, 3), torch.ones(3, dtype=torch.bool)])
def test_a_mask_that_does_not_fit_is_refused(bad: Tensor) -> None:
    ps = weights()
    with pytest.raises(EunoeError, match=r"torch.bool of shape \(4, 3\)"):
        Protected(MAKE["adamw"](ps), {ps[0]: bad})


def test_nothing_to_keep_is_no_protection() -> None:
    optimizer = MAKE["adamw"](weights())
    Protected(optimizer, {}).release()
