"""A bottleneck adapter after a sub-layer: the small plug-in that a frozen model learns with.

``y = x + W2 f(W1 x + b1) + b2``; x, y: (..., width), W1 (size, width), W2 (width, size), f a nonlinearity, size = width / reduction.

Papers: Houlsby et al. 2019, https://arxiv.org/abs/1902.00751 (after both sub-layers); Pfeiffer et al. 2021 (AdapterFusion),
https://arxiv.org/abs/2005.00247 (after the feed-forward one alone, reduction 16, ReLU: what the ``adapters`` library calls
``seq_bn``, and what ContinualLM post-trains, its Adapter-ONE). W1 and W2 start as N(0, 0.02) with zero biases, as that
library starts them ("bert"), so a fresh adapter leaves the model nearly as it is.

What differs: Pfeiffer's adapter stands behind a residual and a LayerNorm of its own family (BERT); here it stands at the same
place in every family, on the sub-layer's result before it is added to the residual stream, which is Houlsby's place.

A switched-off adapter hands on what it gets, so the model is its base to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.models.anatomy import Anatomy, anatomy
from eunoe.plugins.adapter import ACTIVATIONS, Affine
from eunoe.recipe import Positive

PLACES: dict[str, tuple[str, ...]] = {"feed_forward": ("feed_forward",), "both": ("attention", "feed_forward")}
"""After which sub-layers adapters stand. Published: ``feed_forward`` (Pfeiffer), ``both`` (Houlsby)."""


@dataclass(kw_only=True)
class AdapterSettings:
    """The defaults are those of the ``adapters`` library's ``seq_bn``, which ContinualLM post-trains."""

    reduction: Positive = 16
    """The model's width over an adapter's inner units."""
    places: Literal["feed_forward", "both"] = "feed_forward"
    """After which sub-layers adapters stand: feed_forward (Pfeiffer et al.), or both (Houlsby et al.)."""
    activation: str = "relu"
    """The nonlinearity inside: relu, gelu, silu or tanh."""
    backbone: Literal["frozen", "trained"] = "frozen"
    """The pretrained weights in an end task: frozen (as released), or trained with the adapters."""

    def __post_init__(self) -> None:
        lookup(ACTIVATIONS, self.activation, "activation")


class Bottleneck(nn.Module):
    """``x + W2 f(W1 x + b1) + b2`` while it is ``on``, x while it is not. (..., width) -> (..., width).

    The arithmetic is in the weights' dtype, the result in x's.
    """

    def __init__(self, width: int, size: int, activation: str) -> None:
        super().__init__()
        self.down, self.up = Affine(width, size), Affine(size, width)
        self.activation = ACTIVATIONS[activation]
        self.on = True
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        change: Tensor = self.up(self.activation(self.down(x.to(self.down.weight.dtype))))
        return x + change.to(x.dtype)

    def after(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        """A forward hook: a method and no closure, so that a deep copy of the model has its own."""
        changed: Tensor = self(output)
        return changed


def attach(model: nn.Module, settings: AdapterSettings) -> list[Bottleneck]:
    """Give every layer of ``model`` its adapters, switched on, in layer order; their weights are drawn from torch's generator.

    Raises ``EunoeError`` for a family without anatomy and for a reduction that leaves no inner unit.
    """
    parts = anatomy(model)
    size = bottleneck_size(parts, settings.reduction)
    made = []
    for layer in parts.layers:
        first = next(layer.module.parameters())
        for place in PLACES[settings.places]:
            one = Bottleneck(parts.width, size, settings.activation)
            one.to(first.device, torch.promote_types(first.dtype, torch.float32)).train(layer.module.training)
            layer.module.add_module(f"{place}_adapter", one)
            getattr(layer, f"{place}_out").register_forward_hook(one.after)
            made.append(one)
    return made


def bottleneck_size(parts: Anatomy, reduction: float) -> int:
    """Inner units of an adapter of a model of that width, rounded down."""
    size = int(parts.width / reduction)
    if size < 1:
        raise EunoeError(f"reduction is {reduction:g}, which leaves no inner unit of the {parts.width} numbers that this model's layers "
                         f"pass on. Give {parts.width} or less.")  # fmt: skip
    return size


__all__ = ["PLACES", "AdapterSettings", "Bottleneck", "attach", "bottleneck_size"]
