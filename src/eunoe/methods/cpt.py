"""CPT: learn domain after domain in shared plug-ins, each domain through its own masks, and forget nothing.

Paper: Ke, Lin, Shao, Xu, Shu, Liu 2022, "Continual Training of Language Models for Few-Shot Learning" (EMNLP 2022,
https://arxiv.org/abs/2210.05549); code https://github.com/UIC-Liu-Lab/CPT.

A domain learns the weights of the plug-ins and which of their units it uses. When it ends, its hard masks are kept; the
weights between used units are then closed for later domains, in the gradient and in the finished update (momentum and
weight decay would move them without a gradient). Later domains may use those units, which is how they profit.

What we do differently, and why:

- The LayerNorms and the LM head are frozen, as the paper's figure says. The release trains them and throws them away
  before the next domain; trained and kept they would change what earlier domains compute.
- ``placement`` is ``sequential`` by default: at h2 = 0 the model is its base. The released results used ``parallel``,
  where the feed-forward input enters twice (``plugins/inject.py``).
- Sizes follow the model's width: the published 512 and 768 belong to width 768.
- A domain's mask is hard at s_max in use, and read from bits kept when it ended. The release keeps a table of mask
  embeddings; here there is one row, drawn anew for each domain, so that neither a step nor a checkpoint grows with the
  number of domains but for one bit a unit.
- No sparsity regulariser by default, as released: about half of the free units go to each new domain, so
  ``plugins/capacity.py`` counts what is left. ``sparsity`` is HAT's; ``grow`` adds units.
- A sequence may start from the plug-ins of a finished one (``plugins``), and they may be given more inner units then.

The embeddings' compensated gradients are up to 100 times the plain ones: with global clipping they set the scale of the
whole step. The release clips each tensor by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown
from eunoe.methods.base import Method, Stage, freeze
from eunoe.models.anatomy import anatomy
from eunoe.plugins.adapter import ACTIVATIONS, INITS, Adapter
from eunoe.plugins.capacity import capacity, capacity_report
from eunoe.plugins.files import load_plugins, save_plugins, saved_files
from eunoe.plugins.inject import (
    PLACEMENTS,
    Site,
    active,
    adapters,
    add_domains,
    detach,
    grow,
    inject,
    placement_of,
)
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
from eunoe.recipe import check_names, expand

ROUND = 10
"""Steps that the annealing needs at least in one epoch: with fewer to an epoch, several epochs make one round."""
END_TASK_LR = 3e-5 / 5e-5
"""The paper's learning rate of plug-in weights over that of all other weights in end-task fine-tuning."""


