"""CPT's CL-plugin: a two-layer adapter that all domains share, each through its own masks.

Paper: Ke et al. 2022 (CPT), https://arxiv.org/abs/2210.05549; code https://github.com/UIC-Liu-Lab/CPT. It may use old
domains' units (that is the transfer between domains) but while a new domain is learnt their weights are blocked
(``methods/cpt.py``). ReLU on the output is kept as published, so that a plug-in only ever adds (h2 >= 0); other
activations are ours to choose. All of them are 0 at 0.

What the release does not have: ``grow`` gives a plug-in more inner units when domains have used them up. The new units
are matrices of their own. One wider matrix would be the same sum on paper, but a matrix product of another size adds in
another order, and its last bits differ: earlier domains would change. A finished domain skips a block that it has no
unit in, so after growing it computes exactly what it computed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.plugins.task_mask import Active, TaskMask, free_pairs, free_units

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
"""What stands after both layers. Published: relu."""

INITS: dict[str, float | None] = {"library": None, "normal": 0.02, "near_zero": 1e-3}
"""How fresh weights start: the library's default for linear layers (as the release), or N(0, std) with zero biases: BERT's
own 0.02, or so small that the model starts as nearly its base (the idea of Houlsby et al. 2019, arXiv 1902.00751)."""


class Affine(nn.Module):
    """``W x + b``, (..., width) -> (..., out), started as ``nn.Linear`` starts. b is None without a bias.

    On purpose no ``nn.Linear``: libraries that replace every linear layer of a model by its class (PEFT's ``all-linear``,
    dynamic quantisation, 4-bit loading) then leave plug-ins as they were learnt, and as they are saved and loaded.
    """

    def __init__(self, width: int, out: int, bias: bool = True) -> None:
        super().__init__()
        made = nn.Linear(width, out, bias=bias)
        self.weight, self.bias = made.weight, made.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Block(nn.Module):
    """Inner units that a plug-in was given later: ``W2' (m1 * f(W1' x + b1'))``, (..., width) -> (..., out).

    Its output is added before the plug-in's own output activation and mask, so it has no bias b2.
    """

    def __init__(
        self, width: int, size: int, active: Active, out: int, activation: str, mask: type[TaskMask] = TaskMask
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = Affine(width, size)
        self.fc2 = Affine(size, out, bias=False)
        self.mask1 = mask(size, active)

    def forward(self, x: Tensor) -> Tensor:
        h1 = self.activation(self.fc1(x))
        out: Tensor = self.fc2(self.mask1().to(h1.dtype) * h1)
        return out


class Adapter(nn.Module):
    """``h1 = m1 * f(W1 x + b1); h2 = m2 * f(W2 h1 + b2)``; returns ``x + h2``, or ``h2`` without the skip.

    x: (..., width); W1: ``fc1`` (size, width); W2: ``fc2`` (out, size); m1, m2: the masks of ``active.domain``;
    f: a name of ``ACTIVATIONS``. W1 and W2 start as ``INITS`` says of ``init``. The arithmetic is in the weights' dtype and
    the result comes back in x's, so plug-ins can stay in float32 on a bfloat16 model. ``mask`` is CPT's hard one, HAT's
    ``SoftMask`` or ``OpenMask``.
    """

    def __init__(
        self,
        width: int,
        size: int,
        active: Active,
        *,
        out: int | None = None,
        skip: bool = True,
        activation: str = "relu",
        init: str = "library",
        mask: type[TaskMask] = TaskMask,
    ) -> None:
        super().__init__()
        out = width if out is None else out
        if skip and out != width:
            raise ValueError(f"a skip needs equal widths, got {width} in and {out} out")
        self.active = active
        self.skip = skip
        self.activation = activation
        self.init = init
        self._activate = lookup(ACTIVATIONS, activation, "activation")
        self.fc1 = Affine(width, size)
        self.fc2 = Affine(size, out)
        self.mask1 = mask(size, active)
        self.mask2 = mask(out, active)
        self.grown = nn.ModuleList()
        _start(self, lookup(INITS, init, "init"))

    def forward(self, x: Tensor) -> Tensor:
        # under autocast the products' dtype is autocast's, and going there by way of the weights' would be two copies for nothing
        inside = x if torch.is_autocast_enabled(x.device.type) else x.to(self.fc1.weight.dtype)
        h2: Tensor = self.change(inside).to(x.dtype)
        return x + h2 if self.skip else h2

    def change(self, inside: Tensor) -> Tensor:
        """h2 (..., out), from what enters (..., width) in the weights' dtype, or autocast's."""
        h1 = self._activate(self.fc1(inside))
        total = self.fc2(self.mask1().to(h1.dtype) * h1)
        for block in self.blocks():
            if block.mask1.used():
                total = total + block(inside)
        h2 = self._activate(total)
        masked: Tensor = self.mask2().to(h2.dtype) * h2
        return masked

    def grow(self, units: int) -> None:
        """``units`` fresh inner units beside the old ones, which are not touched. Raises ``EunoeError`` below 1.

        Not while a domain runs: its optimizer does not know them.
        """
        if units < 1:
            raise EunoeError(f"a plug-in of {self.size} inner units cannot grow by {units}; it only grows.")
        block = Block(self.fc1.weight.shape[1], units, self.active, self.mask2.n, self.activation, type(self.mask1))
        _start(block, INITS[self.init])
        self.grown.append(block.to(self.fc1.weight.device, self.fc1.weight.dtype).train(self.training))

    @property
    def size(self) -> int:
        """Inner units, grown ones included."""
        return sum(mask.n for _, mask in self.inner())

    def blocks(self) -> Iterator[Block]:
        """What ``grow`` added, in order."""
        for block in self.grown:
            assert isinstance(block, Block)
            yield block

    def inner(self) -> Iterator[tuple[str, TaskMask]]:
        """The masks over inner units, the first ones' and each grown block's, with what their names begin with."""
        yield "", self.mask1
        yield from ((f"grown.{i}.", block.mask1) for i, block in enumerate(self.blocks()))

    def masks(self) -> dict[str, TaskMask]:
        """All masks by name: ``mask1``, ``mask2``, and ``mask1`` of each grown block."""
        return {name: module for name, module in self.named_modules() if isinstance(module, TaskMask)}

    def reads(self, domain: int) -> dict[str, Tensor]:
        """Which entries of which weights a domain's output reads, by name: bool tensors of the weights' shapes.

        A column of W2 whose inner unit is masked meets an exact zero, so it is not read (as long as it is finite). The
        mask embeddings are read by the running domain alone: a finished one has its bits.
        """
        outer, running = self.mask2.hard_mask(domain), domain not in self.active.finished
        read = {"fc2.bias": outer, "mask2.embedding": torch.full_like(outer, running)}
        for name, mask in self.inner():
            inner = mask.hard_mask(domain)
            read[f"{name}fc1.weight"] = inner[:, None].expand(-1, self.fc1.weight.shape[1])
            read[f"{name}fc1.bias"] = inner
            read[f"{name}fc2.weight"] = outer[:, None] & inner[None, :]
            read[f"{name}mask1.embedding"] = torch.full_like(inner, running)
        return read

    def free(self) -> dict[str, Tensor]:
        """By name, the factor on each weight's gradient that keeps finished domains as they are: 1 free, 0 blocked.

        Factors broadcast over the weights: W1 (size, width) has one per row.
        """
        outer = self.mask2.taken
        factors = {"fc2.bias": free_units(outer)}
        for name, mask in self.inner():
            factors[f"{name}fc1.weight"] = free_units(mask.taken)[:, None]
            factors[f"{name}fc1.bias"] = free_units(mask.taken)
            factors[f"{name}fc2.weight"] = free_pairs(outer, mask.taken)
        return factors


def _start(module: nn.Module, std: float | None) -> None:
    """Draw the linear layers anew from N(0, std) with zero biases; None: they stay as the library made them."""
    for layer in module.modules():
        if std is not None and isinstance(layer, Affine):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


__all__ = ["ACTIVATIONS", "INITS", "Adapter", "Affine", "Block"]
