"""ELMo's mix of a model's layers (NAACL 2018, https://arxiv.org/abs/1802.05365): gamma times their weighted mean, learnt by the task.

bilm-tf normalises a layer over all real positions of a batch together; here each row has a mean and variance of its own, over
its positions and features, so that what a row becomes does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eunoe.models.cross_entropy import at_least_float32


def mix_layers(layers: Tensor, weights: Tensor, gamma: Tensor) -> Tensor:
    """gamma * sum_j s_j h_j with s = softmax(``weights``), in float32 at least; ``layers`` (B, ..., L, width), ``weights`` (L,) ->
    (B, ..., width)."""
    mixed: Tensor = _Mixed.apply(layers, torch.softmax(weights, 0))  # type: ignore[no-untyped-call]
    return gamma * mixed


class _Mixed(torch.autograd.Function):
    """sum_j s_j h_j, row after row: layers come from the disk in float16, and one row in float32 stays in the cache."""

    @staticmethod
    def forward(ctx: Any, layers: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(layers, shares)
        kind = torch.promote_types(layers.dtype, shares.dtype)
        return torch.stack([torch.einsum("l,...lw->...w", shares.to(kind), row.to(kind)) for row in layers])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        layers, shares = ctx.saved_tensors
        for_layers, for_shares = ctx.needs_input_grad
        over = (*range(layers.dim() - 3), layers.dim() - 2)  # all axes of a row but that of its layers
        each = (
            (row.to(grad.dtype) * g[..., None, :]).sum(over).to(shares.dtype)
            for row, g in zip(layers, grad, strict=True)
        )
        return (
            (shares[:, None] * grad[..., None, :]).to(layers.dtype) if for_layers else None,
            torch.stack([*each]).sum(0) if for_shares else None,
        )


def normalise(layers: Tensor, mask: Tensor, eps: float = 1e-12) -> Tensor:
    """Each layer of each row of ``layers`` (B, T, L, width) at mean 0 and variance 1 over its real positions, ``mask`` (B, T)."""
    layers, real = at_least_float32(layers), mask[:, :, None, None]
    n = (mask.sum(1) * layers.shape[-1]).clamp(min=1)[:, None, None, None]
    mean = (layers * real).sum((1, 3), keepdim=True) / n
    variance = ((layers - mean) * real).square().sum((1, 3), keepdim=True) / n
    return (layers - mean) * real / (variance + eps).sqrt()


class ScalarMix(nn.Module):
    """The mix with its learnt weights: all layers alike and gamma 1 at first.

    >>> mix = ScalarMix(3)
    >>> mix(torch.tensor([[[[1.0], [2.0], [6.0]]]]), torch.ones(1, 1, dtype=torch.bool)).item()
    3.0
    """

    def __init__(self, layers: int, layer_norm: bool = False) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.weights = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, layers: Tensor, mask: Tensor) -> Tensor:
        """``layers`` (B, T, L, width), ``mask`` (B, T) -> (B, T, width)."""
        return mix_layers(normalise(layers, mask) if self.layer_norm else layers, self.weights, self.gamma)

    def pull(self) -> Tensor:
        """The squared length of the weights: what the L2 pull to the mean of all layers is taken of.

        The published paper pulls w to 0, its earlier version pulls weights to 1 / L. Under the softmax both have their least
        at the same mix, as equal weights are equal wherever they stand.
        """
        return self.weights.square().sum()


__all__ = ["ScalarMix", "mix_layers", "normalise"]
