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
plug-ins and the copied ``Active``, and the copy is independent of the original.

Saved in the file layout of PEFT (``adapter_config.json``, ``adapter_model.safetensors``), tensor names counted from the
base model, so a folder saved from a masked LM loads into a classifier of the same model. It holds what the learnt
domains read: the plug-ins' weights and the bits of the hard masks. A domain that is still being learnt has no hard mask
and is left out; a run keeps it in its checkpoints. The config is written last and holds the weights' SHA-256, so that one
flipped bit is seen when they are loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eunoe.atomic import write_bytes, write_text
from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown
from eunoe.models.anatomy import Anatomy, Layer, anatomy
from eunoe.plugins.adapter import ACTIVATIONS, INITS, Adapter
from eunoe.plugins.task_mask import Active

PARTS = ("attention", "feed_forward")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one plug-in of a layer reads and writes. The names are fields of ``models.anatomy.Layer``."""

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

    def __init__(self, adapter: Adapter, layer: Layer, placement: str, part: str) -> None:
        place = PLACEMENTS[placement][part]
        self.adapter = adapter
        self.placement = placement
        self.seen: Tensor | None = None
        writes = _module(layer, place.writes)
        self.handles: list[RemovableHandle] = []
        if place.reads is None:
            self.handles.append(writes.register_forward_hook(self.through))
            return
        self.handles.append(_module(layer, place.reads).register_forward_pre_hook(self.see))
        if place.to_input:
            self.handles.append(writes.register_forward_pre_hook(self.add_to_input))
        else:
            self.handles.append(writes.register_forward_hook(self.add_to_output))

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

    ``parts`` is ``anatomy(model)``; ``skip`` overrides the placement's inner skip. New weights go to the layer's device,
    in float32 (float64 on a float64 model). Raises ``EunoeError`` for an unknown placement, a skip that it cannot have,
    and a model that has plug-ins already.
    """
    places = lookup(PLACEMENTS, placement, "placement")
    skips = {part: place.skip if skip is None else skip for part, place in places.items()}
    for part in places:
        _refuse_skip(parts, placement, part, skips[part])
    if adapters(model):
        raise EunoeError(
            f"{type(model).__name__} has plug-ins already: detach(model) removes them, set_domain uses them."
        )
    for layer in parts.layers:
        like = next(layer.module.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        for part in PARTS:
            place = places[part]
            site = Site(part=part, width=parts.width, out=getattr(parts, place.out), skip=skips[part])
            adapter = make_adapter(site).to(like.device, dtype).train(layer.module.training)
            layer.module.add_module(f"{part}_plugin", adapter)
            layer.module.__dict__.setdefault("plugin_taps", []).append(Tap(adapter, layer, placement, part))
    return adapters(model)


def detach(model: nn.Module) -> None:
    """Remove every plug-in and hook; what is left is the base model, with the bits its weights have now."""
    for module in model.modules():
        for tap in module.__dict__.pop("plugin_taps", ()):
            for handle in tap.handles:
                handle.remove()
        for part in PARTS:
            if isinstance(getattr(module, f"{part}_plugin", None), Adapter):
                delattr(module, f"{part}_plugin")


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The plug-ins of a model by name, in layer order; empty where there is none."""
    found = {}
    for layer in anatomy(model).layers:
        for part in PARTS:
            adapter = getattr(layer.module, f"{part}_plugin", None)
            if isinstance(adapter, Adapter):
                found[f"{layer.name}.{part}_plugin"] = adapter
    return found


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


def save_plugins(model: nn.Module, folder: str | Path) -> None:
    """Write the plug-ins and the learnt domains, and nothing of the base model, to ``folder`` (made where missing).

    Each file appears whole or not at all, the config last. Raises ``EunoeError`` without plug-ins or a learnt domain.
    """
    plugin = _one(model)
    tensors, active, placement = {}, plugin.active, _taps(model)[0].placement
    learnt = active.finished
    if not learnt:
        raise EunoeError(
            f"no plug-ins are written to {folder}: of their domains ({', '.join(active.domains) or 'none'}) none is "
            "learnt yet. Learn one to its end first; a run writes them by itself."
        )
    for name, adapter in adapters(model).items():
        for key, tensor in _tensors(adapter, learnt):
            tensors[f"base_model.model.{name}.{key}"] = tensor.detach().contiguous()
    parts = anatomy(model)
    first = parts.layers[0].module
    packed = pack_tensors(tensors, metadata={"format": "pt"})
    config = {
        "peft_type": "CL_PLUGIN",
        "task_type": None,
        "base_model_name_or_path": parts.base.name_or_path or None,
        "inference_mode": True,
        "model_type": parts.model_type,
        "placement": placement,
        **{f"{part}_{key}": value for part in PARTS for key, value in _shape(getattr(first, f"{part}_plugin")).items()},
        "activation": plugin.activation,
        "init": plugin.init,
        "s_max": active.s_max,
        "domains": [active.domains[i] for i in learnt],
        "weights_sha256": hashlib.sha256(packed).hexdigest(),
    }
    config_file, weights_file = saved_files(folder)
    write_bytes(weights_file, packed)
    write_text(config_file, json.dumps(config, indent=2) + "\n")


def saved_files(folder: str | Path) -> list[Path]:
    """The two files that ``save_plugins`` writes to ``folder``: config and weights."""
    return [Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"]


def load_plugins(model: nn.Module, folder: str | Path) -> None:
    """Attach the plug-ins that ``save_plugins`` wrote; they are off until ``set_domain``. Draws no random number.

    Raises ``EunoeError`` where the folder, its files or their shapes do not fit this model, or the weights are not those
    that were saved; the model then stays as it was.
    """
    path = Path(folder)
    config = _config(path)
    parts = anatomy(model)
    if config["model_type"] != parts.model_type:
        raise EunoeError(
            f"the plug-ins of {path} are for a {config['model_type']!r} model, this one is {parts.model_type!r}: "
            f"load them into {config['base_model_name_or_path'] or 'the model they were trained on'}."
        )
    for part in PARTS:
        _refuse_skip(parts, config["placement"], part, config[f"{part}_skip"])
    tensors = _weights(path, config.get("weights_sha256"))
    units = max(max(config[f"{part}_size"], *config[f"{part}_grown"], 0) for part in PARTS)
    if units > max(
        (size for tensor in tensors.values() for size in tensor.shape), default=0
    ):  # before memory is asked for
        raise EunoeError(
            f"the plug-ins of {path} do not fit this model: {units} inner units, and no tensor is as large. Save the "
            "plug-ins again."
        )
    domains = tuple(config["domains"])
    active = Active(domains=domains, s=config["s_max"], s_max=config["s_max"], finished=list(range(len(domains))))

    def make(site: Site) -> Adapter:
        of = {key: config[f"{site.part}_{key}"] for key in ("size", "grown", "skip")}
        how = {key: config[key] for key in ("activation", "init")}
        made = Adapter(site.width, of["size"], active, out=site.out, skip=of["skip"], **how)
        for units in of["grown"]:
            made.grow(units)
        return made

    with torch.random.fork_rng(devices=[]):
        attached = inject(model, parts, make, placement=config["placement"])
    try:
        _fill(attached, tensors, active, path)
    except EunoeError:
        detach(model)
        raise


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
    """Make room for further domains, to be learnt after those that the plug-ins know; what these compute stays.

    Raises ``EunoeError`` for a name that the plug-ins know already or that is given twice.
    """
    shared = active(model)
    domains = (*shared.domains, *names)
    twice = sorted({name for name in domains if domains.count(name) > 1})
    if twice:
        raise EunoeError(
            f"{', '.join(twice)} cannot be added: known already to the plug-ins ({', '.join(shared.domains) or 'none'}), "
            "or given twice. Give each further domain a name of its own."
        )
    shared.domains = domains
    for adapter in adapters(model).values():
        for mask in adapter.masks().values():
            known, width = mask.bits.shape
            mask.bits = torch.cat([mask.bits, mask.bits.new_zeros(len(shared.domains) - known, width)])


def active(model: nn.Module) -> Active:
    """What the plug-ins of ``model`` share: its domains and which of them is read. Raises ``EunoeError`` without plug-ins."""
    return _one(model).active


def placement_of(model: nn.Module) -> str:
    """Where the model's plug-ins stand: a name of ``PLACEMENTS``."""
    _one(model)
    return _taps(model)[0].placement


def _refuse_skip(parts: Anatomy, placement: str, part: str, skip: bool) -> None:
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


_SHAPE = ("size", "grown", "skip")


def _shape(adapter: Adapter) -> dict[str, Any]:
    """What must be known of a plug-in to make one that its weights fit, under the names of ``_SHAPE``."""
    first, *grown = (mask.n for _, mask in adapter.inner())
    return dict(zip(_SHAPE, (first, grown, adapter.skip), strict=True))


def _fill(attached: dict[str, Adapter], tensors: dict[str, Tensor], active: Active, path: Path) -> None:
    wanted = {
        f"base_model.model.{name}.{key}": tensor
        for name, adapter in attached.items()
        for key, tensor in _tensors(adapter, active.finished)
    }
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [key for key in wanted.keys() & tensors.keys() if wanted[key].shape != tensors[key].shape]
    if wrong:
        raise EunoeError(
            f"the plug-ins of {path} do not fit this model: {len(wrong)} tensors differ in name or shape, first "
            f"{wrong[0]!r}. Load them into a model with the same number of layers and the same width."
        )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])
    for name, adapter in attached.items():
        for key, mask in adapter.masks().items():
            for domain, bits in enumerate(tensors[f"base_model.model.{name}.{key}.bits"]):
                mask.restore(domain, bits.to(mask.bits.device))


