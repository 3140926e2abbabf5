"""Attach plug-ins to any model of ``models/anatomy.py``, without an edit of its code, and take them off again.

Each layer gets two children, ``attention_plugin`` and ``feed_forward_plugin``, and hooks on the sub-layers' modules, so
no name of the base model changes. Where a plug-in reads and where its output goes is a row of ``PLACEMENTS``:

- ``sequential``: after the sub-layer (output projection and dropout done), before add & norm, with the inner skip. The
  default: at h2 = 0 the model is its base. The release holds it as a module that no script of it uses.
- ``parallel``: what the CPT release (https://github.com/UIC-Liu-Lab/CPT) runs for its published result. The attention
  plug-in reads the sub-layer's input and is added to the heads before the output projection, without skip; the
  feed-forward plug-in reads its sub-layer's input x and x + h2 is added to the sub-layer's output, so that x enters the
  add & norm twice and the model differs from its base even at h2 = 0.
- ``parallel_clean``: as the paper's figure draws it: both read the sub-layer's input and h2 alone is added to its
  output.

On families that normalise before the sub-layer (GPT-2, Llama, Qwen3, ModernBERT) the sub-layer's input is the
normalised one, which is what its first projection gets.

A tap's hooks are bound methods, not closures: ``copy.deepcopy`` of the whole model then binds them to the copied
plug-ins and the copied ``Active``, and the copy is independent of the original. They belong to places in the layer, not
to the modules that stand there: PEFT wraps and unwraps linear layers, quantisation swaps them, and the plug-ins still
read and write in the same places.

``plugins/files.py`` saves and loads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown
from eunoe.models.anatomy import FAMILIES, Anatomy, anatomy, refuse_recurrent
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.task_mask import Active
from eunoe.recipe import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = ("attention", "feed_forward")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one plug-in of a layer reads and writes. The names are fields of ``models.anatomy.Family``."""

    reads: str | None
    """The module whose input the plug-in gets; None: the plug-in gets what it is applied to."""
    writes: str
    """The module whose output (or input) changes."""
    to_input: bool = False
    """Change the input of ``writes`` instead of its output."""
    out: str = "width"
    """The width of the plug-in's output, a field of ``models.anatomy.Anatomy``."""
    skip: bool
    """Inner skip: x + h2 rather than h2."""


