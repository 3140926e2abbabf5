"""What ``cpt``, ``hat``, ``bcl`` and ``classic`` share: plug-ins that all domains learn, each through its own masks, on a frozen model.

While a domain is learnt so are its masks, ``sigmoid(s * e)`` with an s that rises to s_max; when it ends its masks are kept, and
weights between units that it uses are closed to later domains as far as it uses them, in the gradient and in the finished
update, because momentum and weight decay would move them without a gradient (``plugins/task_mask.py`` has the formulas).

Papers: Serra et al. 2018 (HAT, https://arxiv.org/abs/1801.01423); Ke et al. 2022 (CPT, https://arxiv.org/abs/2210.05549).

The embeddings' compensated gradients are up to 100 times the plain ones: with global clipping they set the scale of the
whole step. The CPT release clips each tensor by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown
from eunoe.methods.base import Method, Stage, freeze, trainable
from eunoe.models.anatomy import anatomy
from eunoe.plugins.adapter import ACTIVATIONS, Adapter
from eunoe.plugins.inject import adapters
from eunoe.plugins.task_mask import (
    Active,
    TaskMask,
    anneal,
    clamp,
    compensate,
    gate,
    refuse_s_max,
    sparsity,
    within_epoch,
)
from eunoe.recipe import check_names

ROUND = 10
"""Steps that the annealing needs at least in one epoch: with fewer to an epoch, several epochs make one round."""
END_TASK_LR = 3e-5 / 5e-5
"""CPT's learning rate of plug-in weights over that of all other weights in end-task fine-tuning."""


def plugin_size(given: int | None, part: str, width: int) -> int:
    """Inner units of the plug-in of ``part`` in a model of ``width``: those ``given``, or CPT's 512 and 768 of width 768."""
    published = {"attention": 512, "feed_forward": 768}[part]
    return given if given is not None else max(1, round(width * published / 768))


def refuse_mask_settings(name: str, settings: Any) -> None:
    """Raises ``EunoeError`` for a setting of plug-ins and masks that the method called ``name`` cannot have."""
    lookup(ACTIVATIONS, settings.activation, "activation")
    lookup({"epoch": None, "all": None}, settings.anneal_over, "anneal_over")
    if not 0 <= settings.sparsity < math.inf:
        raise EunoeError(f"{name}: sparsity is {settings.sparsity}; give 0 or more (HAT: 0.75).")
    for size in ("attention_size", "ffn_size"):
        value = getattr(settings, size)
        if value is not None and (type(value) is not int or value < 1):  # true and false are integers to Python
            raise EunoeError(
                f"{name}: {size} is {value!r}; give a whole number of 1 or more, or leave it out for the published ratio."
            )
    refuse_s_max(settings.s_max, f"{name}: s_max")
    if not 0 < settings.cosh_clip <= 80:  # float32's cosh overflows at 89
        raise EunoeError(
            f"{name}: cosh_clip is {settings.cosh_clip}; give a number above 0, at most 80 (published: 50)."
        )
    if not 0 < settings.embedding_clip < math.inf:
        raise EunoeError(f"{name}: embedding_clip is {settings.embedding_clip}; give a finite number above 0.")


