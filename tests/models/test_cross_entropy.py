"""The cross-entropy by rows: float64's value and gradient, torch's own where there is little to gain."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from eunoe.data.collate import NO_TARGET
from eunoe.models.cross_entropy import cross_entropy


@pytest.mark.parametrize("shape", [(1, 2), (7, 33), (5, 70_000), (300, 1_000)])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float32, 2e-5)])
def test_it_is_that_of_float64_but_for_the_gradients_rounding(
    shape: tuple[int, int], dtype: torch.dtype, rounding: float
) -> None:
    drawn = torch.Generator().manual_seed(1)
    logits = (8 * torch.randn(shape, generator=drawn)).to(dtype).requires_grad_()
    labels = torch.randint(shape[1], shape[:1], generator=drawn)
    labels[1::3] = NO_TARGET
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="sum", ignore_index=NO_TARGET)
    (expected * 0.3).backward()
    total = cross_entropy(logits, labels)
    (total * 0.3).backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=2e-6)
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rounding, atol=1e-6)
    assert torch.equal(logits.double(), exact)


def test_few_float32_logits_are_torchs_to_the_bit() -> None:
    logits, labels = torch.randn(50, 90, requires_grad=True), torch.randint(90, (50,))
    mine = torch.autograd.grad(cross_entropy(logits, labels), logits)[0]
    theirs = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)[0]
    assert torch.equal(mine, theirs)
    assert torch.equal(cross_entropy(logits, labels), F.cross_entropy(logits, labels, reduction="sum"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_may_go_backward_twice_and_says_nan_as_torch_does(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(9, 40_000).to(dtype).requires_grad_(), torch.randint(40_000, (9,))
    total = cross_entropy(logits, labels)
    first, second = (torch.autograd.grad(total, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with torch.no_grad():
        logits[3, 5] = float("nan")
    assert cross_entropy(logits, labels).isnan()
