"""Sampled softmax: the draw and its odds, the loss by hand, and that it stands for the whole vocabulary's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from eunoe.models.sampled import draw_words, log_uniform, sampled_loss, vocabulary_loss


def test_the_odds_are_log_uniform_and_sum_to_one() -> None:
    odds = log_uniform(torch.arange(9), 9)
    assert odds.sum().item() == pytest.approx(1)
    assert odds[0].item() == pytest.approx(math.log(2) / math.log(10))


def test_words_are_drawn_without_repetition_as_often_as_their_odds_say() -> None:
    torch.manual_seed(0)
    counts, expected = torch.zeros(50), torch.zeros(50, dtype=torch.float64)
    for _ in range(2000):
        drawn, tries = draw_words(50, 10)
        assert len(set(drawn.tolist())) == 10 <= tries
        counts[drawn] += 1
        expected += -torch.expm1(tries * torch.log1p(-log_uniform(torch.arange(50), 50)))
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_the_loss_by_hand() -> None:
    """One row, label 0 and two drawn words, of which one is the label and does not count against it."""
    hidden, weight, bias = torch.tensor([[2.0]]), torch.tensor([[1.0], [0.5], [0.25]]), torch.tensor([0.1, 0.2, 0.3])
    drawn, tries = torch.tensor([0, 2]), 3
    chance = [math.log((k + 2) / (k + 1)) / math.log(4) for k in range(3)]
    corrected = [
        2 * float(w) + float(b) - math.log(1 - (1 - p) ** tries) for w, b, p in zip(weight, bias, chance, strict=True)
    ]
    expected = math.log(math.exp(corrected[0]) + math.exp(corrected[2])) - corrected[0]
    actual = sampled_loss(hidden, torch.tensor([0]), weight, bias, drawn, tries)
    assert actual.item() == pytest.approx(expected, abs=1e-6)


def test_with_as_many_samples_as_words_it_is_the_whole_softmax() -> None:
    torch.manual_seed(0)
    hidden, weight, bias, labels = torch.randn(6, 4), torch.randn(12, 4), torch.randn(12), torch.arange(6)
    whole = F.cross_entropy(hidden @ weight.T + bias, labels, reduction="sum")
    assert torch.equal(vocabulary_loss(hidden, labels, weight, bias, 12), whole)
    assert vocabulary_loss(hidden, labels, weight, bias, 11).item() != whole.item()


def test_its_mean_gradient_points_where_the_whole_softmax_points() -> None:
    torch.manual_seed(1)
    weight, bias, labels = torch.randn(60, 8) / 3, torch.zeros(60), torch.randint(60, (16,))
    hidden = torch.randn(16, 8, requires_grad=True)
    (whole,) = torch.autograd.grad(F.cross_entropy(hidden @ weight.T + bias, labels, reduction="sum"), hidden)
    mean = torch.zeros_like(hidden)
    for _ in range(300):
        mean += torch.autograd.grad(vocabulary_loss(hidden, labels, weight, bias, 20), hidden)[0] / 300
    assert F.cosine_similarity(mean.flatten(), whole.flatten(), 0) > 0.98


def test_more_words_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="cannot draw 4 different words of 3"):
        draw_words(3, 4)
