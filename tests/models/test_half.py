"""What a bfloat16 step on a CPU does by itself: frozen weights rounded once, LayerNorms, dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.models.dropout import keep
from eunoe.models.half import HalfProducts
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.task_mask import Active


@contextmanager
def half(products: HalfProducts) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16), products:
        yield


@pytest.mark.parametrize("change", ["in place", "by a new tensor", "by its data"])
def test_a_frozen_weight_is_rounded_once_and_again_after_it_changed(change: str) -> None:
    layer, x = nn.Linear(16, 8).requires_grad_(False), torch.randn(4, 16)
    products = HalfProducts()

    def out() -> Tensor:
        with half(products):
            result: Tensor = layer(x)
        return result

    def alone() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result: Tensor = layer(x)
        return result

    assert torch.equal(out(), alone())
    copies = [kept[-1].data_ptr() for kept in products.copies.values()]
    assert torch.equal(out(), alone())
    assert [kept[-1].data_ptr() for kept in products.copies.values()] == copies  # not made anew
    before = out()
    with torch.no_grad():
        if change == "in place":
            layer.weight.mul_(2)
        elif change == "by a new tensor":
            layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)
        else:
            layer.weight.data = layer.weight.data * 2
    assert torch.equal(out(), alone())
    assert not torch.equal(out(), before)


def test_a_weight_that_trains_gets_its_gradient_and_a_frozen_one_lets_it_through() -> None:
    frozen, trained, x = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8), torch.randn(3, 8)
    with half(HalfProducts()):
        frozen(trained(x)).float().sum().backward()
    assert trained.weight.grad is not None
    assert trained.weight.grad.dtype == torch.float32
    assert trained.weight.grad.abs().sum() > 0
    assert frozen.weight.grad is None


def test_a_layer_norm_leaves_bf16_within_the_block_and_float32_outside_it() -> None:
    norm, x = nn.LayerNorm(8), torch.randn(3, 8)
    with half(HalfProducts()):
        assert norm(x).dtype == torch.bfloat16
        assert torch.equal(norm(x), F.layer_norm(x, (8,)).bfloat16())
    with HalfProducts():  # no autocast: a float32 training
        assert norm(x).dtype == torch.float32


def test_dropout_of_bf16_falls_where_that_of_float32_does() -> None:
    masks = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(5)
        masks.append(keep((33, 41), 0.1, dtype))
    assert masks[1].dtype == torch.bfloat16
    assert torch.equal(masks[0].bfloat16(), masks[1])
    assert 0.05 < (masks[1] == 0).float().mean() < 0.15


def test_plug_ins_compute_in_autocasts_dtype_and_get_float32_gradients() -> None:
    active = Active(("d",))
    adapter = Adapter(8, 4, active)
    active.domain = active.running = 0
    active.s = 1.0
    x = torch.randn(2, 3, 8).bfloat16()
    with half(HalfProducts()):
        out = adapter(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.parameters())
    assert adapter(x).dtype == torch.bfloat16  # outside autocast the weights' own float32, and back
    torch.testing.assert_close(out.float(), adapter(x.float()), rtol=0.05, atol=0.05)
