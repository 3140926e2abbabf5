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
- Ablations are options: ``masks: false`` (the plug-ins learn all domains in turn, unmasked, and forget), ``backbone: frozen`` (plug-ins and
  classifier alone train in an end task). Without plug-ins there is nothing to mask and the whole model learns: that one is ``ncl``.
- A sequence may start from the plug-ins of a finished one (``plugins``), and they may be given more inner units then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.methods.masked import Masked, plugin_size, refuse_mask_settings
from eunoe.models.anatomy import anatomy
from eunoe.plugins.adapter import INITS, Adapter
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
from eunoe.plugins.task_mask import Active, OpenMask, TaskMask
from eunoe.recipe import expand


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
    masks: bool = True
    """False, an ablation: every domain learns all units, and nothing is closed to later ones; it forgets."""
    backbone: Literal["frozen", "trained"] = "trained"
    """The pretrained weights in an end task: trained with the plug-ins (as released), or frozen, an ablation."""
    plugins: str | None = None
    """Start from the plug-ins in this folder, which a finished run or ``save_plugins`` wrote: their domains stay learnt.
    Sizes left out are theirs, larger ones grow them."""

    def __post_init__(self) -> None:
        lookup(PLACEMENTS, self.placement, "placement")
        lookup(INITS, self.init, "init")
        if self.skip not in ("auto", True, False):
            raise EunoeError(f"cpt: skip is {self.skip!r}; give auto, true or false.")
        refuse_mask_settings("cpt", self)
        if not self.masks and (self.sparsity or self.plugins is not None):
            key, why = (
                ("sparsity", "there are none to make sparse")
                if self.sparsity
                else ("plugins", "those of the folder have masks")
            )
            raise EunoeError(
                f"cpt: masks is false, but {key} is {getattr(self, key)!r}: {why}. Leave one of the two out."
            )

    def size(self, part: str, width: int) -> int:
        """Inner units of the plug-in of ``part`` in a model of ``width``."""
        return plugin_size({"attention": self.attention_size, "feed_forward": self.ffn_size}[part], part, width)


class Cpt(Masked):
    """Only plug-ins train; the base model, its LayerNorms and its head keep their bits. ``forgets`` nothing.

    With ``settings.plugins`` the domains come after those of that folder, and ``self.domains`` names them all.

    Raises ``EunoeError`` for a model family without anatomy, a model that has plug-ins, domains' names that are not
    allowed, and ``settings.plugins`` that do not fit the model, the other settings or the domains' names.

    Example: ``Cpt(model, CptSettings(plugins="runs/old/sequences/cpt.given.seed0/plugins", ffn_size=1024), ["law"])``.
    """

    forgets = False

    def __init__(self, model: nn.Module, settings: CptSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.forgets = not settings.masks
        self.freezes_backbone = settings.backbone == "frozen"

    def attach(self) -> tuple[Active, dict[str, Adapter]]:
        if self.settings.plugins is None:
            return self._fresh()
        attached = _go_on(self.model, self.settings, self.domains)
        shared = active(self.model)
        self.domains = list(shared.domains)
        self.earlier = tuple(self.domains[i] for i in shared.finished)
        return shared, attached

    @staticmethod
    def sources(settings: CptSettings) -> list[Path]:
        """The files of ``settings.plugins``."""
        return [] if settings.plugins is None else saved_files(expand(settings.plugins))

    # -- facts -------------------------------------------------------------------------------------------------
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

    def facts(self) -> tuple[dict[str, Any], list[str]]:
        """``capacity.json``: how many units are free (the rows of ``plugins.capacity.capacity``), and a warning when they run out.

        Nothing without masks, as no unit is taken then.
        """
        if not self.settings.masks:
            return {}, []
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

    # -- parts -------------------------------------------------------------------------------------------------
    def _fresh(self) -> tuple[Active, dict[str, Adapter]]:
        own = self.settings
        shared = Active(domains=tuple(self.domains), s=own.s_max, s_max=own.s_max)

        def make(site: Site) -> Adapter:
            size, mask = own.size(site.part, site.width), TaskMask if own.masks else OpenMask
            how = {"activation": own.activation, "init": own.init}
            return Adapter(site.width, size, shared, out=site.out, skip=site.skip, mask=mask, **how)

        skip = None if own.skip == "auto" else own.skip
        return shared, inject(self.model, anatomy(self.model), make, placement=own.placement, skip=skip)


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
    """The sizes to grow to, as ``grow`` takes them; raises where plug-ins and settings cannot be combined."""
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


__all__ = ["Cpt", "CptSettings"]
