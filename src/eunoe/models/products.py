"""Matrix products with the fastest kernel that a CPU build of torch has: oneDNN's, which ``torch.mm`` takes for bfloat16 alone.

torch multiplies float32 matrices by MKL. On a processor that MKL was not written for this is half as fast: on one core of an
AMD EPYC with AVX-512, (2240, 1152) by (1152, 4608) ran at 99 GFLOP/s by ``torch.mm`` and at 190 by oneDNN, and the narrow
product of an LSTM's step, (32, 1152) by (1152, 4608), at 78 against 194. The operator is the one that
``torch.compile`` puts in for ``nn.Linear``; it has no backward pass, so it stands inside functions that bring their own. A build
without it, other devices and other types run ``torch.mm``: the same numbers up to rounding. Seen on AMD alone; what it brings on
other processors was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_KINDS = (torch.float32, torch.bfloat16)
_LARGE = 1 << 21
"""Multiplications from which on the detour pays: 10 microseconds of the product."""


def _has_operator() -> bool:
    able = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # type: ignore[no-untyped-call]
    return bool(able) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fits(a: Tensor) -> bool:
    return a.device.type == "cpu" and a.dtype in _KINDS and _has_operator()


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a`` (n, k) times the transpose of ``b`` (m, k), and ``bias`` (m,) added, by oneDNN; views are read as they lie."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a`` (n, k) times the transpose of ``b`` (m, k): (n, m), without a gradient.

    >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[3., 7.]])
    """
    if _fits(a) and a.numel() and b.numel():
        return _multiply(a.contiguous(), b)
    return a @ b.t()


def packed(b: Tensor, rows: int) -> Tensor:
    """``b`` (m, k) laid out for many calls of ``product`` with ``a`` of ``rows`` rows; itself where nothing is gained."""
    if _fits(b) and b.numel() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(b.contiguous(), rows)
        return laid
    return b


class FastProducts(TorchFunctionMode):
    """Within the block a model's linear layers multiply large float32 matrices on a CPU by ``product``, forth and back.

    Small products, and those under autocast, are torch's own.

    >>> with FastProducts():
    ...     y = F.linear(torch.ones(256, 256), torch.ones(256, 256))
    >>> y[0, 0].item()
    256.0
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _gains(args[0], args[1]):
            return _linear(*args)
        # GPT-2's layers keep their weights the other way round
        if func is torch.addmm and not kwargs and args[0].dim() == 1 and _gains(args[1], args[2]):
            return _linear(args[1], args[2].t(), args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def scoring() -> Iterator[None]:
    """Inference mode with fast products; also a decorator."""
    with torch.inference_mode(), FastProducts():
        yield


def _gains(x: Any, weight: Any) -> bool:
    plain = isinstance(x, Tensor) and type(weight) in (Tensor, torch.nn.Parameter)
    return (
        plain and x.dtype == weight.dtype == torch.float32 and x.dim() > 0 and _fits(x) and not torch.is_autocast_enabled("cpu")
        and x.numel() * weight.numel() >= _LARGE * x.shape[-1]
    )  # fmt: skip


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (..., k) times the transpose of ``weight`` (m, k), and ``bias`` (m,) added: (..., m)."""
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _multiply(grad, weight.t()) if for_x else None,
            _multiply(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


__all__ = ["FastProducts", "packed", "product", "scoring"]