@dataclass(kw_only=True)
class CptSettings:
    """The published settings, but for what the head of this file says."""

    placement: str = "sequential"
    """Where the plug-ins stand: sequential, parallel (as released) or parallel_clean (as the paper's figure draws)."""
    attention_size: int | None = None
    """Inner units of an attention plug-in; None: the published 512 of width 768, that is two thirds of the width."""
    ffn_size: int | None = None
    """Inner units of a feed-forward plug-in; None: the published 768 of width 768, that is the width."""
    activation: str = "relu"
    """What stands after both layers of a plug-in: relu, gelu, silu or tanh."""
    init: str = "library"
    """How plug-in weights start: library (torch's default, as released), normal (std 0.02) or near_zero (std 0.001)."""
    skip: Literal["auto"] | bool = "auto"
    """A plug-in's own skip, x + h2; auto: what the placement has. true needs equal widths, false a parallel placement."""
    anneal_over: Literal["epoch", "all"] = "epoch"
    """Let the mask temperature rise in each epoch anew (as released; a run joins epochs of fewer than ten steps), or once over
    all steps of a domain."""
    sparsity: float = 0.0
    """Weight of HAT's regulariser, which keeps units free for later domains; HAT takes 0.75, CPT's release has none."""
    s_max: float = 400.0
    """The largest mask temperature; at it a mask is hard."""
    cosh_clip: float = 50.0
    """Limit on s * e in the compensation of the mask embeddings' gradients."""
    embedding_clip: float = 6.0
    """Limit on the mask embeddings after each step."""
    plugins: str | None = None
    """Start from the plug-ins in this folder, which a finished run or ``save_plugins`` wrote: their domains stay learnt.
    Sizes left out are theirs, larger ones grow them."""

    def __post_init__(self) -> None:
        lookup(PLACEMENTS, self.placement, "placement")
        lookup(ACTIVATIONS, self.activation, "activation")
        lookup(INITS, self.init, "init")
        lookup({"epoch": None, "all": None}, self.anneal_over, "anneal_over")
        if self.skip not in ("auto", True, False):
            raise EunoeError(f"cpt: skip is {self.skip!r}; give auto, true or false.")
        if not 0 <= self.sparsity < math.inf:
            raise EunoeError(f"cpt: sparsity is {self.sparsity}; give 0 or more (HAT: 0.75).")
        for name in ("attention_size", "ffn_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):  # true and false are integers to Python
                raise EunoeError(
                    f"cpt: {name} is {value!r}; give a whole number of 1 or more, or leave it out for the published ratio."
                )
        refuse_s_max(self.s_max, "cpt: s_max")
        if not 0 < self.cosh_clip <= 80:  # float32's cosh overflows at 89
            raise EunoeError(f"cpt: cosh_clip is {self.cosh_clip}; give a number above 0, at most 80 (published: 50).")
        if not 0 < self.embedding_clip < math.inf:
            raise EunoeError(f"cpt: embedding_clip is {self.embedding_clip}; give a finite number above 0.")

    def size(self, part: str, width: int) -> int:
        """Inner units of the plug-in of ``part`` in a model of ``width``."""
        given = {"attention": self.attention_size, "feed_forward": self.ffn_size}[part]
        published = {"attention": 512, "feed_forward": 768}[part]
        return given if given is not None else max(1, round(width * published / 768))


class Cpt(Method):
    """Only plug-ins train; the base model, its LayerNorms and its head keep their bits. ``forgets`` nothing.

    With ``settings.plugins`` the domains come after those of that folder, and ``self.domains`` names them all.

    Raises ``EunoeError`` for a model family without anatomy, a model that has plug-ins, domains' names that are not
    allowed, and ``settings.plugins`` that do not fit the model, the other settings or the domains' names.

    Example: ``Cpt(model, CptSettings(plugins="runs/old/sequences/cpt.given.seed0/plugins", ffn_size=1024), ["law"])``.
    """

    forgets = False
    needs_domain = True

    def __init__(self, model: nn.Module, settings: CptSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        check_names(domains, "domain")  # load_plugins will hold their names to the same rule
        parts = anatomy(model)
        freeze(model)
        if settings.plugins is None:
            skip = None if settings.skip == "auto" else settings.skip
            self.active = Active(domains=tuple(domains), s=settings.s_max, s_max=settings.s_max)
            self.adapters = inject(model, parts, self._make, placement=settings.placement, skip=skip)
        else:
            self.adapters = _go_on(model, settings, domains)
            self.active = active(model)
            self.domains = list(self.active.domains)
            self.earlier = tuple(self.domains[i] for i in self.active.finished)
        self.seed = int(torch.randint(1 << 62, ()))
        self._closed: list[tuple[nn.Parameter, Tensor]] = []

    @staticmethod
    def sources(settings: CptSettings) -> list[Path]:
        """The files of ``settings.plugins``."""
        return [] if settings.plugins is None else saved_files(expand(settings.plugins))

    # -- hooks -------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        domain, steps = stage.name, len(stage.batches)
        index = self._index(domain)
        if index in self.active.finished:
            raise EunoeError(
                f"cpt: domain {domain!r} is learnt and its weights are closed. Learn more text of it under a new name."
            )
        self.active.running = self.active.domain = index
        self.active.s = anneal(0.0, self.active.s_max)
        self.epochs = min(stage.epochs, max(1.0, steps / ROUND))
        drawn = torch.Generator().manual_seed(_seed(self.seed, domain))
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
                f"cpt: learning {stage.name!r} left plug-in weights that are not finite. It is not closed: earlier domains "
                "would read them through their masks, as 0 * nan is nan. Lower the learning rate and run again."
            )
        for mask in self._masks():
            mask.keep(index)
        self.active.finished.append(index)
        self.active.running = None
        self.activate(stage.name)

    # -- facts -------------------------------------------------------------------------------------------------
    def protected(self) -> dict[nn.Parameter, Tensor]:
        """The weights between units that finished domains use: where the factor on the gradient is <= 0.5."""
        return {weight: (factor <= 0.5).expand_as(weight) for weight, factor in self._free().items()}

    def activate(self, domain: str | None) -> None:
        """The domain's hard masks; None, or a domain never trained, turns the plug-ins off (the base model)."""
        self._use(self.active, domain)

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """Plug-ins, backbone and head train under the domain's hard masks; only the mask embeddings stay.

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

    def reads(self, domain: str) -> dict[str, Tensor | None]:
        """Which entries of the model's weights a domain's output depends on: name -> bool tensor of its shape, None for all.

        All of the base model, and the plug-in entries between the units the domain uses. ``eunoe verify`` hashes them.
        """
        index = self._index(domain)
        plugins: dict[nn.Parameter, Tensor] = {}
        for adapter in self.adapters.values():
            weights = dict(adapter.named_parameters())
            plugins.update({weights[name]: entries for name, entries in adapter.reads(index).items()})
        return {name: plugins.get(p) for name, p in self.model.named_parameters()}

    def notes(self) -> dict[str, Any]:
        return {"general": "general text is read with the plug-ins off"}

    def facts(self) -> tuple[dict[str, Any], list[str]]:
        """``capacity.json``: how many units are free (the rows of ``plugins.capacity.capacity``), and a warning when they run out."""
        rows = capacity(self.model)
        warning = capacity_report(rows)["warning"]
        return {"capacity.json": rows}, [warning] if warning else []

    def publish(self, folder: Path) -> None:
        """Write the plug-ins as ``eunoe.load_plugins`` reads them."""
        save_plugins(self.model, folder)

    def grow(self, *, attention_size: int | None = None, ffn_size: int | None = None) -> None:
        """Wider plug-ins for the domains to come, see ``plugins.inject.grow``.

        A method that resumes from a checkpoint of grown plug-ins must be grown alike before the weights are restored.
        Plug-ins of a finished run are grown by ``CptSettings.plugins`` with larger sizes, when the method is made.
        """
        grow(self.model, attention_size=attention_size, ffn_size=ffn_size)

    def clashes(self, other: Method) -> str | None:
        return None if other.forgets else "each wants to attach weights of its own to the frozen model"

    def state_dict(self) -> dict[str, Any]:
        """``finished`` and ``running`` domains, ``s``, ``seed``, and ``masks``: uint8 (finished, bytes), side by side.

        Finished domains stand in the order they were learnt, as do the rows of ``masks``; each row belongs to the name at
        its place, so states that older versions wrote in the order of ``domains`` are read alike.
        A finished domain adds its row of ``masks`` and its name, and nothing anywhere else.
        """
        finished = self.active.finished
        bits = [mask.bits[finished] for mask in self._masks()]
        return {
            "finished": [self.domains[i] for i in finished],
            "running": None if self.active.running is None else self.domains[self.active.running],
            "s": self.active.s,
            "seed": self.seed,
            "masks": torch.cat(bits, dim=1).cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if lacking := {"finished", "running", "s", "seed", "masks"} - set(state):
            raise EunoeError(f"cpt: the saved state lacks {', '.join(sorted(lacking))}; it belongs to another method.")
        finished = [self._index(name) for name in state["finished"]]
        widths = [mask.bits.shape[1] for mask in self._masks()]
        masks: Tensor = state["masks"]
        if tuple(masks.shape) != (len(finished), sum(widths)) or masks.dtype != torch.uint8:
            raise EunoeError(
                f"cpt: the saved masks are {masks.dtype} of shape {tuple(masks.shape)}, this model needs torch.uint8 of shape "
                f"{(len(finished), sum(widths))}: they belong to other sizes or another model. "
                "Use the settings the run was begun with."
            )
        for mask, bits in zip(self._masks(), torch.split(masks, widths, dim=1), strict=True):
            mask.clear()
            for index, row in zip(finished, bits, strict=True):
                mask.restore(index, row.to(mask.bits.device))
        self.active.finished = finished
        self.active.running = None if state["running"] is None else self._index(state["running"])
        self.active.domain = self.active.running
        self.active.s = float(state["s"])
        self.seed = int(state["seed"])

    # -- parts -------------------------------------------------------------------------------------------------
    def _make(self, site: Site) -> Adapter:
        size = self.settings.size(site.part, site.width)
        how = {"activation": self.settings.activation, "init": self.settings.init}
        return Adapter(site.width, size, self.active, out=site.out, skip=site.skip, **how)

    def _masks(self) -> Iterator[TaskMask]:
        for adapter in self.adapters.values():
            yield from adapter.masks().values()

    def _free(self) -> dict[nn.Parameter, Tensor]:
        """The factor on the gradient of each weight that finished domains may use, 0 or 1; it broadcasts over the weight."""
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
        """Hard masks of ``domain`` for the model that reads ``active``: the learnt one, or a copy for an end task."""
        index = None if domain is None else self._index(domain)
        begun = index in self.active.finished or (index is not None and index == self.active.running)
        active.domain = index if begun else None
        active.s = active.s_max


def _go_on(model: nn.Module, settings: CptSettings, domains: Sequence[str]) -> dict[str, Adapter]:
    """Attach the plug-ins of ``settings.plugins``, grow them to the settings' sizes, and add ``domains``.

    Their weights and masks are those of the folder; only the fresh units are drawn, from torch's generator.
    """
    folder = expand(str(settings.plugins))
    load_plugins(model, folder, trainable=True)
    attached = adapters(model)
    try:
        larger = _larger(model, settings, domains, folder)
        for adapter in attached.values():
            adapter.init = settings.init
            for mask in adapter.masks().values():
                mask.embedding.requires_grad_(True)  # of the domain that runs next
        if larger:
            grow(model, **larger)
        add_domains(model, domains)
    except BaseException:
        detach(model)
        raise
    shared = active(model)
    shared.s = shared.s_max = settings.s_max  # learnt masks are hard at any
    return attached


def _larger(model: nn.Module, settings: CptSettings, domains: Sequence[str], folder: str) -> dict[str, int]:
    """The sizes to grow to, as ``grow`` takes them; raises where plug-ins and settings cannot go together."""
    larger: dict[str, int] = {}
    saved: dict[str, set[Any]] = {"placement": {placement_of(model)}, "activation": set(), "skip": set()}
    for name, adapter in adapters(model).items():
        saved["activation"].add(adapter.activation)
        saved["skip"].add(adapter.skip)
        key = "attention_size" if name.endswith("attention_plugin") else "ffn_size"
        wanted = getattr(settings, key)
        if wanted is not None and wanted < adapter.size:
            raise EunoeError(
                f"cpt: {key} is {wanted}, but the plug-ins of {folder} have {adapter.size} inner units there, and they "
                "only grow. Give that many or more, or leave it out to keep them as they are."
            )
        if wanted is not None and wanted > adapter.size:
            larger[key] = wanted
    if settings.skip == "auto":
        del saved["skip"]  # theirs
    for key, values in saved.items():
        if values != {getattr(settings, key)}:
            theirs = "auto" if len(values) > 1 else str(*values).lower()
            raise EunoeError(
                f"cpt: {key} is {str(getattr(settings, key)).lower()}, but the plug-ins of {folder} were learnt with "
                f"{theirs}, which cannot change. Give {key}: {theirs}."
            )
    again = [name for name in domains if name in active(model).domains]
    if again:
        raise EunoeError(
            f"cpt: {', '.join(again)} is learnt already in {folder}, and closed. Learn more text of it under a new name."
        )
    return larger


def _seed(seed: int, domain: str) -> int:
    """The seed of a domain's mask embeddings: a function of the method's and the domain's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{domain}".encode()).digest()[:8], "big")


__all__ = ["END_TASK_LR", "Cpt", "CptSettings"]
