"""Leave some entries of some weights alone, whatever optimizer makes the update.

Used by CPT (https://arxiv.org/abs/2210.05549): units that earlier domains use must not move. Its release multiplies
gradients, which is not enough: Adam's moments from before and weight decay move a weight whose gradient is zero. Here
the finished update is undone where it may not act, by a hook that torch runs after every ``step()``. So it holds to the
bit for any optimizer, and the optimizer stays the object it was: schedulers, accelerate and checkpoints see nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eunoe.errors import EunoeError


class Protected:
    """From now on ``optimizer.step()`` leaves the entries of a weight where ``keep`` is True bit-identical.

    ``keep``: weight -> bool tensor of its shape. The values kept are those at the time of this call. Holds until
    ``release()``. The optimizer's state is not touched: what it holds of a kept entry moves nothing meanwhile. Raises
    ``EunoeError`` for a mask that is not bool or not of its weight's shape.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.1)
    >>> guard = Protected(optimizer, {weight: torch.tensor([True, False])})
    >>> weight.sum().backward(); optimizer.step(); weight.tolist()[0]
    1.0
    """

    def __init__(self, optimizer: Optimizer, keep: Mapping[Any, Tensor]) -> None:
        for weight, mask in keep.items():
            if mask.dtype != torch.bool or mask.shape != weight.shape:
                raise EunoeError(
                    f"a protecting mask is {mask.dtype} of shape {tuple(mask.shape)}; its weight needs torch.bool of "
                    f"shape {tuple(weight.shape)}, True where the weight stays."
                )
        self._kept = [(weight, mask.to(weight.device), weight.detach().clone()) for weight, mask in keep.items()]
        self._hook = optimizer.register_step_post_hook(self._restore) if self._kept else None

    @torch.no_grad()
    def _restore(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        for i, (weight, mask, value) in enumerate(self._kept):
            if mask.device != weight.device:  # the model was moved after protection was set
                mask, value = mask.to(weight.device), value.to(weight.device)
                self._kept[i] = (weight, mask, value)
            torch.where(mask, value, weight, out=weight)

    def release(self) -> None:
        """The optimizer may move every entry again."""
        if self._hook is not None:
            self._hook.remove()
