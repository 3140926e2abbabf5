"""Cheap dropout: the right share falls, the mean stays, the seed decides, gradients follow, and only training passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eunoe.models import dropout
from eunoe.models.dropout import CheapDropout, keep
from tests.tiny import size, tiny_bert


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("part", range(4))
def test_each_of_the_four_parts_of_a_draw_falls_at_the_rate_and_keeps_the_mean(rate: float, part: int) -> None:
    torch.manual_seed(0)
    kept = keep((400_000,), rate, torch.float64)[part::4]
    assert (kept == 0).double().mean().item() == pytest.approx(rate, abs=5e-3)
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert kept.unique().tolist() == [0, 65536 / (65536 - round(rate * 65536))]


def test_neighbours_fall_independently() -> None:
    torch.manual_seed(0)
    fell = (keep((400_000,), 0.5, torch.float32) == 0).double()
    for distance in (1, 2, 3, 4):
        both = (fell[distance:] * fell[:-distance]).mean().item()
        assert both == pytest.approx(0.25, abs=5e-3)


def test_the_seed_alone_decides() -> None:
    def drawn() -> torch.Tensor:
        torch.manual_seed(7)
        return keep((5, 7), 0.3, torch.float32)

    first = drawn()
    assert torch.equal(first, drawn())
    assert not torch.equal(first, keep((5, 7), 0.3, torch.float32))


def test_gradients_pass_where_values_pass() -> None:
    x = torch.ones(1000, requires_grad=True)
    with CheapDropout():
        y = nn.Dropout(0.25)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert 0 < (y == 0).sum() < 1000


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e-9])
def test_rates_that_draw_nothing_are_torchs_own(rate: float) -> None:
    x = torch.randn(8)
    with CheapDropout():
        assert torch.equal(F.dropout(x, rate), torch.zeros(8) if rate == 1 else x)


def test_evaluation_is_torchs_own_to_the_bit() -> None:
    torch.manual_seed(0)
    model = tiny_bert().eval()
    ids = torch.randint(5, size(), (2, 6))
    plain = model(input_ids=ids).logits
    with CheapDropout():
        assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_where_nothing_falls_is_torchs(causal: bool, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if causal and masked:
        pytest.skip("torch takes one of the two")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = (torch.rand(2, 1, 5, 5) < 0.7) | torch.eye(5, dtype=torch.bool) if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    wanted = torch.autograd.grad(expected.sin().sum(), (q, k, v))
    monkeypatch.setattr(dropout, "keep", lambda shape, rate, dtype: torch.ones(shape, dtype=dtype))
    with CheapDropout():
        actual = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1, is_causal=causal)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual.sin().sum(), (q, k, v)), wanted)


def test_attention_drops_shares_and_not_whole_heads() -> None:
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 2000, 4), torch.zeros(1, 1, 10, 4), torch.eye(10)[None, None]
    with CheapDropout():
        shares = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
    assert (shares == 0).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert shares.sum(-1).mean().item() == pytest.approx(1, abs=0.01)


def test_a_row_that_may_see_nothing_is_no_nan() -> None:
    q, k, v = (torch.randn(1, 1, 3, 4) for _ in range(3))
    with CheapDropout():
        out = F.scaled_dot_product_attention(q, k, v, torch.zeros(3, 3, dtype=torch.bool), dropout_p=0.1)
    assert out.isfinite().all()


def test_a_model_in_training_uses_it() -> None:
    model = tiny_bert(hidden_dropout_prob=0.5).train()
    ids = torch.randint(5, size(), (2, 6))
    torch.manual_seed(3)
    plain = model(input_ids=ids).logits
    torch.manual_seed(3)
    with CheapDropout():
        assert not torch.equal(model(input_ids=ids).logits, plain)
