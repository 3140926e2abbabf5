"""Dropout on a CPU from a quarter of the random numbers.

torch's CPU kernel draws a number for each element, on one core: 8 % of a CPT step at RoBERTa-base, and attention with
dropout, which its fast kernel does not know, goes a long way round. Here one 64-bit draw of torch's own generator is cut
in four and 16 bits decide on an element, and attention is its two products, softmax and dropout, no more.

What differs: which elements fall for a seed, and the rate, which is a whole number of 65536ths (0.1 is 6554 of them:
0.100006). What stays is scaled by exactly the inverse of the share that stays, so the mean is kept. As before the draws
follow from ``torch.manual_seed`` alone, whatever the number of threads. Only training on a CPU passes here: evaluation,
other devices and a rate of 0 run torch's own functions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PARTS = 1 << 16


class CheapDropout(TorchFunctionMode):
    """Within the block dropout and attention with dropout on CPU tensors draw as this file says.

    >>> with CheapDropout():
    ...     kept = F.dropout(torch.ones(1000), 0.1)
    >>> sorted(set(kept.tolist()))[1] == torch.tensor(65536 / (65536 - 6554)).item()
    True
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        chosen: Callable[..., Any] = _OURS.get(func, func)
        return chosen(*args, **(kwargs or {}))


def keep(shape: tuple[int, ...], rate: float, dtype: torch.dtype) -> Tensor:
    """What to multiply by: 0 with chance ``rate``, else the inverse of the share that stays; on the CPU.

    ``rate`` is taken to the nearest 65536th, which must not be 0 or 1.
    """
    fall = round(rate * _PARTS)
    n = prod(shape)
    # all 64 bits: without bounds torch would draw 63, and every fourth element would see half the numbers
    draws = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)[:n]
    stays, scale = fall - _PARTS // 2, _PARTS / (_PARTS - fall)
    if dtype == torch.bfloat16:  # its 16 bits take the draws' place: a fifth of the time of going there by way of bool
        bits = int(torch.tensor(scale, dtype=dtype).view(torch.int16))
        return draws.ge_(stays).mul_(bits).view(dtype).view(shape)
    # in place, still as integers: half the time of going there by way of bool
    return draws.ge_(stays).to(dtype).mul_(scale).view(shape)


def _draws(x: Tensor, rate: float) -> bool:
    return x.device.type == "cpu" and 0 < round(rate * _PARTS) < _PARTS


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or inplace or not _draws(input, p):
        return F.dropout(input, p, training, inplace)
    return input * keep(tuple(input.shape), p, input.dtype)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    added = attn_mask is not None and attn_mask.dtype != torch.bool
    if added or enable_gqa or not _draws(query, dropout_p):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:  # the least number, not -inf: a row that may see nothing must not become nan
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    shares = scores.softmax(-1)
    return (shares * keep(tuple(shares.shape), dropout_p, shares.dtype)) @ value


_OURS: dict[Any, Callable[..., Tensor]] = {F.dropout: _dropout, F.scaled_dot_product_attention: _attention}

__all__ = ["CheapDropout", "keep"]
