"""Virtual gates: factors on a layer's units that are all 1 and never train; the loss' gradient by a gate says what the unit does for it.

Paper: Ke et al. 2023, "Continual Pre-training of Language Models" (DAS, https://arxiv.org/abs/2302.03241), after Michel et al.
2019, "Are Sixteen Heads Really Better than One?" (https://arxiv.org/abs/1905.10650).

A layer has units of three kinds (``KINDS``), with their gates at these places in every family of ``models/anatomy.py``:

=====  ======================  ===========================================  ==================================================
kind   unit                    its gate multiplies                          weights that make it
=====  ======================  ===========================================  ==================================================
heads  an attention head       its part of the concatenated heads           its rows of query, key and value, and the output
                                                                            projection's columns that read it
inner  a feed-forward unit     its activation, before the last projection   its rows of the first projection(s)
outer  a feed-forward output   the last projection's output                 its row of the last projection
=====  ======================  ===========================================  ==================================================

Where several heads share a key and a value (grouped queries), these belong to all of them. Layers that share weights (ALBERT)
are one layer here, and its gates multiply each time it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eunoe.models.anatomy import Anatomy, Layer, refuse_recurrent

KINDS = ("heads", "inner", "outer")
"""The units of a layer."""


class Gate(nn.Module):
    """The gates of one layer's units of one kind: multiplies (..., units * repeat) by ``value``; without one it does nothing.

    ``dropout`` drops units where ``noisy`` and the model trains: a source of difference between two passes of a model without
    dropout of its own.
    """

    def __init__(self, repeat: int, noise: float) -> None:
        super().__init__()
        self.repeat = repeat
        self.dropout = nn.Dropout(noise)
        self.value: Tensor | None = None
        self.noisy = False

    def forward(self, x: Tensor) -> Tensor:
        if self.value is not None:
            x = x * self.value.repeat_interleave(self.repeat).to(x.dtype)
        if self.noisy:
            x = self.dropout(x)
        return x

    def before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook on what enters a module: a method and no closure, so that a deep copy of the model has its own."""
        return (self(args[0]), *args[1:])

    def after(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        """A hook on what leaves a module."""
        gated: Tensor = self(output)
        return gated


class Gates:
    """The gates of all layers of a model, by ``LAYER.KIND``, as ``encoder.layer.0.heads``. They are attached as long as the model lives.

    noise: the dropout rate of the gates, see ``Gate``.
    """

    def __init__(self, parts: Anatomy, noise: float = 0.0) -> None:
        refuse_recurrent(parts)
        self.layers = parts.layers
        self.gates: dict[str, Gate] = {}
        self.units: dict[str, int] = {}
        for layer in parts.layers:
            made = {kind: Gate(parts.heads_width // parts.heads if kind == "heads" else 1, noise) for kind in KINDS}
            layer.module.add_module("unit_gates", nn.ModuleDict(made).train(layer.module.training))
            layer.attention_proj.register_forward_pre_hook(made["heads"].before)
            layer.feed_forward_proj.register_forward_pre_hook(made["inner"].before)
            layer.feed_forward_proj.register_forward_hook(made["outer"].after)
            inner, outer = fan(layer.feed_forward_proj)
            for kind, units in zip(KINDS, (parts.heads, inner, outer), strict=True):
                self.gates[f"{layer.name}.{kind}"], self.units[f"{layer.name}.{kind}"] = made[kind], units

    @contextmanager
    def at(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block the gates have these values, each (units,)."""
        try:
            for name, gate in self.gates.items():
                gate.value = values[name]
            yield
        finally:
            for gate in self.gates.values():
                gate.value = None

    @contextmanager
    def noise(self) -> Iterator[None]:
        """Within the block the gates drop units, while the model is in training mode."""
        try:
            for gate in self.gates.values():
                gate.noisy = True
            yield
        finally:
            for gate in self.gates.values():
                gate.noisy = False

    def ones(self, like: Tensor) -> dict[str, Tensor]:
        """Open gates that a gradient can be taken by, where the weight ``like`` is, in float32 or its own larger type."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {
            name: torch.ones(n, device=like.device, dtype=dtype, requires_grad=True) for name, n in self.units.items()
        }


def fan(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2 keeps its weights turned over (``Conv1D``)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return (weight.shape[1], weight.shape[0]) if isinstance(layer, nn.Linear) else (weight.shape[0], weight.shape[1])


def spread(parts: Anatomy, layer: Layer, values: Mapping[str, Tensor]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each weight of ``layer`` that makes units, and their values brought into a shape that broadcasts over the weight.

    values: by kind, (units,). A weight of several units (a key that heads share) has the largest of their values.
    """
    size = parts.heads_width // parts.heads
    for projection in layer.attention_heads:
        yield from _rows(
            projection, _by_row(values["heads"], fan(projection)[1] // size, parts).repeat_interleave(size)
        )
    columns = values["heads"].repeat_interleave(size)
    weight: nn.Parameter = layer.attention_proj.weight  # type: ignore[assignment]
    yield weight, columns[None, :] if isinstance(layer.attention_proj, nn.Linear) else columns[:, None]
    for around in layer.feed_forward_in:
        for projection in around.modules():
            matrix = getattr(projection, "weight", None)
            if isinstance(matrix, nn.Parameter) and matrix.dim() == 2 and projection is not layer.feed_forward_proj:
                times = fan(projection)[1] // len(values["inner"])  # a gate's rows may stand behind the units' own
                yield from _rows(projection, values["inner"].repeat(times))
    yield from _rows(layer.feed_forward_proj, values["outer"])


def _by_row(heads: Tensor, blocks: int, parts: Anatomy) -> Tensor:
    """The value of each of a projection's blocks of rows, one block a head's query, key or value."""
    if blocks < len(heads):  # each block serves a group of heads
        return heads.view(blocks, -1).amax(1)
    times = blocks // len(heads)
    return heads.repeat_interleave(times) if parts.interleaved else heads.repeat(times)


def _rows(layer: nn.Module, values: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The weight and the bias of a linear layer, with a value for each of its outputs."""
    weight: nn.Parameter = layer.weight  # type: ignore[assignment]
    yield weight, values[:, None] if isinstance(layer, nn.Linear) else values[None, :]
    bias = getattr(layer, "bias", None)
    if isinstance(bias, nn.Parameter):
        yield bias, values


__all__ = ["KINDS", "Gate", "Gates", "fan", "spread"]
