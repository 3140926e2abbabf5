"""Training in bfloat16 on a CPU: what torch's autocast leaves undone.

With products three times as fast, a third of a step went into what stands between them: weights that do not change were
rounded anew each time they were used, activations went to bfloat16 before each product and back after it, and the
cross-entropy passed memory nine times in float32. Here frozen weights are rounded once a training (``HalfProducts``), what leaves
a LayerNorm stays in bfloat16 until the next one (its mean and variance are float32 inside), and the cross-entropy works on a
few rows at a time (``cross_entropy.py``).

Nothing here touches a float32 training. Other devices keep torch's own functions, but for the frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def can_half() -> bool:
    """Does this CPU multiply bfloat16 in units of its own (AVX512_BF16 or AMX)? Without them it is slower than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class HalfProducts(TorchFunctionMode):
    """Within the block, and within autocast, products take frozen weights from copies that were rounded once.

    A copy is made when a weight is first used and made again after the weight has changed; copies take half of the frozen
    matrices' memory, as long as this object lives. On a CPU what leaves a LayerNorm is in autocast's dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[int, tuple[Tensor, tuple[int, int], Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS and _casts(args[0]):
            # the names of keyword arguments differ between the products; models give weights by position
            args = tuple(self._rounded(x) if isinstance(x, torch.nn.Parameter) else x for x in args)
        elif (
            func is F.layer_norm and args[0].device.type == "cpu" and args[0].dtype == torch.float32 and _casts(args[0])
        ):
            return F.layer_norm(*args, **kwargs).to(torch.get_autocast_dtype("cpu"))
        return func(*args, **kwargs)

    def _rounded(self, weight: Tensor) -> Tensor:
        """A frozen float32 weight in autocast's dtype; any other as it is."""
        if weight.requires_grad or weight.dtype != torch.float32:
            return weight
        state = (weight._version, weight.data_ptr())
        kept = self.copies.get(id(weight))
        if kept is None or kept[1] != state:
            copy = weight.detach().to(torch.get_autocast_dtype(weight.device.type))
            kept = self.copies[id(weight)] = (weight, state, copy)  # the weight too, so that its id stays its own
        return kept[2]


_PRODUCTS = {F.linear, torch.addmm}
"""What models multiply their weights with (``addmm``: GPT-2's)."""


def _casts(x: Any) -> bool:
    return isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type)


__all__ = ["HalfProducts", "can_half"]