def _tensors(adapter: Adapter, learnt: list[int]) -> Iterator[tuple[str, Tensor]]:
    """The plug-in's weights, and of each mask the bits of the learnt domains, side by side."""
    masks = adapter.masks()
    yield from ((key, p) for key, p in adapter.named_parameters() if key.removesuffix(".embedding") not in masks)
    yield from ((f"{key}.bits", mask.bits[learnt]) for key, mask in masks.items())


def _config(path: Path) -> dict[str, Any]:
    file = saved_files(path)[0]
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EunoeError(
            f"cannot read {file}: {error}. Pass a folder that save_plugins wrote; it holds adapter_config.json and "
            "adapter_model.safetensors."
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "CL_PLUGIN":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise EunoeError(
            f"{file} describes {kind!r}, not 'CL_PLUGIN': save_plugins did not write it. Load it with the peft library."
        )
    missing = sorted(_VALUES.keys() - {"weights_sha256"} - config.keys())
    if missing:
        raise EunoeError(f"{file} lacks {', '.join(missing)}: it was cut or edited. Save the plug-ins again.")
    for key, (right, wanted) in _VALUES.items():
        if not right(config.get(key)):
            raise EunoeError(
                f"{file}: {key} is {config.get(key)!r}, but must be {wanted}: it was edited. Save the plug-ins again."
            )
    lookup(PLACEMENTS, config["placement"], "placement")
    lookup(ACTIVATIONS, config["activation"], "activation")
    lookup(INITS, config["init"], "init")
    return config


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _word_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1  # true and false are integers to Python


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_type": (_word, "a word"),
    "base_model_name_or_path": (_word_or_none, "a word or null"),
    "placement": (_word, "a word"),
    "activation": (_word, "a word"),
    "init": (_word, "a word"),
    "s_max": (lambda v: type(v) in (int, float) and 1 <= v < math.inf, "a number of 1 or more"),
    "domains": (
        lambda v: isinstance(v, list) and all(map(_word, v)) and len(set(v)) == len(v),
        "a list of names, each once",
    ),
    "weights_sha256": (_word_or_none, "a word or null"),
    **{f"{part}_size": (_count, "a whole number of 1 or more") for part in PARTS},
    **{
        f"{part}_grown": (lambda v: isinstance(v, list) and all(map(_count, v)), "a list of whole numbers of 1 or more")
        for part in PARTS
    },
    **{f"{part}_skip": (lambda v: isinstance(v, bool), "true or false") for part in PARTS},
}
"""Key of ``adapter_config.json`` -> whether a value is right, and what it must be. Older folders have no ``weights_sha256``."""


def _weights(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The saved tensors; where a hash is given, they must have it."""
    file = saved_files(path)[1]
    try:
        packed = file.read_bytes()
        if sha256 is not None and hashlib.sha256(packed).hexdigest() != sha256:
            raise EunoeError(
                f"{file} is not what save_plugins wrote: its SHA-256 differs from the one in adapter_config.json. It is "
                "damaged or of another save. Copy the folder or save the plug-ins again."
            )
        tensors: dict[str, Tensor] = load_tensors(packed)
        return tensors
    except (OSError, SafetensorError) as error:
        raise EunoeError(f"cannot read {file}: {error}. Save the plug-ins again.") from error


def _module(layer: Layer, name: str) -> nn.Module:
    found = getattr(layer, name)
    module: nn.Module = found[0] if isinstance(found, tuple) else found
    return module


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
    "load_plugins",
    "placement_of",
    "save_plugins",
    "saved_files",
    "set_domain",
]
