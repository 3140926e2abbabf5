"""Matrix products with the fastest kernel that a CPU build of torch has: oneDNN's, which ``torch.mm`` takes for bfloat16 alone.

torch multiplies float32 matrices by MKL. On a processor that MKL was not written for this is half as fast: on one core of an
AMD EPYC with AVX-512, (2240, 1152) by (1152, 4608) ran at 99 GFLOP/s by ``torch.mm`` and at 190 by oneDNN, and the narrow
product of an LSTM's step, (32, 1152) by (1152, 4608), at 78 against 194. The operator is the one that
``torch.compile`` puts in for ``nn.Linear``; it has no backward pass, so it stands inside functions that bring their own. A build
without it, other devices and other types run ``torch.mm``: the same numbers up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

_KINDS = (torch.float32, torch.bfloat16)


def _has_operator() -> bool:
    able = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # type: ignore[no-untyped-call]
    return bool(able) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fits(a: Tensor) -> bool:
    return a.device.type == "cpu" and a.dtype in _KINDS and _has_operator()


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a`` (n, k) times the transpose of ``b`` (m, k): (n, m), without a gradient.

    >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[3., 7.]])
    """
    if _fits(a) and a.numel() and b.numel():
        out: Tensor = torch.ops.mkldnn._linear_pointwise(a.contiguous(), b, None, "none", [], "")
        return out
    return a @ b.t()


def packed(b: Tensor, rows: int) -> Tensor:
    """``b`` (m, k) laid out for many calls of ``product`` with ``a`` of ``rows`` rows; itself where nothing is gained."""
    if _fits(b) and b.numel() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(b.contiguous(), rows)
        return laid
    return b


__all__ = ["packed", "product"]
