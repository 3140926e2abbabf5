"""A model's weights by depth: embeddings, each layer, head. What layer-wise learning rates and gradual unfreezing go by.

ULMFiT (ACL 2018, https://arxiv.org/abs/1801.06146) has them for its LSTM; ``anatomy`` knows where the layers of any family are.
Two choices are ours. A norm behind the last layer belongs to that layer. A pooler belongs to the head: checkpoints of masked
LMs hold none, so it is then as new as the head.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from eunoe.models.anatomy import FAMILIES, anatomy
from eunoe.optim.names import plain_name


class DepthGroup(NamedTuple):
    """Weights of one depth."""

    name: str
    """``embeddings``, a layer's name as ``anatomy`` has it, or ``head``."""
    weights: tuple[str, ...]
    """Names as ``model.named_parameters()`` has them; a tied weight stands once."""


def depth_groups(model: nn.Module, *, tied: Literal["embeddings", "head"] = "embeddings") -> tuple[DepthGroup, ...]:
    """All weights of ``model`` by depth, the lowest first: embeddings, the layers in order, the head. Empty groups are left out.

    ``tied``: where an embedding table belongs that is also the LM head's: ``head`` is what the ULMFiT scripts do when they
    fine-tune a language model. Weights that several layers share (ALBERT) are one layer's. Works with any head, with
    ``DataParallel`` and ``torch.compile`` around the model. Raises ``EunoeError`` as ``anatomy`` does.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    >>> [group.name for group in depth_groups(BertForSequenceClassification(tiny))]
    ['embeddings', 'encoder.layer.0', 'encoder.layer.1', 'head']
    """
    parts = anatomy(model)
    above = (
        FAMILIES[parts.model_type].above if parts.model_type in FAMILIES else ()
    )  # recurrent ones end with their last layer
    layers = [layer.name for layer in parts.layers]
    names = ["embeddings", *layers, "head"]
    inside: dict[nn.Parameter, str] = {}
    for name, weight in parts.base.named_parameters():
        plain = plain_name(name)
        if plain.split(".")[0] == "pooler":
            inside[weight] = "head"
        elif any(plain.startswith(f"{part}.") for part in above):
            inside[weight] = layers[-1]
        else:
            inside[weight] = next((layer for layer in layers if plain.startswith(f"{layer}.")), "embeddings")
    if tied == "head":
        prefix = next(name for name, module in model.named_modules() if module is parts.base)
        for name, weight in model.named_parameters(remove_duplicate=False):
            if weight in inside and prefix and not name.startswith(f"{prefix}."):
                inside[weight] = "head"
    grouped: dict[str, list[str]] = {name: [] for name in names}
    for name, weight in model.named_parameters():
        grouped[inside.get(weight, "head")].append(name)
    return tuple(DepthGroup(name, tuple(weights)) for name, weights in grouped.items() if weights)


__all__ = ["DepthGroup", "depth_groups"]
