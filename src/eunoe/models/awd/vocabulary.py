"""A language model moved to another vocabulary: rows of known words are copied, the others get the mean row (ULMFiT)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from eunoe.errors import EunoeError
from eunoe.models.awd.model import AwdLstmForCausalLM


def remapped(rows: Tensor, old: Mapping[str, int], new: Mapping[str, int], size: int) -> tuple[Tensor, int]:
    """``rows`` (old vocabulary, ...) by token for a vocabulary of ``size`` rows, and how many of its tokens were known.

    >>> remapped(torch.tensor([[1.0], [3.0]]), {"a": 0, "b": 1}, {"b": 0, "c": 1}, 2)
    (tensor([[3.],
            [2.]]), 1)
    """
    if max(old.values(), default=-1) >= len(rows):
        raise EunoeError(f"the vocabulary has tokens up to row {max(old.values())}, but the weights have {len(rows)} rows. They are of "
                         "different models: give the vocabulary that the weights were trained with.")  # fmt: skip
    out = rows.mean(0, keepdim=True).expand(size, *rows.shape[1:]).clone()
    known = [(row, old[token]) for token, row in new.items() if token in old]
    if known:
        to, source = map(list, zip(*known, strict=True))
        out[torch.tensor(to)] = rows[torch.tensor(source)]
    return out, len(known)


@torch.no_grad()
def remap(model: AwdLstmForCausalLM, old: Mapping[str, int], new: Mapping[str, int]) -> int:
    """Give ``model`` the vocabulary ``new`` (token -> row) instead of ``old``, in place; returns how many tokens were known.

    Raises ``EunoeError`` where ``old`` is not the model's vocabulary or none of the new words is known.
    """
    size = max(new.values()) + 1
    rows, known = remapped(model.transformer.embeddings.weight.detach(), old, new, size)
    if not known:
        raise EunoeError("no token of the new vocabulary is known to the model: nothing of its embedding would be kept. Are both "
                         "vocabularies of words, after the same rules?")  # fmt: skip
    bias = None
    if model.lm_head.bias is not None:
        bias, _ = remapped(model.lm_head.bias.detach(), old, new, size)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.transformer.embeddings.weight.copy_(rows)
    if bias is not None:
        model.lm_head.bias.copy_(bias)
    return known


__all__ = ["remap", "remapped"]
