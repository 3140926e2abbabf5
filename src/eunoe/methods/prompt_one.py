"""Prompt-ONE: of each domain a soft prompt of its own, before the text that one frozen model reads.

Paper of the prompts: Lester et al. 2021, https://arxiv.org/abs/2104.08691 (``plugins/prompt.py``); a baseline of Ke et al. 2022 (CPT,
https://arxiv.org/abs/2210.05549), with ContinualLM's 100 vectors, which start as the first 100 pieces of the vocabulary.

Minimise L_lm(theta_0; [P_t; x], x in D_t) over P_t (n, width of the word vectors) alone; positions of the prompt are no targets. In an
end task the prompt of its domain and the classifier train (ContinualLM); ``backbone: trained`` trains theta_0 too. Text of no learnt
domain is read without a prompt. A prompt takes n of the model's positions, and its share of each step's arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from eunoe.methods.own import Own, Plug
from eunoe.plugins.prompt import attach_prompt
from eunoe.recipe import Count


@dataclass(kw_only=True)
class PromptSettings:
    """The defaults are ContinualLM's."""

    length: Count = 100
    """Vectors before each text; so many of the model's positions are theirs."""
    backbone: Literal["frozen", "trained"] = "frozen"
    """The pretrained weights in an end task: frozen (as released), or trained with the prompt."""


class PromptOne(Own):
    """A soft prompt per domain on a frozen model."""

    extra_tokens = 100
    settings: PromptSettings

    def __init__(self, model: nn.Module, settings: PromptSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.extra_tokens = settings.length

    def attach(self) -> Sequence[Plug]:
        return [attach_prompt(self.model, self.settings.length)]


__all__ = ["PromptOne", "PromptSettings"]
