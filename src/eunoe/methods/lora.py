"""LoRA: beside each frozen linear layer two small matrices learn the change of its weight, dW = (alpha / r) B A.

Paper: Hu et al. 2021 (https://arxiv.org/abs/2106.09685). A (r, in) starts at random and B (out, r) at zero, so that the first step
begins with the pretrained model. The matrices are the PEFT library's. LoRA learns less than training all weights and forgets
less (Biderman et al. 2024, https://arxiv.org/abs/2405.09673); it promises nothing about earlier domains. What is done when a
domain ends, ``merge: never`` (one LoRA for all) or ``merge: each`` (merge, and start a fresh one), is said in methods/peft.py.

Deliberate differences: the paper adapts the query and value matrices; here every linear layer of the model's layers has a LoRA
by default, which later work found to be better at equal size (``targets: attention`` is nearer to the paper's). ``alpha`` and
``r`` are those of its RoBERTa experiments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from eunoe.methods.peft import Peft, make_config


@dataclass(kw_only=True)
class LoraSettings:
    """Size and place of the matrices, and what becomes of them when a domain ends."""

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the change of each weight."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The change is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of what enters A."""
    targets: Literal["layers", "attention"] = "layers"
    """Which linear layers get one: all of the model's ``layers``, or those of their ``attention`` alone."""
    merge: Literal["never", "each"] = "never"
    """``never``: one LoRA learns all domains; ``each``: merge it into the weights after each domain and start a fresh one."""


class Lora(Peft):
    """Learn each domain with LoRA; see the module for what it computes and methods/peft.py for what it writes.

    >>> Lora(model, LoraSettings(r=16, merge="each"), ["law", "sport"])  # doctest: +SKIP
    """

    def config(self) -> Any:
        own: LoraSettings = self.settings
        return make_config("LoraConfig", {"r": own.r, "lora_alpha": own.alpha, "lora_dropout": own.dropout}, "lora")


__all__ = ["Lora", "LoraSettings"]
