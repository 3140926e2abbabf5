"""The continuous cache at evaluation: words that stood a short while ago, in a state like the present one, become more likely.

Grave, Joulin and Usunier 2017, arXiv 1612.04426, as Merity et al. use it on an AWD-LSTM (arXiv 1708.02182, section 5). Of the last
``window`` positions i, with their states h_i and the words w_(i+1) that followed::

    p(w) = (1 - share) p_model(w) + share sum_i [w_(i+1) = w] softmax_i(theta h_t . h_i)

Nothing is trained. The states are those without output dropout, which evaluation has none of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eunoe import stop


def mix(
    states: Tensor,
    targets: Tensor,
    chances: Tensor,
    keys: Tensor,
    words: Tensor,
    *,
    window: int,
    theta: float,
    share: float,
) -> Tensor:
    """The chance (T,) of each target under model and cache together.

    ``states`` (T, width) and ``chances`` (T,): of the positions and what the model gives their ``targets`` (T,). ``keys`` (K, width)
    and ``words`` (K,): positions before them, and what followed each. A position that has none before it keeps the model's chance.
    """
    all_keys, all_words = torch.cat([keys, states]), torch.cat([words, targets])
    before, steps = len(keys), len(states)
    at = torch.arange(before, before + steps, device=states.device)[:, None]
    places = torch.arange(before + steps, device=states.device)[None, :]
    seen = (places < at) & (places >= at - window)
    weights = (theta * states @ all_keys.t()).masked_fill(~seen, -torch.inf).softmax(1)
    cached = (weights.nan_to_num(0.0) * (all_words[None, :] == targets[:, None])).sum(1)
    return torch.where(seen.any(1), (1 - share) * chances + share * cached, chances)


@torch.no_grad()
def pointer_loss(model: Any, ids: Tensor, *, window: int, theta: float, share: float, piece: int = 200) -> float:
    """The mean loss (nats a word) of an ``AwdLstmForCausalLM`` on one text ``ids`` (n,), read from its start with the cache."""
    model.eval()
    device = next(model.parameters()).device
    total, state = 0.0, None
    keys = torch.empty(0, model.config.hidden_size, device=device)
    words = torch.empty(0, dtype=torch.int64, device=device)
    for start in range(0, len(ids) - 1, piece):
        stop.check("scoring with the cache")
        inputs = ids[start : min(start + piece, len(ids) - 1)].to(device)
        targets = ids[start + 1 : start + 1 + len(inputs)].to(device)
        read = model.transformer(input_ids=inputs[None], past_key_values=state, use_cache=True, return_dict=True)
        state, hidden = read.past_key_values, read.raw[0].float()
        chances = model.lm_head(read.last_hidden_state[0]).float().softmax(1).gather(1, targets[:, None])[:, 0]
        mixed = mix(hidden, targets, chances, keys, words, window=window, theta=theta, share=share)
        total -= float(mixed.double().log().sum())
        keys, words = torch.cat([keys, hidden])[-window:], torch.cat([words, targets])[-window:]
    return total / (len(ids) - 1)


__all__ = ["mix", "pointer_loss"]