class Masked(Method):
    """Only plug-ins train; the base model, its LayerNorms and its head keep their bits, and text of no domain reads them alone.

    Raises ``EunoeError`` for a model family without anatomy, a model that has plug-ins, and domains' names that are not allowed.
    """

    trains = "own"
    needs_domain = True
    closed_at: float = 0.5
    """A weight whose gradient's factor is this or less is left alone by the finished update too (CPT's rule)."""

    def __init__(self, model: nn.Module, settings: Any, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        check_names(domains, "domain")  # load_plugins will hold their names to the same rule
        anatomy(model)
        freeze(model)
        self.active, self.adapters = self.attach()
        self.seed = int(torch.randint(1 << 62, ()))
        self._closed: list[tuple[nn.Parameter, Tensor]] = []

    def attach(self) -> tuple[Active, dict[str, Adapter]]:
        """Give the model its plug-ins; returns what they share, and the plug-ins by name."""
        raise NotImplementedError(f"{type(self).__name__} has masks, but attaches no plug-ins")

    @property
    def label(self) -> str:
        """What errors call the method."""
        return type(self).__name__.lower()

    # -- hooks -------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        domain, steps = stage.name, len(stage.batches)
        index = self._index(domain)
        if index in self.active.finished:
            raise EunoeError(
                f"{self.label}: domain {domain!r} is learnt and its weights are closed. Learn more text of it under a new name."
            )
        self.active.running = self.active.domain = index
        self.active.s = anneal(0.0, self.active.s_max)
        self.epochs = min(stage.epochs, max(1.0, steps / ROUND))
        drawn = torch.Generator().manual_seed(seed_of(self.seed, domain))
        for mask in self._masks():
            mask.begin(drawn)
        self._closed = list(self._free().items())

    def before_step(self, step: int, steps: int) -> None:
        # the domain too: an evaluation between two steps may have activated another
        self.active.domain = self.active.running
        progress = step / steps
        if self.settings.anneal_over == "epoch":
            progress = within_epoch(progress, self.epochs)
        self.active.s = anneal(progress, self.active.s_max)

    def penalty(self) -> Tensor | None:
        if not self.settings.sparsity:
            return None
        masks = list(self._masks())
        cost = sparsity([gate(mask.embedding, self.active.s) for mask in masks], [mask.taken for mask in masks])
        weighted: Tensor = self.settings.sparsity * cost
        return weighted

    def on_gradients(self) -> None:
        if self.active.running is None:
            raise RuntimeError("on_gradients before begin")
        for weight, factor in self._closed:
            if weight.grad is not None:
                weight.grad.mul_(factor)  # a third of the time that filling masked entries takes
        s, s_max, clip = self.active.s, self.active.s_max, self.settings.cosh_clip
        for mask in self._masks():
            if mask.embedding.grad is not None:
                mask.embedding.grad.copy_(compensate(mask.embedding.grad, mask.embedding.detach(), s, s_max, clip))

    def after_step(self) -> None:
        if self.active.running is None:
            raise RuntimeError("after_step before begin")
        with torch.no_grad():
            for mask in self._masks():
                mask.embedding.copy_(clamp(mask.embedding, self.settings.embedding_clip))

    def end(self, stage: Stage) -> None:
        index = self._index(stage.name)
        if index != self.active.running:
            raise RuntimeError(f"end of {stage.name!r}, which is not the domain that runs")
        if not all(p.isfinite().all() for adapter in self.adapters.values() for p in adapter.parameters()):
            raise EunoeError(
                f"{self.label}: learning {stage.name!r} left plug-in weights that are not finite. It is not closed: earlier domains "
                "would read them through their masks, as 0 * nan is nan. Lower the learning rate and run again."
            )
        for mask in self._masks():
            mask.keep(index)
        self.active.finished.append(index)
        self.active.running = None
        self.activate(stage.name)

    def own(self) -> set[nn.Parameter]:
        """The weights that it brings, whichever of them train in this stage."""
        return {p for adapter in self.adapters.values() for p in adapter.parameters()}

    # -- state -------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, Tensor]:
        """All that it brings: a domain may read weights that no longer train."""
        own = self.own()
        return super().weights() | {name: p.detach() for name, p in self.model.named_parameters() if p in own}

    def state_dict(self) -> dict[str, Any]:
        """``finished`` and ``running`` domains, ``s``, ``seed``, and ``masks``: (finished, what one keeps), side by side.

        Finished domains stand in the order they were learnt, as do the rows of ``masks``; each row belongs to the name at
        its place, so states that older versions wrote in the order of ``domains`` are read alike.
        A finished domain adds its row of ``masks`` and its name, and nothing anywhere else.
        """
        finished = self.active.finished
        rows = [mask.rows[finished] for mask in self._masks()]
        return {
            "finished": [self.domains[i] for i in finished],
            "running": None if self.active.running is None else self.domains[self.active.running],
            "s": self.active.s,
            "seed": self.seed,
            "masks": torch.cat(rows, dim=1).cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if lacking := {"finished", "running", "s", "seed", "masks"} - set(state):
            raise EunoeError(
                f"{self.label}: the saved state lacks {', '.join(sorted(lacking))}; it belongs to another method."
            )
        finished = [self._index(name) for name in state["finished"]]
        kept = [mask.rows for mask in self._masks()]
        widths, dtype = [rows.shape[1] for rows in kept], kept[0].dtype
        masks: Tensor = state["masks"]
        if tuple(masks.shape) != (len(finished), sum(widths)) or masks.dtype != dtype:
            raise EunoeError(
                f"{self.label}: the saved masks are {masks.dtype} of shape {tuple(masks.shape)}, this model needs {dtype} of shape "
                f"{(len(finished), sum(widths))}: they belong to other sizes or another model. "
                "Use the settings the run was begun with."
            )
        for mask, rows in zip(self._masks(), torch.split(masks, widths, dim=1), strict=True):
            mask.clear()
            for index, row in zip(finished, rows, strict=True):
                mask.restore(index, row.to(mask.rows.device))
        self.active.finished = finished
        self.active.running = None if state["running"] is None else self._index(state["running"])
        self.active.domain = self.active.running
        self.active.s = float(state["s"])
        self.seed = int(state["seed"])

    # -- use and facts ----------------------------------------------------------------------------------------
    def protected(self) -> dict[nn.Parameter, Tensor]:
        """The weights between units that finished domains use: where the factor on the gradient is ``closed_at`` or less."""
        return {weight: (factor <= self.closed_at).expand_as(weight) for weight, factor in self._free().items()}

    def activate(self, domain: str | None) -> None:
        """The domain's masks at s_max; None, or a domain never trained, turns the plug-ins off (the base model)."""
        self._use(self.active, domain)

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """Plug-ins, backbone and head train under the domain's masks at s_max; only the mask embeddings stay.

        With ``freeze="backbone"`` plug-ins and head train. Plug-in weights get the paper's 3e-5 against 5e-5.
        """
        super().for_end_task(model, domain, freeze)
        slower = set()
        for adapter in adapters(model).values():
            self._use(adapter.active, domain)
            for p in adapter.parameters():
                p.requires_grad_(True)
            for mask in adapter.masks().values():
                mask.embedding.requires_grad_(False)
            slower |= {p for p in adapter.parameters() if p.requires_grad}
        return {name: END_TASK_LR for name, p in model.named_parameters() if p in slower}

    def notes(self) -> dict[str, Any]:
        return {"general": "general text is read with the plug-ins off"}

    def clashes(self, other: Method) -> str | None:
        if not other.forgets:
            return "each wants to attach weights of its own to the frozen model"
        if other.pulls:
            return "the other would pull mask embeddings to those of earlier domains, but each domain draws its own"
        own = self.own()
        if any(p not in own for _, p in trainable(self.model)):
            return f"one trains weights that {self.label} keeps still"
        return None

    # -- parts -------------------------------------------------------------------------------------------------
    def _masks(self) -> Iterator[TaskMask]:
        for adapter in self.adapters.values():
            yield from adapter.masks().values()

    def _free(self) -> dict[nn.Parameter, Tensor]:
        """The factor on the gradient of each weight that finished domains may use, from 0 to 1; it broadcasts over the weight."""
        if not self.active.finished:
            return {}
        return {
            adapter.get_parameter(name): factor
            for adapter in self.adapters.values()
            for name, factor in adapter.free().items()
        }

    def _index(self, domain: str) -> int:
        if domain not in self.domains:
            raise unknown(domain, self.domains, "domain")
        return self.domains.index(domain)

    def _use(self, active: Active, domain: str | None) -> None:
        """The masks of ``domain`` for the model that reads ``active``: the learnt one, or a copy for an end task."""
        index = None if domain is None else self._index(domain)
        begun = index in self.active.finished or (index is not None and index == self.active.running)
        active.domain = index if begun else None
        active.s = active.s_max


def seed_of(seed: int, domain: str) -> int:
    """The seed of what is drawn for a domain: a function of the method's and the domain's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{domain}".encode()).digest()[:8], "big")


__all__ = ["END_TASK_LR", "ROUND", "Masked", "plugin_size", "refuse_mask_settings", "seed_of"]