PLACEMENTS: dict[str, dict[str, Place]] = {
    "sequential": {
        "attention": Place(reads=None, writes="attention_out", skip=True),
        "feed_forward": Place(reads=None, writes="feed_forward_out", skip=True),
    },
    "parallel": {
        "attention": Place(reads="attention_in", writes="attention_proj", to_input=True, out="heads_width", skip=False),
        "feed_forward": Place(reads="feed_forward_in", writes="feed_forward_out", skip=True),
    },
    "parallel_clean": {
        "attention": Place(reads="attention_in", writes="attention_out", skip=False),
        "feed_forward": Place(reads="feed_forward_in", writes="feed_forward_out", skip=False),
    },
}


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a plug-in must fit: ``make_adapter`` gets one for each plug-in to make."""

    part: str
    """``attention`` or ``feed_forward``."""
    width: int
    out: int
    skip: bool


class Tap:
    """One plug-in in its layer: the hooks that feed it and put its output where its place says."""

    def __init__(self, adapter: Adapter, placement: str, joints: tuple[tuple[str, str], ...]) -> None:
        self.adapter = adapter
        self.placement = placement
        self.joints = joints
        """Which method is hooked to what: its name, and the dotted name of a module of the layer."""
        self.hooked: dict[str, nn.Module] = {}
        self.seen: Tensor | None = None

    def connect(self, layer: nn.Module, args: Any = None) -> None:
        """Hook to the modules that stand in the layer's places now; before each forward pass, as they may have been replaced."""
        if args is not None and self.off:
            return
        for method, name in self.joints:
            module, hook = layer.get_submodule(name), getattr(self, method)
            if self.hooked.get(method) is module:
                continue
            for stale in (self.hooked.get(method, module), module):  # who swaps a module may take its hooks along
                _unhook(stale, partial(eq, hook))
            if method in ("see", "add_to_input"):
                module.register_forward_pre_hook(hook)
            else:
                module.register_forward_hook(hook)
            self.hooked[method] = module

    @property
    def off(self) -> bool:
        return self.adapter.active.domain is None

    def through(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output if self.off else self.adapter(output)

    def see(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.seen = None if self.off else args[0]

    def add_to_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args if self.off else (args[0] + self.adapter(self._take()), *args[1:])

    def add_to_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output if self.off else output + self.adapter(self._take())

    def _take(self) -> Tensor:
        """What ``see`` saw, let go of: an activation kept here would hold its graph and stop a deep copy."""
        seen, self.seen = self.seen, None
        if seen is None:
            raise RuntimeError("the sub-layer's output came before its input: this layer runs in an unexpected order")
        return seen


def inject(
    model: nn.Module,
    parts: Anatomy,
    make_adapter: Callable[[Site], Adapter],
    *,
    placement: str = "sequential",
    skip: bool | None = None,
) -> dict[str, Adapter]:
    """Give every layer its two plug-ins; returns them by name (``encoder.layer.0.attention_plugin``), in layer order.

    ``parts`` is ``anatomy(model)``; ``skip`` overrides the placement's inner skip. New weights go to the device that the
    layer computes on, in float32 (float64 on a float64 model). Raises ``EunoeError`` for an unknown placement, a skip
    that it cannot have, a model without weights (device meta), and one that has plug-ins already. Whatever is raised,
    nothing stays attached.
    """
    places = lookup(PLACEMENTS, placement, "placement")
    refuse_recurrent(parts)
    skips = {part: place.skip if skip is None else skip for part, place in places.items()}
    for part in places:
        refuse_skip(parts, placement, part, skips[part])
    if adapters(model):
        raise EunoeError(
            f"{type(model).__name__} has plug-ins already: detach(model) removes them, set_domain uses them."
        )
    try:
        for layer in parts.layers:
            device = _device(layer.module, layer.name)
            # float32 beside half weights too: small updates would be lost to rounding
            dtype = torch.promote_types(next(layer.module.parameters()).dtype, torch.float32)
            for part in PARTS:
                place = places[part]
                site = Site(part=part, width=parts.width, out=getattr(parts, place.out), skip=skips[part])
                adapter = make_adapter(site).to(device, dtype).train(layer.module.training)
                layer.module.add_module(f"{part}_plugin", adapter)
                tap = Tap(adapter, placement, _joints(parts.model_type, place))
                layer.module.__dict__.setdefault("plugin_taps", []).append(tap)
                tap.connect(layer.module)
                # looked at again before each pass: PEFT and quantisation swap modules after this
                layer.module.register_forward_pre_hook(tap.connect)
        from transformers import PreTrainedModel  # two seconds to load, and a list of methods needs no model

        for module in model.modules():
            holds = isinstance(module, PreTrainedModel) and any(isinstance(part, Adapter) for part in module.modules())
            if holds and "save_pretrained" not in module.__dict__:
                module.__dict__["save_pretrained"] = _SaysWhatIsLacking(module)
    except BaseException:
        detach(model)
        raise
    return adapters(model)


def detach(model: nn.Module) -> None:
    """Remove every plug-in and hook; what is left is the base model, with the bits its weights have now.

    Weights that ``load_plugins`` froze stay frozen.
    """
    for module in model.modules():
        module.__dict__.pop("plugin_taps", None)
        if isinstance(module.__dict__.get("save_pretrained"), _SaysWhatIsLacking):
            del module.__dict__["save_pretrained"]
        _unhook(module, lambda hook: isinstance(getattr(hook, "__self__", None), Tap))
        for part in PARTS:
            if isinstance(getattr(module, f"{part}_plugin", None), Adapter):
                delattr(module, f"{part}_plugin")


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The plug-ins of a model by name, in layer order; empty where there is none."""
    by_name = {}
    for layer in anatomy(model).layers:
        for part in PARTS:
            adapter = getattr(layer.module, f"{part}_plugin", None)
            if isinstance(adapter, Adapter):
                by_name[f"{layer.name}.{part}_plugin"] = adapter
    return by_name


def set_domain(model: nn.Module, name: str | None) -> None:
    """Make the model read as it did when it had learnt domain ``name``; None: as the base model, bit for bit.

    Raises ``EunoeError`` if the model has no plug-ins or has not learnt ``name``.

    Example: ``load_plugins(model, "runs/mine/sequences/cpt.given.seed0/plugins"); set_domain(model, "claims")``.
    """
    shared = active(model)
    learnt = [shared.domains[i] for i in shared.finished]
    if name is not None and name not in learnt:
        raise unknown(name, learnt, "learnt domain")
    shared.domain = None if name is None else shared.domains.index(name)
    shared.s = shared.s_max


def grow(model: nn.Module, *, attention_size: int | None = None, ffn_size: int | None = None) -> None:
    """Give every plug-in fresh inner units, up to these sizes (None: as it is), without touching old ones.

    Earlier domains compute the same bits as before; the next domain may use all. Draws the new weights from torch's
    generator. Raises ``EunoeError`` without plug-ins, for a size that is not larger, and while a domain is being learnt.
    """
    shared = active(model)
    if shared.running is not None:
        raise EunoeError(f"domain {shared.domains[shared.running]!r} is being learnt; plug-ins grow between domains.")
    for name, adapter in adapters(model).items():
        wanted = attention_size if name.endswith("attention_plugin") else ffn_size
        if wanted is not None and wanted <= adapter.size:
            raise EunoeError(f"{name} has {adapter.size} inner units and cannot grow to {wanted}; give a larger size.")
    for name, adapter in adapters(model).items():
        wanted = attention_size if name.endswith("attention_plugin") else ffn_size
        if wanted is not None:
            adapter.grow(wanted - adapter.size)


def add_domains(model: nn.Module, names: Iterable[str]) -> None:
    """Add further domains, to be learnt after those that the plug-ins know; what these compute stays.

    Raises ``EunoeError`` for a name that is not allowed, that the plug-ins know already, or that is given twice.
    """
    shared = active(model)
    domains = (*shared.domains, *names)
    twice = sorted({name for name in domains if domains.count(name) > 1})
    if twice:
        raise EunoeError(
            f"{', '.join(twice)} cannot be added: known already to the plug-ins ({', '.join(shared.domains) or 'none'}), "
            "or given twice. Give each further domain a name of its own."
        )
    check_names(domains, "domain")
    shared.domains = domains
    for adapter in adapters(model).values():
        for mask in adapter.masks().values():
            known, width = mask.bits.shape
            # rows of the learnt domains stay where they are, so their numbers do too
            mask.bits = torch.cat([mask.bits, mask.bits.new_zeros(len(shared.domains) - known, width)])


def active(model: nn.Module) -> Active:
    """What the plug-ins of ``model`` share: its domains and which of them is read. Raises ``EunoeError`` without plug-ins."""
    return _one(model).active


def placement_of(model: nn.Module) -> str:
    """Where the model's plug-ins stand: a name of ``PLACEMENTS``."""
    _one(model)
    return _taps(model)[0].placement


def refuse_skip(parts: Anatomy, placement: str, part: str, skip: bool) -> None:
    """Raises ``EunoeError`` for a skip that the plug-in of ``part`` cannot have, or cannot do without."""
    place = PLACEMENTS[placement][part]
    out = getattr(parts, place.out)
    if skip and out != parts.width:
        raise EunoeError(
            f"skip is true, but the {part} plug-in of placement {placement} reads {parts.width} numbers and gives "
            f"{out} on a {parts.model_type} model: there is nothing to add x to. Set skip to auto."
        )
    if not skip and place.reads is None:
        raise EunoeError(
            f"skip is false, but a plug-in of placement {placement} takes the place of its sub-layer's result, which "
            "would be lost. Set skip to auto, or choose parallel_clean, which has no skip."
        )


def _joints(model_type: str, place: Place) -> tuple[tuple[str, str], ...]:
    """What ``Tap.joints`` is for a place in the layers of a family."""

    def name(field: str) -> str:
        places = getattr(FAMILIES[model_type], field)
        return str(places[0] if isinstance(places, tuple) else places)

    if place.reads is None:
        return (("through", name(place.writes)),)
    return (("see", name(place.reads)), ("add_to_input" if place.to_input else "add_to_output", name(place.writes)))


def _device(layer: nn.Module, name: str) -> torch.device:
    """Where a layer computes: accelerate keeps offloaded weights on ``meta`` and moves them there for each pass."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    weights = next(layer.parameters()).device
    if weights.type == "meta":
        raise EunoeError(
            f"{name} has no weights (device meta), so plug-ins cannot be attached. Load the model's weights first; "
            "from_pretrained(..., device_map=...) may offload them."
        )
    return weights


def _unhook(module: nn.Module, wanted: Callable[[Any], bool]) -> None:
    """Remove the hooks that ``wanted`` says. By hook and not by handle: a swapped module has hooks without a handle."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if wanted(hook)]:
            del hooks[key]


class _SaysWhatIsLacking:
    """Stands before ``save_pretrained`` of a model with plug-ins, whose file can hold neither masks nor domains."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            "this model has plug-ins: save_pretrained writes their weights but neither masks nor domains, and "
            "from_pretrained reads the base model alone. Write the plug-ins with "
            "eunoe.plugins.files.save_plugins(model, FOLDER), to a folder of their own.",
            stacklevel=2,
        )
        return type(self.model).save_pretrained(self.model, *args, **kwargs)


def _taps(model: nn.Module) -> list[Tap]:
    return [tap for module in model.modules() for tap in module.__dict__.get("plugin_taps", ())]


def _one(model: nn.Module) -> Adapter:
    for adapter in adapters(model).values():
        return adapter
    raise EunoeError(f"{type(model).__name__} has no plug-ins: load_plugins(model, folder) attaches saved ones.")


__all__ = [
    "PARTS",
    "PLACEMENTS",
    "Adapter",
    "Place",
    "Site",
    "active",
    "adapters",
    "add_domains",
    "detach",
    "grow",
    "inject",
    "placement_of",
    "refuse_skip",
    "set_domain",
]
