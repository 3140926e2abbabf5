"""ELMo's mix of layers, by hand."""

from __future__ import annotations

import pytest
import torch

from eunoe.models.mix import ScalarMix, mix_layers, normalise


def test_the_mix_is_gamma_times_the_softmax_weighted_sum() -> None:
    layers = torch.tensor([[[[1.0, 0.0], [3.0, 4.0]]]])
    weights = torch.tensor([0.0, 3.0]).log1p()  # softmax of (0, log 4): 1/5, 4/5
    assert mix_layers(layers, weights, torch.tensor(10.0)).flatten().tolist() == pytest.approx([26.0, 32.0])


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
