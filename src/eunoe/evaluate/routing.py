"""When nobody says which domain a text is of: take the plug-in whose LM loss on the text is least.

CPT (EMNLP 2022, https://arxiv.org/abs/2210.05549) is told the domain. Its own training objective can tell instead, as in
DEMix layers (Gururangan et al. 2022, https://arxiv.org/abs/2108.05036), which weigh their experts by how likely each makes
the text. Here: one forward pass a domain; the least mean loss wins (``route``), or the ``top`` best are mixed by softmax of
minus the mean losses a token (``mixture``). DEMix sums over the tokens instead, which on more than a few tokens is as
good as a hard choice.

What is mixed is each token's probability, p = sum_d w_d p_d: a mixture of the domains' predictions, which is a
distribution again whatever head the model has (mixed hidden states are not what any head was trained on), and whose
loss follows from the domains' losses without another pass (``mixed_losses``).

Shapes: n target tokens of a batch, R rows, D domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.data.collate import Batch, collate_lm
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError
from eunoe.models.heads import target_logits
from eunoe.models.load import LanguageModel
from eunoe.models.products import scoring
from eunoe.plugins.inject import set_domain

LogProbs: TypeAlias = Callable[[Batch, str | None], Tensor]
MASK_SEED = 20210805
"""Seed of the masks that a masked LM is read under: not those of the scores."""
MASKS = 4
"""How many masks a block of a masked LM is read under; the same for all domains. A causal LM is scored on every token."""


# -- pure ---------------------------------------------------------------------------------------------------------
def row_means(losses: Tensor, rows: Tensor, count: int) -> Tensor:
    """Mean of ``losses`` (n, D) over the tokens of each row, (count, D) in float64; ``rows`` (n,) says whose a token is.

    A row without tokens has 0 for every domain.
    """
    sums = torch.zeros(count, losses.shape[1], dtype=torch.float64).index_add_(0, rows, losses.double())
    return sums / torch.bincount(rows, minlength=count).clamp(min=1)[:, None]


def route(losses: Tensor) -> Tensor:
    """The domain (R,) of least loss for rows of mean losses (R, D); of equal ones the first.

    >>> route(torch.tensor([[2.0, 1.5, 3.0]])).tolist()
    [1]
    """
    return losses.argmin(1)


def mixture(losses: Tensor, top: int = 2) -> Tensor:
    """Weights (R, D): softmax of minus the losses over the ``top`` least of each row, 0 elsewhere.

    >>> mixture(torch.tensor([[2.0, 2.0, 9.0]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    if top < 1:
        raise EunoeError(f"top is {top}; mix at least 1 plug-in.")
    least = losses.argsort(dim=1, stable=True)[:, :top]
    weights = torch.zeros_like(losses)
    return weights.scatter_(1, least, torch.softmax(-losses.gather(1, least), 1))


def mixed_losses(losses: Tensor, weights: Tensor) -> Tensor:
    """Loss (n,) of each token where the domains' probabilities are mixed: -log sum_d w_d exp(-loss_d).

    ``losses`` (n, D) are each domain's, ``weights`` (n, D) each token's.
    """
    return -torch.logsumexp(weights.log() - losses, 1)


# -- with a model -------------------------------------------------------------------------------------------------
@scoring()
def token_losses(
    model: nn.Module, batch: Batch, domains: Sequence[str | None], log_probs: LogProbs | None = None
) -> Tensor:
    """Cross-entropy (n, D), nats, of each target token of a batch read as each domain, without dropout.

    A domain None is the base model. ``log_probs``: (batch, domain) -> log-probabilities (n, vocabulary), as a method reads
    text (``Method.log_probs``); default: under the plug-ins of ``model``, of which the last domain's stays set.
    """
    model.eval()
    read = log_probs or partial(_plugged, model)
    return torch.stack(
        [F.nll_loss(read(batch, domain), batch["labels"], reduction="none") for domain in domains], 1
    ).cpu()


def _plugged(model: nn.Module, batch: Batch, domain: str | None) -> Tensor:
    set_domain(model, domain)
    return torch.log_softmax(target_logits(model, batch).float(), -1)


def lm_losses(model: nn.Module, batch: Batch, domains: Sequence[str | None]) -> Tensor:
    """Mean LM loss (R, D), nats a token, of each row of a batch under each domain's plug-in.

    ``batch`` is one of ``data.collate``: a masked LM is scored where it was masked, a causal one on every next token.

    Example: ``set_domain(model, domains[route(lm_losses(model, batch, domains))[0]])`` for a batch of one row.
    """
    return row_means(token_losses(model, batch, domains), rows_of(batch), len(batch["input_ids"]))


@scoring()
def mixed_log_probs(model: nn.Module, batch: Batch, weights: Tensor, domains: Sequence[str | None]) -> Tensor:
    """Log-probabilities (n, vocabulary) at the target tokens, mixed by ``weights`` (R, D); they serve as logits.

    Domains that no row gives weight are not computed.
    """
    model.eval()
    rows, total = rows_of(batch), None
    for i, domain in enumerate(domains):
        if not weights[:, i].any():
            continue
        one = _plugged(model, batch, domain)
        one = one + weights[rows, i].to(one).log()[:, None]
        total = one if total is None else torch.logaddexp(total, one)
    if total is None:
        raise EunoeError("every weight is 0: nothing to mix.")
    return total


def rows_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Which row (n,) each target token of a batch belongs to."""
    return (batch["positions"] // batch["input_ids"].shape[1]).cpu()


def second_half(batch: Mapping[str, Tensor]) -> Tensor:
    """Whether (n,) each target token stands in the second half of its row.

    What was read first can choose the plug-in for what follows: the choice is then not made on what is scored.
    """
    length = batch["input_ids"].shape[1]
    return ((batch["positions"] % length) >= length // 2).cpu()


def routing_batches(lm: LanguageModel, blocks: Blocks, batch: int, mask_rate: float) -> list[tuple[Batch, Tensor]]:
    """Held-out blocks as batches of about ``batch`` rows, each with the block (n,) that every target token belongs to.

    A masked LM reads each block under ``MASKS`` masks, drawn once and for all.
    """
    masks = MASKS if lm.objective == "masked" else 1
    size, batches = max(1, batch // masks), []
    for start in range(0, len(blocks), size):
        chosen = range(start, min(start + size, len(blocks)))
        rows = [(blocks.ids[i], (MASK_SEED, i, k)) for i in chosen for k in range(masks)]
        made = collate_lm(rows, blocks.special, lm.objective, lm.mask_id, len(lm.tokenizer), mask_rate)
        batches.append((made, start + rows_of(made) // masks))
    return batches


__all__ = [
    "lm_losses",
    "mixed_log_probs",
    "mixed_losses",
    "mixture",
    "route",
    "routing_batches",
    "row_means",
    "rows_of",
    "second_half",
    "token_losses",
]
