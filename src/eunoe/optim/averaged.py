"""NT-ASGD: stochastic gradient descent that starts to average once validation stops improving.

Merity, Keskar and Socher 2018, arXiv 1708.02182, Algorithm 1. The step is plain SGD with weight decay in the gradient. From the
moment ``start_averaging`` is called, a running mean of the weights is kept beside them, over every step since (torch's ASGD with t0 = 0
and no decay of the learning rate, as in their program); ``averaged`` swaps it in. When to start is a function of the validation
losses alone: ``triggered``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eunoe.errors import EunoeError


def triggered(losses: Sequence[float], n: int = 5) -> bool:
    """Is the last validation loss worse than the best of all that are older than the last ``n`` before it?

    >>> triggered([5.0, 4.0, 4.2, 4.1, 4.3, 4.2, 4.1], n=5)
    False
    >>> triggered([5.0, 4.0, 4.2, 4.1, 4.3, 4.2, 4.1, 4.1], n=5)
    True
    """
    older = losses[:-1][: max(0, len(losses) - 1 - n)]
    return bool(older) and losses[-1] > min(older)


class NtAsgd(Optimizer):
    """SGD, and after ``start_averaging`` also the mean of the weights. ``averaging``: from the first step on.

    Raises ``EunoeError`` for a learning rate or weight decay below 0.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 30.0, weight_decay: float = 1.2e-6, averaging: bool = False
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise EunoeError(f"lr is {lr} and weight_decay {weight_decay}; both must be 0 or more.")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "averaging": averaging})

    @property
    def averaging(self) -> bool:
        return bool(self.param_groups[0]["averaging"])

    def start_averaging(self) -> None:
        """Keep the mean of the weights from the next step on; a second call changes nothing."""
        for group in self.param_groups:
            group["averaging"] = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; the first after averaging began only moves the weights, as in torch's ASGD, whose mean is over those that follow."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads: list[Any] = [p.grad for p in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_add_(params, grads, alpha=-group["lr"])
            if group["averaging"]:
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["count"], state["mean"] = torch.tensor(0.0), p.detach().clone()
                    state["count"] += 1
                    state["mean"].lerp_(p, 1.0 / max(1.0, float(state["count"]) - 1.0))
        return loss

    def means(self) -> dict[Tensor, Tensor]:
        """Weight -> its mean, for those that have one."""
        return {p: self.state[p]["mean"] for group in self.param_groups for p in group["params"] if self.state.get(p)}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the weights are their means, where there are any; afterwards they are what they were, to the bit."""
        means = self.means()
        kept = {p: p.detach().clone() for p in means}
        with torch.no_grad():
            for p, mean in means.items():
                p.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, old in kept.items():
                    p.copy_(old)


__all__ = ["NtAsgd", "triggered"]
