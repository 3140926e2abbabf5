"""ELMo's mix of layers, by hand."""

from __future__ import annotations

import pytest
import torch

from eunoe.models.mix import ScalarMix, mix_layers, normalise


def test_the_mix_is_gamma_times_the_softmax_weighted_sum() -> None:
    layers = torch.tensor([[[[1.0, 0.0], [3.0, 4.0]]]])
    weights = torch.tensor([0.0, 3.0]).log1p()  # softmax of (0, log 4): 1/5, 4/5
    assert mix_layers(layers, weights, torch.tensor(10.0)).flatten().tolist() == pytest.approx([26.0, 32.0])


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16])
def test_gradients_reach_weights_gamma_and_layers(kind: torch.dtype) -> None:
    """Against autograd through the formula, in float64; float16 layers are mixed in float32."""
    torch.manual_seed(0)
    layers, factor = torch.randn(3, 4, 5, 6).to(kind).requires_grad_(), torch.randn(3, 4, 6)
    weights, gamma = torch.randn(5, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    out = mix_layers(layers, weights, gamma)
    assert out.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    (out * factor).sum().backward()

    exact = [x.detach().double().requires_grad_() for x in (layers, weights, gamma)]
    expected = exact[2] * (torch.softmax(exact[1], 0)[:, None] * exact[0]).sum(-2)
    (expected * factor).sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((layers, weights, gamma), exact, strict=True):
        tolerance = 2e-3 if ours.dtype == torch.float16 else 1e-5
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def test_a_row_is_normalised_over_its_real_positions_and_features_together() -> None:
    layers = torch.tensor(
        [[[[1.0, 3.0]], [[5.0, 7.0]], [[100.0, 100.0]]]]
    )  # mean 4, variance 5, one position of padding
    out = normalise(layers, torch.tensor([[True, True, False]]))
    assert out[0, :2, 0].flatten().tolist() == pytest.approx([x / 5**0.5 for x in (-3, -1, 1, 3)])
    assert not out[0, 2].any()


def test_layer_norm_makes_the_scale_of_a_layer_unimportant() -> None:
    torch.manual_seed(0)
    layers, mask = torch.randn(2, 3, 2, 4), torch.ones(2, 3, dtype=torch.bool)
    scaled = layers * torch.tensor([1.0, 50.0])[:, None]
    assert torch.allclose(ScalarMix(2, True)(layers, mask), ScalarMix(2, True)(scaled, mask), atol=1e-5)
    assert not torch.allclose(ScalarMix(2)(layers, mask), ScalarMix(2)(scaled, mask))


def test_the_pull_is_the_squared_length_of_the_weights() -> None:
    mix = ScalarMix(2)
    assert mix.pull().item() == 0.0
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([3.0, -4.0]))
    assert mix.pull().item() == 25.0
