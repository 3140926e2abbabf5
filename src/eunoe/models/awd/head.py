"""ULMFiT's classifier on states: concat pooling and two blocks of batch norm, dropout and a linear layer (arXiv 1801.06146).

Nothing here knows which model the states come from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def concat_pool(states: Tensor, mask: Tensor, last: Tensor | None = None) -> Tensor:
    """[last; max; mean] of each row: (B, T, width) -> (B, 3 width).

    ``mask`` (B, T): True where a state counts. ``last`` (B,): the position of the last state; default: the last that counts.
    A row of which none counts is 0.

    >>> concat_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[3., 3., 2.]])
    """
    mask = mask.to(device=states.device, dtype=torch.bool)
    if last is None:
        steps = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, steps, 0).amax(1)
    counts = mask.sum(1, keepdim=True)
    real = mask[..., None]
    final = states[torch.arange(len(states), device=states.device), last]
    largest = states.masked_fill(~real, torch.finfo(states.dtype).min).amax(1)
    mean = (states * real).sum(1) / counts.clamp(min=1)
    pooled = torch.cat([final, largest, mean], 1)
    return pooled * (counts > 0)


class PoolingHead(nn.Module):
    """Batch norm, dropout, linear, ReLU; batch norm, dropout, linear: (B, inputs) -> (B, labels).

    A single row has no batch statistics: it is normed by the running ones, and leaves them as they are.
    ``dropouts``: of the two blocks (the paper's 0.4 and 0.1). As in fastai the first linear layer of a block that is followed by a
    batch norm still has no bias, and neither has the last one.
    """

    def __init__(self, inputs: int, labels: int, hidden: int = 50, dropouts: tuple[float, float] = (0.4, 0.1)) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.BatchNorm1d(inputs), nn.BatchNorm1d(hidden)
        self.drop_in, self.drop_out = nn.Dropout(dropouts[0]), nn.Dropout(dropouts[1])
        self.linear_in, self.linear_out = nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, labels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.linear_in(self.drop_in(_normed(self.norm_in, x))))
        out: Tensor = self.linear_out(self.drop_out(_normed(self.norm_out, x)))
        return out


def _normed(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    out: Tensor = (
        norm(x)
        if len(x) > 1 or not norm.training
        else F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    )
    return out


__all__ = ["PoolingHead", "concat_pool"]
