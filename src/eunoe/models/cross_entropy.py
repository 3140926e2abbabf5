"""The cross-entropy of many classes on a CPU, in one pass forth and one back.

A vocabulary's logits are the largest tensor of a step, and torch's own function passes them nine times on the way to their gradient. Here
a few rows at a time go all the way, in float32, while they lie in the core's cache. Other devices, float64 and logits that fit the cache as
a whole are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eunoe.data.collate import NO_TARGET

_AT_ONCE = 1 << 18
"""Elements of the logits that are looked at together: 1 MiB of float32, which a core's cache holds."""


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 where it was in half precision; float64 stays, so that sums can be checked to its last digits."""
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy (nats) of ``logits`` (n, classes) at ``labels`` (n,), summed in float32 or better; ``NO_TARGET`` counts nothing."""
    large = logits.dtype == torch.bfloat16 or (logits.dtype == torch.float32 and logits.numel() > _AT_ONCE)
    if logits.device.type == "cpu" and large:
        return by_rows(logits, labels, NO_TARGET)
    return F.cross_entropy(at_least_float32(logits), labels, reduction="sum", ignore_index=NO_TARGET)


def by_rows(logits: Tensor, labels: Tensor, no_target: int) -> Tensor:
    """The summed cross-entropy (nats, float32) of ``logits`` (n, classes) at ``labels`` (n,), summed in float32.

    Rows whose label is ``no_target`` count nothing.
    """
    total: Tensor = _CrossEntropy.apply(logits, labels, no_target)  # type: ignore[no-untyped-call]
    return total


class _CrossEntropy(torch.autograd.Function):
    """Both ways compute a few rows at a time, in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, no_target: int) -> Tensor:
        norms = torch.cat([part.float().logsumexp(1) for part in _split(logits, _rows(logits))])
        counts = labels != no_target
        labels = labels.where(counts, 0)
        ctx.save_for_backward(logits, labels, norms, counts)
        return (norms - logits.gather(1, labels[:, None])[:, 0].float()).where(counts, 0).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, norms, counts = ctx.saved_tensors
        grad, rows = torch.empty_like(logits), _rows(logits)
        scales = counts * grads[0]
        parts = (_split(x, rows) for x in (grad, logits, labels, norms, scales))
        for into, part, label, norm, scale in zip(*parts, strict=True):
            share = (part - norm[:, None]).exp_()  # float32, as norm is
            share.scatter_add_(1, label[:, None], share.new_full((len(label), 1), -1.0))
            into.copy_(share.mul_(scale[:, None]))
        return grad, None, None


def _split(x: Tensor, rows: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = x.split(rows)  # type: ignore[no-untyped-call]
    return parts


def _rows(logits: Tensor) -> int:
    return max(1, _AT_ONCE // max(1, logits.shape[1]))


__all__ = ["at_least_float32", "by_rows", "cross_entropy"]
