"""ELMo's mix of a model's layers (NAACL 2018, https://arxiv.org/abs/1802.05365): gamma times their weighted mean, learnt by the task.

bilm-tf normalises a layer over all real positions of a batch together; here each row has a mean and variance of its own, over
its positions and features, so that what a row becomes does not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mix_layers(layers: Tensor, weights: Tensor, gamma: Tensor) -> Tensor:
    """gamma * sum_j s_j h_j with s = softmax(``weights``); ``layers`` (..., L, width), ``weights`` (L,) -> (..., width)."""
    return gamma * torch.einsum("l,...lw->...w", torch.softmax(weights, 0), layers)


def normalise(layers: Tensor, mask: Tensor, eps: float = 1e-12) -> Tensor:
    """Each layer of each row of ``layers`` (B, T, L, width) at mean 0 and variance 1 over its real positions, ``mask`` (B, T)."""
    real = mask[:, :, None, None]
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
