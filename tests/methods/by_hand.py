"""Learning done again without eunoe: plain torch on the same batches, for tests of methods' numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eunoe.contract.tiny import tiny_bert, tiny_gpt2
from eunoe.contract.way import Way
from eunoe.methods import Method
from eunoe.train import train

LR = 0.1
STEPS = 3
MODELS: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "masked": (tiny_bert, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
    "causal": (tiny_gpt2, {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}
"""A tiny model of each kind, and what turns its dropout off."""


def way(choice: Any, kind: str) -> Way:
    """A method on its way over three domains, without dropout, in float64."""
    make, calm = MODELS[kind]
    return Way(choice, make, double=True, initializer_range=0.3, **calm)


def plain(kind: str) -> Any:
    """The pretrained model that ``way`` begins with."""
    make, calm = MODELS[kind]
    return make(initializer_range=0.3, **calm).double()


def learn(walk: Way, i: int, method: Method | None = None) -> Method:
    """Stage ``i`` as the loop learns it, with plain gradient descent; what it leaves is kept for the next stage."""
    method = method or walk.before(i)
    job = walk.job(method, i, steps=STEPS, clip=None, schedule="constant")
    job.optimizer = lambda model: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LR)
    train(job)
    walk.keep(i, method)
    return method


def batches(walk: Way, i: int) -> list[dict[str, Tensor]]:
    """What the steps of stage ``i`` read."""
    stage = walk.stage(i, STEPS)
    return [batch for step in range(STEPS) for batch in stage.batches[step]]


def cross_entropy(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean over the targets of -log p(label), (B, T, vocabulary) logits."""
    at = logits.reshape(-1, logits.shape[-1])[batch["positions"]]
    chosen = at[torch.arange(len(at)), batch["labels"]]
    return (at.exp().sum(-1).log() - chosen).mean()


def descend(weights: Iterable[nn.Parameter], loss: Callable[[dict[str, Tensor]], Tensor], read: Iterable[Any]) -> None:
    """Gradient descent on ``loss`` of each batch in turn."""
    weights = list(weights)
    for batch in read:
        grads = torch.autograd.grad(loss(batch), weights)
        with torch.no_grad():
            for p, grad in zip(weights, grads, strict=True):
                p -= LR * grad
