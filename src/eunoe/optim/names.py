"""A weight's plain name: the one it has in the bare pretrained model, whatever stands around that model now.

DDP, FSDP, ``torch.compile``, checkpointed activations, PEFT and this project's own ``LowRank`` each put parts into the
names of weights. What compares two models by name (distances, anchors, patches) compares plain names, so that it does
not see a wrapper as a model without weights.
"""

from __future__ import annotations

import re

from torch import nn

from eunoe.errors import EunoeError

_ANYWHERE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}
"""torch.compile, FSDP, checkpointed activations; the layer that PEFT put an adapter around."""
_BEFORE = (("module",), ("base_model", "model"))
"""DDP and DataParallel; a PEFT model. Only before a name: a part of a model may be called so too."""
_KEPT = re.compile(r"\.modules_to_save\.[^.]+\.")
"""PEFT's copy of a module that trains as a whole, which is the one that computes."""
_LOW_RANK = re.compile(r"\.base\.(weight|bias)$")
"""The linear layer inside a ``LowRank``."""

_CONSTANT = re.compile(r"(^|\.)(masked_bias|position_ids|inv_freq)$")
"""Buffers that older versions of transformers saved with the weights, and that it drops when it loads a checkpoint."""


def is_constant(name: str) -> bool:
    """Does a checkpoint hold under ``name`` what its configuration says anyway, and no knowledge?

    >>> [is_constant(name) for name in ("bert.embeddings.position_ids", "h.0.attn.masked_bias", "bert.embeddings.word_embeddings.weight")]
    [True, True, False]
    """
    return _CONSTANT.search(name) is not None


def plain_name(name: str) -> str:
    """``name`` without the parts that wrappers put into it, in whatever order they stand.

    >>> plain_name("_orig_mod.module.bert.pooler.dense.bias")
    'bert.pooler.dense.bias'
    >>> plain_name("base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight")
    'bert.encoder.layer.0.attention.self.query.weight'
    """
    parts = [part for part in name.split(".") if part not in _ANYWHERE]
    stripped = True
    while stripped:
        stripped = False
        for before in _BEFORE:
            if len(parts) > len(before) and tuple(parts[: len(before)]) == before:
                parts, stripped = parts[len(before) :], True
    return _LOW_RANK.sub(r".\1", _KEPT.sub(".", ".".join(parts)))


def plain_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of ``model`` by plain name; a weight that is tied stands under its first name.

    Raises ``EunoeError`` where two weights have the same plain name.
    """
    weights: dict[str, nn.Parameter] = {}
    for name, weight in model.named_parameters():
        plain = plain_name(name)
        if plain in weights:
            raise EunoeError(
                f"two weights of {type(model).__name__} are both {plain} once their wrappers are taken off ({name} is one). "
                "Unwrap the model first."
            )
        weights[plain] = weight
    return weights


__all__ = ["is_constant", "plain_name", "plain_names"]
