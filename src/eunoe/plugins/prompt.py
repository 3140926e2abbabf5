"""A soft prompt: vectors before the text that a frozen model reads as if they were words.

Paper: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", https://arxiv.org/abs/2104.08691. The model
reads ``[P; E(x)]``; P: (n, width of the word vectors), E(x): (tokens, the same width). The n states of the prompt are removed from
the base model's output, so that whatever stands above it sees the text's states alone, at the text's own places.

The prompt comes first in every family, also before an encoder's classification token (ContinualLM has one path that does so and one
that puts it behind): behind the text, its positions would depend on how far a batch is padded. The text's positions begin at n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.models.anatomy import anatomy


class Prompt(nn.Module):
    """``vectors`` (n, width of the word vectors), read before the text while it is ``on``. ``attach_prompt`` hooks it to a base model."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.on = True
        self.ahead = 0
        """States of the running pass that are the prompt's."""

    def put_before(self, base: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """A forward pre-hook of the base model: word vectors with the prompt before them, in place of ids.

        In generation with a cache the prompt is in the cache after the first pass; then the mask and the positions alone count it.
        """
        self.ahead = 0
        if not self.on:
            return None
        n, cache = len(self.vectors), given.get("past_key_values")
        given = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | given
        ids, words = given.pop("input_ids", None), given.get("inputs_embeds")
        words = base.get_input_embeddings()(ids) if words is None else words
        if cache is None or cache.get_seq_length() == 0:
            self.ahead = n
            words = torch.cat([self.vectors.to(words.dtype).expand(len(words), -1, -1), words], 1)
        given["inputs_embeds"] = words
        if given.get("attention_mask") is not None:
            given["attention_mask"] = F.pad(given["attention_mask"], (n, 0), value=1)
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = F.pad(given["token_type_ids"], (self.ahead, 0))
        if given.get("position_ids") is not None:
            places = given["position_ids"] + n
            first = torch.arange(self.ahead, device=places.device).expand(len(places), -1)
            given["position_ids"] = torch.cat([first, places], 1)
        return (), given

    def strip(self, _base: nn.Module, _args: Any, output: Any) -> Any:
        """A forward hook of the base model: the states of the text alone, those of all layers too where they were asked for."""
        if self.ahead:
            output.last_hidden_state = output.last_hidden_state[:, self.ahead :]
            if output.hidden_states is not None:
                output.hidden_states = tuple(states[:, self.ahead :] for states in output.hidden_states)
        return output


def attach_prompt(model: nn.Module, n: int) -> Prompt:
    """Put a prompt of ``n`` vectors before whatever ``model`` reads, switched on: those of the first ``n`` pieces of its vocabulary.

    The vocabulary is begun again where it has fewer than ``n``.
    """
    parts = anatomy(model)
    words: Any = parts.base.get_input_embeddings()
    with torch.no_grad():
        vectors = words(torch.arange(n, device=words.weight.device) % len(words.weight))
    made = Prompt(vectors.detach().clone().to(torch.promote_types(vectors.dtype, torch.float32)))
    parts.base.add_module("prompt", made)
    parts.base.register_forward_pre_hook(made.put_before, with_kwargs=True)
    parts.base.register_forward_hook(made.strip)
    return made


__all__ = ["Prompt", "attach_prompt"]
