"""Fast products: torch's numbers up to rounding, forth and back, in the layers of a model; small ones to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from eunoe.models import products
from eunoe.models.products import FastProducts

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(128, 96),
    "without bias": lambda: nn.Linear(128, 96, bias=False),
    "the other way round": lambda: Conv1D(96, 128),
}


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(400, 128), (4, 100, 128)])
def test_outputs_and_gradients_are_those_of_float64(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(shape)
    with FastProducts():
        fast = gradients(layer, x)
    for seen, exact in zip(fast, gradients(layer.double(), x.double()), strict=True):
        assert seen.dtype == torch.float32
        torch.testing.assert_close(seen.double(), exact, rtol=1e-4, atol=2e-3)


def test_large_products_take_the_fast_way_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = products._linear
    monkeypatch.setattr(products, "_linear", lambda x, *more: calls.append(x.numel()) or real(x, *more))
    with FastProducts():
        F.linear(torch.ones(400, 128), torch.ones(96, 128))
        F.linear(torch.ones(4, 128), torch.ones(96, 128))
        F.linear(torch.ones(400, 128, dtype=torch.float64), torch.ones(96, 128, dtype=torch.float64))
        with torch.autocast("cpu", torch.bfloat16):
            F.linear(torch.ones(400, 128), torch.ones(96, 128))
    assert calls == [400 * 128]


def test_a_frozen_weight_gets_no_gradient_and_one_below_nothing_trains_costs_none() -> None:
    layer, x = nn.Linear(128, 96), torch.randn(400, 128)
    layer.weight.requires_grad_(False)
    with FastProducts():
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad, torch.full((96,), 400.0))
    with FastProducts():
        assert not layer.requires_grad_(False)(x).requires_grad


def test_it_goes_together_with_other_modes_and_tied_weights() -> None:
    class Counts(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Counts.seen += func is F.linear
            return func(*args, **(kwargs or {}))

    weight = nn.Parameter(torch.randn(128, 128) / 12)
    x = torch.randn(300, 128)
    with Counts(), FastProducts():
        F.linear(F.linear(x, weight), weight).square().sum().backward()
    fast = weight.grad
    weight.grad = None
    F.linear(F.linear(x, weight), weight).square().sum().backward()
    assert fast is not None
    assert weight.grad is not None
    torch.testing.assert_close(fast, weight.grad, rtol=1e-3, atol=1e-2)
