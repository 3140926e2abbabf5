"""What ``one``, ``adapter-one``, ``prompt-one`` and ``demix`` share: of each domain weights of its own, which nothing else changes.

A domain's own weights are the whole model's, or those of plug-ins on a frozen model. They are learnt alone, and kept when the domain
ends; text of a domain is read with that domain's, so no domain forgets anything, and none can profit from a later one.

The model holds one set at a time: ``activate`` points its weights at the tensors of a domain. Those of finished domains lie on
the CPU, so that a device holds the set in use and the one that is being learnt, however many domains there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eunoe.methods.base import Method, Stage, freeze, restore
from eunoe.models.anatomy import anatomy
from eunoe.plugins.bottleneck import Bottleneck
from eunoe.plugins.prompt import Prompt

Plug = Bottleneck | Prompt
Tensors = Mapping[str, Tensor]


class Own(Method):
    """Each domain learns a set of weights of its own; text of no learnt domain is read by the pretrained model.

    A subclass says with ``attach`` which plug-ins hold the weights; none: they are the whole model's.
    """

    forgets = False
    needs_domain = True
    starts_from: Literal["previous", "base"] = "base"

    def __init__(self, model: nn.Module, settings: Any, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        freeze(model)
        self.plugs = self.attach()
        parts: Sequence[nn.Module] = self.plugs or [model]
        for part in parts:
            part.requires_grad_(True)
        self.freezes_backbone = bool(self.plugs) and settings.backbone == "frozen"
        self.own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.fresh: Tensors = {name: p.detach().cpu().clone() for name, p in self.own.items()}
        """What a domain's weights are before it is learnt."""
        self.learnt: dict[str, Tensors] = {}
        self.running: str | None = None
        self.newest: Tensors = self.fresh
        """Those of the domain that is being learnt, or was last: ``newest_name``."""
        self.newest_name: str | None = None
        self._in_use: Tensors = self.fresh
        self._use(self.fresh, on=False)

    def attach(self) -> Sequence[Plug]:
        """Put the plug-ins into the model whose weights are a domain's own."""
        return []

    # -- hooks -------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        start = self.start(stage)
        self.newest = {name: start[name].to(p.device, copy=True) for name, p in self.own.items()}
        self.running = self.newest_name = stage.name
        self.activate(stage.name)

    def start(self, stage: Stage) -> Tensors:
        """What the weights of ``stage`` start from."""
        return self.fresh

    def before_step(self, step: int, steps: int) -> None:
        self.activate(self.running)  # an evaluation between two steps may have activated another

    def end(self, stage: Stage) -> None:
        self.learnt[stage.name] = {name: tensor.cpu() for name, tensor in self.newest.items()}
        self.running = None
        self.activate(stage.name)

    # -- state -------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, Tensor]:
        """Those of the stage that is being learnt, or was last, alone."""
        return dict(self.newest)

    def restore(self, stage: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> None:
        fitted = self.fitting(weights, where)
        self.load_state_dict(state)
        self.learnt[stage] = self.newest = fitted
        self.newest_name = stage
        self.activate(stage)

    def fitting(self, tensors: Tensors, where: str) -> Tensors:
        """A domain's weights as they were saved; raises ``EunoeError`` for those of something else."""
        fitted = {name: torch.empty_like(tensor) for name, tensor in self.fresh.items()}
        restore(fitted, tensors, where)
        return fitted

    # -- use ---------------------------------------------------------------------------------------------------
    def activate(self, domain: str | None) -> None:
        """Read with the weights of ``domain``; None, or a domain that is not learnt, is the pretrained model to the bit."""
        known = domain is not None and (domain == self.running or domain in self.learnt)
        self._use(self._weights_of(domain), on=known)

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """The domain's own weights and the head train; a task of no learnt domain starts from fresh ones.

        Where they are plug-ins the pretrained weights stay frozen, unless the settings have ``backbone: trained``.
        """
        super().for_end_task(model, domain, freeze)
        originals, copied = anatomy(self.model).base.named_parameters(), dict(anatomy(model).base.named_parameters())
        names, own = {p: name for name, p in self.own.items()}, self._weights_of(domain)
        with torch.no_grad():
            for name, p in originals:
                if p in names:
                    copied[name].copy_(own[names[p]])
        for part in model.modules():
            if isinstance(part, Plug):
                part.on = True
                part.requires_grad_(True)
        return {}

    def reads(self, domain: str) -> dict[str, Tensor | None]:
        """All weights that the model has while ``domain`` is active."""
        return {name: None for name, _ in self.model.named_parameters()}

    def clashes(self, other: Method) -> str | None:
        return "each domain has weights of its own here, which no other domain changes: there is nothing to add to it"

    # -- parts -------------------------------------------------------------------------------------------------
    def _weights_of(self, domain: str | None) -> Tensors:
        if domain is not None and domain == self.running:
            return self.newest
        return self.fresh if domain is None else self.learnt.get(domain, self.fresh)

    def _use(self, tensors: Tensors, on: bool) -> None:
        for part in self.plugs:
            part.on = on
        if tensors is self._in_use:
            return
        self._in_use = tensors
        with torch.inference_mode(False):  # else a weight that is set while text is scored could not be trained later
            for name, p in self.own.items():
                p.data = tensors[name].to(p.device)


__all__ = ["Own", "Plug", "Tensors"]
