"""One dropout rate for a whole model, wherever its family keeps them.

Families name their rates as they like (``hidden_dropout_prob``, ``attn_pdrop``, ``attention_dropout``, ``dropout_rate``), keep them in
nested configurations, in modules or in plain attributes, and some build no dropout at all where a rate is 0. So the rate
is set twice: in the configuration, from which the model is built, and in what was built.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eunoe.errors import EunoeError
from eunoe.models.anatomy import anatomy

NAMES = ("dropout", "pdrop")
"""What a rate's name has in it, in every family of transformers."""


def set_config_dropout(config: Any, rate: float) -> None:
    """Set every dropout rate of a configuration and of those inside it, before the model is built."""
    from transformers import PretrainedConfig  # two seconds to load, and a list of methods needs no model

    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            set_config_dropout(value, rate)
        elif _is_rate(key, value):
            setattr(config, key, rate)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout rate of a model that was built; raises ``EunoeError`` where its trunk has no dropout at all."""
    base = anatomy(model)
    inside, acts = set(base.base.modules()), False
    for module in model.modules():
        rates = [key for key, value in vars(module).items() if _is_rate(key, value)]
        if isinstance(module, nn.modules.dropout._DropoutNd):
            rates.append("p")
        for key in rates:
            setattr(module, key, rate)
        acts |= bool(rates) and module in inside
    if not acts:
        raise EunoeError(
            f"model.dropout is {rate}, but a model of type {base.model_type!r} has no dropout: it would change nothing. Leave it out."
        )


def _is_rate(key: str, value: object) -> bool:
    return any(name in key for name in NAMES) and isinstance(value, int | float) and not isinstance(value, bool)


__all__ = ["set_config_dropout", "set_dropout"]
