"""RecAdam under what other projects ask of an optimizer; each file says what it needs and is skipped without it.

Nothing is fetched. The bodies are ours, after the ideas of the suites they name, because those suites are not in the
packages. To run them: ``pip install expecttest timm pytorch_optimizer`` and ``pytest tests/peers -rsx``. What RecAdam does
not do is in the tests as an expected failure, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eunoe.optim import RecAdam


def anchored(params: Iterable[Any], lr: float | Tensor = 1e-3, **named: Any) -> RecAdam:
    """RecAdam over tensors, named tensors or groups as other optimizers take them, each anchored to a copy of itself.

    The pull is light and over after some steps, so that the problems of other suites can be solved under it.
    """
    listed: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    groups = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
    for group in groups:
        members = group["params"]
        group["params"] = [members] if isinstance(members, Tensor) else list(members)
        tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        group["anchor"] = [p.detach().clone() for p in tensors]
    return RecAdam(groups, lr, **{"gamma": 0.5, "k": 1.0, "t0": 5, **named})


def plain(params: Iterable[Any], lr: float | Tensor = 1e-3, **named: Any) -> RecAdam:
    """RecAdam where nothing is anchored."""
    return RecAdam(params, lr, anchor=None, **named)


MAKERS = {"anchored": anchored, "plain": plain}


def linear_problem(dtype: torch.dtype = torch.float32, transposed: bool = False) -> tuple[list[nn.Parameter], Any]:
    """A weight and a bias to drive to a target, and the loss: the small case of torch's and timm's suites."""
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 10, generator=g).to(dtype).t() if transposed else torch.randn(10, 5, generator=g).to(dtype)
    ps = [nn.Parameter(weight), nn.Parameter(torch.randn(10, generator=g).to(dtype))]
    x = torch.randn(5, generator=g).to(dtype)

    def loss() -> Tensor:
        return (ps[0].mv(x) + ps[1]).pow(2).sum()

    return ps, loss


def run(optimizer: Any, loss: Any, steps: int, *schedulers: Any) -> list[float]:
    """Losses before each of ``steps`` and after the last."""
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        seen.append(value.item())
        optimizer.step()
        for scheduler in schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(value.item()) if plateau else scheduler.step()
    return [*seen, loss().item()]
