"""O-LoRA: a LoRA for each domain, in a subspace orthogonal to those of the domains before.

Paper: Wang et al. 2023, EMNLP Findings (https://arxiv.org/abs/2310.14152). The rows of A_i span the directions in which domain i
changed the inputs' reading. Domain t learns its own A_t, B_t while those of domains i < t stay frozen and active, under

    L = L_lm + lambda sum_{i<t} sum_layers sum_{j,k} (A_i A_t^T)[j,k]^2

with A (r, in), so A_i A_t^T is (r, r). After the last domain all of them act together: W + sum_i (alpha / r) B_i A_i. No domain needs to be
known at use, and no old text is kept. Earlier domains are disturbed little, but they are: nothing is promised.

Deliberate differences: the released code adds up absolute values in place of squares (``norm: absolute``); its second weight, on
the size of the new LoRA, is 0 there and left out here. lambda = 0.5, r = 8, alpha = 32 and dropout 0.1 are the release's. Every
linear layer of the model's layers is adapted (the release: query and value).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from eunoe.methods.base import Method, Stage, freeze, not_its_state
from eunoe.methods.peft import adapted, inject, linear_layers, make_config, save_adapter, with_targets


@dataclass(kw_only=True)
class OLoraSettings:
    """Size and place of the matrices, and how strongly their subspaces are held apart."""

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the change of each weight, for each domain."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The change is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of what enters A."""
    strength: Annotated[float, Field(ge=0)] = 0.5
    """lambda, the weight of the penalty."""
    norm: Literal["squares", "absolute"] = "squares"
    """Of the products between two subspaces: their ``squares`` are added up (paper), or their ``absolute`` values (release)."""
    targets: Literal["layers", "attention"] = "layers"
    """Which linear layers get one: all of the model's ``layers``, or those of their ``attention`` alone."""


def overlap(old: Tensor, new: Tensor, norm: str) -> Tensor:
    """What the row spaces of ``old`` (r', in) and ``new`` (r, in) share: squares or absolute values of A_old A_new^T, summed."""
    product = old @ new.T
    return product.square().sum() if norm == "squares" else product.abs().sum()


class OLora(Method):
    """Learn each domain with a LoRA of its own, orthogonal to the earlier ones, which stay frozen and active."""

    trains = "own"

    def __init__(self, model: nn.Module, settings: OLoraSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        config = make_config(
            "LoraConfig", {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}, "o-lora"
        )
        freeze(model)
        self.config = with_targets(config, linear_layers(model, settings.targets))
        self.names = list(domains)
        for i in range(len(self.names)):
            inject(self.config, model, _adapter(i))
        self.learnt: list[str] = []
        self._use(0)

    def clashes(self, other: Method) -> str | None:
        return None if other.forgets else "o-lora changes what earlier domains read"

    def _use(self, count: int, training: bool = False) -> None:
        """The first ``count`` adapters act; of them the last trains, where one is ``training``."""
        for layer in adapted(self.model):
            layer.set_adapter([_adapter(i) for i in range(count)], inference_mode=True)
            if training:
                for part in (layer.lora_A, layer.lora_B):
                    part[_adapter(count - 1)].requires_grad_(True)

    def begin(self, stage: Stage) -> None:
        self._use(len(self.learnt) + 1, training=True)

    def penalty(self) -> Tensor | None:
        """lambda times the overlap of the running domain's subspace with each earlier one's, in every layer."""
        now, own = len(self.learnt), self.settings
        if not now or not own.strength:
            return None
        pairs = [
            overlap(layer.lora_A[_adapter(i)].weight, layer.lora_A[_adapter(now)].weight, own.norm)
            for layer in adapted(self.model)
            for i in range(now)
        ]
        penalty: Tensor = own.strength * torch.stack(pairs).sum()
        return penalty

    def end(self, stage: Stage) -> None:
        self.learnt.append(stage.name)

    # -- state -------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, Tensor]:
        """The matrices of all domains, learnt or not."""
        return {n: p.detach() for n, p in self.model.named_parameters() if ".lora_A." in n or ".lora_B." in n}

    def state_dict(self) -> dict[str, Any]:
        return {"learnt": list(self.learnt)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        learnt = state.get("learnt")
        known = isinstance(learnt, list) and learnt == self.names[: len(learnt)]
        if set(state) != {"learnt"} or not known:
            expected = f"is a list of learnt domains, from {', '.join(self.names)}"
            raise not_its_state("o-lora", state, expected, "method or order")
        self.learnt = list(state["learnt"])
        self._use(len(self.learnt))

    # -- use ---------------------------------------------------------------------------------------------------
    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """Everything trains; with ``freeze="backbone"`` the head and the LoRAs of the learnt domains."""
        rates = super().for_end_task(model, domain, freeze)
        for layer in adapted(model):
            layer.set_adapter([_adapter(i) for i in range(len(self.learnt))])
        return rates

    def publish(self, folder: Path) -> None:
        """A folder of the PEFT library for each domain; all of them loaded and active are the learnt model."""
        for i in range(len(self.learnt)):
            save_adapter(self.model, self.config, folder / f"{i}", _adapter(i))


def _adapter(i: int) -> str:
    return f"stage{i}"


__all__ = ["OLora", "OLoraSettings", "overlap"]
