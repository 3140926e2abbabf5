"""One training phase of a transfer: some weights train, each at its own learning rate, resumable in the middle.

Fine-tuning is one phase; gradual unfreezing is one after another, with more that trains in each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from eunoe.methods.base import Batches, Loss
from eunoe.optim.groups import scale_rates
from eunoe.recipe import LoopSettings
from eunoe.train import Job, Trained, train


def phase(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: Callable[[nn.Module], Optimizer],
    settings: LoopSettings,
    trains: Collection[str] | None,
    rates: Mapping[str, float],
    folder: Path | None,
    *,
    name: str,
    seed: int,
    identity: Mapping[str, str] | None = None,
    observe: Callable[[int], Mapping[str, float]] | None = None,
    validate: Callable[[int], bool] | None = None,
    carry: Any = None,
    rate_scale: Callable[[int], float] | None = None,
    keep_last: bool = False,
) -> Trained:
    """Train ``model`` in place for one phase; started again after a kill it resumes and ends in the same bits.

    ``trains``: names of the trainable weights; None leaves what is set. ``rates``: name -> factor on the learning rate.
    ``folder``: for checkpoints; None writes none. ``observe``: called after each step with its number (from 1), its values are
    kept. ``validate``: likewise; True ends the phase after that step. ``carry``: state that the loss carries from batch to
    batch, and what ``validate`` remembers (``state_dict``, ``load_state_dict``), saved and restored with the step.
    ``rate_scale``: step (from 0) -> factor on all learning rates. ``keep_last``: write a checkpoint after the last step too, as other
    phases follow: started again in one of those, this one costs nothing. Raises as ``train``.
    """
    if trains is not None:
        for weight, p in model.named_parameters():
            p.requires_grad_(weight in trains)
    return train(Job(
        name=name, model=model, batches=batches, loss=loss, settings=settings, seed=seed, folder=folder, observe=observe,
        enough=validate, carry=carry, rate_scale=rate_scale, keep_last=keep_last, identity=dict(identity or {}),
        optimizer=lambda m: scale_rates(optimizer(m), m, dict(rates)),
    ))  # fmt: skip


__all__ = ["phase"]
