"""Sampled softmax (Jean et al. 2015, https://arxiv.org/abs/1412.2007): the loss of a large vocabulary from a few drawn words.

As ELMo's training has it: words are drawn without repetition, frequent ones more often (log-uniform over a vocabulary sorted by
frequency), and each logit is corrected by how often its word was to be expected among the drawn ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from eunoe.models.cross_entropy import at_least_float32


def log_uniform(ids: Tensor, words: int) -> Tensor:
    """The probability of drawing each of ``ids``: (log(k + 2) - log(k + 1)) / log(words + 1)."""
    return torch.log1p(1 / (ids.double() + 1)) / math.log(words + 1)


def draw_words(words: int, count: int) -> tuple[Tensor, int]:
    """``count`` different words below ``words``, log-uniform, from torch's generator, and how many draws that took.

    Raises ``ValueError`` if ``count`` is above ``words``.
    """
    if count > words:
        raise ValueError(f"cannot draw {count} different words of {words}")
    drawn = torch.empty(0, dtype=torch.long)
    while True:
        more = torch.exp(torch.rand(2 * count, dtype=torch.float64) * math.log(words + 1)).long() - 1
        drawn = torch.cat([drawn, more.clamp(0, words - 1)])
        different, where = torch.unique(drawn, return_inverse=True)
        if len(different) >= count:
            first = torch.full((len(different),), len(drawn)).scatter_reduce(0, where, torch.arange(len(drawn)), "amin")
            tries = int(first.sort().values[count - 1]) + 1
            return different[first < tries], tries


def sampled_loss(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, drawn: Tensor, tries: int) -> Tensor:
    """The summed loss (nats) of ``hidden`` (n, width) at ``labels`` (n,), over its label and the ``drawn`` (s,) words.

    ``weight`` (words, width), ``bias`` (words,); ``tries``: draws that ``drawn`` took. A drawn word that is a row's label does not
    count against it.
    """

    def logits(ids: Tensor, product: Tensor) -> Tensor:
        expected = -torch.expm1(tries * torch.log1p(-log_uniform(ids, len(weight))))
        return at_least_float32(product) + bias[ids] - expected.log().to(weight.dtype)

    true = logits(labels, (hidden * weight[labels]).sum(-1))
    others = logits(drawn, hidden @ weight[drawn].T)
    others = others.masked_fill(drawn[None, :] == labels[:, None], -torch.inf)
    return (torch.logsumexp(torch.cat([true[:, None], others], 1), 1) - true).sum()


def vocabulary_loss(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, samples: int) -> Tensor:
    """``sampled_loss`` over ``samples`` drawn words, or over all where there are no more than that."""
    if samples >= len(weight):
        return F.cross_entropy(at_least_float32(F.linear(hidden, weight, bias)), labels, reduction="sum")
    drawn, tries = draw_words(len(weight), samples)
    return sampled_loss(hidden, labels, weight, bias, drawn.to(labels.device), tries)


__all__ = ["draw_words", "log_uniform", "sampled_loss", "vocabulary_loss"]
