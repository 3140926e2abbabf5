"""CPT's CL-plugin: a two-layer adapter that all domains share, each through its own masks.

Paper: Ke et al. 2022 (CPT), https://arxiv.org/abs/2210.05549; code https://github.com/UIC-Liu-Lab/CPT. It may use old
domains' units (that is the transfer between domains) but while a new domain is learnt their weights are blocked
(``methods/cpt.py``). The activation on the output is kept as published, so a plug-in only ever adds (h2 >= 0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eunoe.plugins.task_mask import Active, TaskMask


class Adapter(nn.Module):
    """``h1 = m1 * relu(W1 x + b1); h2 = m2 * relu(W2 h1 + b2)``; returns ``x + h2``, or ``h2`` without the skip.

    x: (..., width); W1: ``fc1`` (size, width); W2: ``fc2`` (out, size); m1, m2: the masks of ``active.domain``.
    W1 and W2 start as the library's linear layers do, like the release's. The arithmetic is in the weights' dtype and
    the result comes back in x's, so plug-ins can stay in float32 on a bfloat16 model.
    """

    def __init__(self, width: int, size: int, active: Active, *, out: int | None = None, skip: bool = True) -> None:
        super().__init__()
        out = width if out is None else out
        if skip and out != width:
            raise ValueError(f"a skip needs equal widths, got {width} in and {out} out")
        self.active = active
        self.skip = skip
        self.fc1 = nn.Linear(width, size)
        self.fc2 = nn.Linear(size, out)
        self.mask1 = TaskMask(size, active)
        self.mask2 = TaskMask(out, active)

    def forward(self, x: Tensor) -> Tensor:
        h1 = self.fc1(x.to(self.fc1.weight.dtype)).relu()
        h2 = self.fc2(self.mask1().to(h1.dtype) * h1).relu()
        h2 = (self.mask2().to(h2.dtype) * h2).to(x.dtype)
        out: Tensor = x + h2 if self.skip else h2
        return out

    def masks(self) -> dict[str, TaskMask]:
        """The masks by name, inner units first."""
        return {name: module for name, module in self.named_modules() if isinstance(module, TaskMask)}

    def reads(self, domain: int) -> dict[str, Tensor]:
        """Which entries of which weights a domain's output reads, by name: bool tensors of the weights' shapes.

        A column of W2 whose inner unit is masked meets an exact zero, so it is not read. The mask embeddings are read by
        the running domain alone: a finished one has its bits.
        """
        inner, outer = self.mask1.hard_mask(domain), self.mask2.hard_mask(domain)
        return {
            "fc1.weight": inner[:, None].expand_as(self.fc1.weight),
            "fc1.bias": inner,
            "fc2.weight": outer[:, None] & inner[None, :],
            "fc2.bias": outer,
            "mask1.embedding": torch.full_like(inner, domain not in self.active.finished),
            "mask2.embedding": torch.full_like(outer, domain not in self.active.finished),
        }


__all__ = ["Adapter"]
