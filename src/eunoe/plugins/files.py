"""Save plug-ins to a folder and attach them again, in the file layout of PEFT.

``adapter_config.json`` and ``adapter_model.safetensors``; tensor names count from the base model, so a folder saved from a
masked LM loads into a classifier of the same model. It holds what the learnt domains read: the plug-ins' weights and the
bits of the hard masks. A domain that is still being learnt has no hard mask and is left out; a run keeps it in its
checkpoints. The config is written last and holds the weights' SHA-256, so that one flipped bit is seen when they are
loaded.

A folder may come from anyone. What its config asks for is worked out as names and shapes and held against the header of
the weights, before any memory is taken for either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor, nn

from eunoe.atomic import write_bytes, write_text
from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.lookup import lookup
from eunoe.models.anatomy import Anatomy, anatomy
from eunoe.plugins.adapter import ACTIVATIONS, INITS, Adapter
from eunoe.plugins.inject import (
    PARTS,
    PLACEMENTS,
    Site,
    active,
    adapters,
    detach,
    inject,
    placement_of,
    refuse_skip,
)
from eunoe.plugins.task_mask import Active, OpenMask, TaskMask, packed_bytes
from eunoe.recipe import as_path, check_names

KIND = "CL_PLUGIN"
"""What ``peft_type`` says in our config."""
LARGEST_CONFIG = 4 << 20
"""Bytes of an ``adapter_config.json``; ours have a few hundred."""
MOST_GROWN, MOST_DOMAINS = 1_000, 10_000
"""How often a plug-in may have grown, and how many domains it may have learnt: far more than is of use, and soon read."""
_SHAPE = ("size", "grown", "skip")
_PREFIX = "base_model.model."
_FLOATS = ("F64", "F32", "F16", "BF16")


def save_plugins(model: nn.Module, folder: str | Path) -> None:
    """Write the plug-ins and the learnt domains, and nothing of the base model, to ``folder`` (made where missing).

    Each file appears whole or not at all, the config last. Raises ``EunoeError`` without plug-ins or a learnt domain, for a
    domain's name that is not allowed, for plug-ins with soft masks or capsules (hat, bcl, classic), for weights that are not
    finite or not in memory, and for a folder that holds a model or an adapter of PEFT: transformers would take our config for
    PEFT's and fail to load the model.
    """
    shared, placement = active(model), placement_of(model)
    learnt = shared.finished
    if not learnt:
        raise EunoeError(
            f"no plug-ins are written to {folder}: of their domains ({', '.join(shared.domains) or 'none'}) none is "
            "learnt yet. Learn one to its end first; a run writes them by itself."
        )
    check_names([shared.domains[i] for i in learnt], "domain")
    if any(
        type(adapter) is not Adapter or type(adapter.mask1) not in (TaskMask, OpenMask)
        for adapter in adapters(model).values()
    ):
        raise EunoeError(
            f"nothing is written to {folder}: the format holds CPT's plug-ins with their hard masks, and these have soft masks "
            "or capsules. Read their domains through the run that learnt them."
        )
    _refuse_others(Path(folder))
    tensors = {}
    for name, adapter in adapters(model).items():
        for key, tensor in _tensors(adapter, learnt):
            if tensor.device.type == "meta":
                raise EunoeError(f"{name}.{key} is offloaded (device meta) and cannot be written: load the plug-ins into "
                                 "a model that is whole in memory, and save them from there.")  # fmt: skip
            if not tensor.isfinite().all():
                raise EunoeError(f"{name}.{key} has numbers that are not finite, which every domain would read: nothing "
                                 f"is written to {folder}. Load the plug-ins of an earlier state.")  # fmt: skip
            tensors[f"{_PREFIX}{name}.{key}"] = tensor.detach().contiguous()
    parts = anatomy(model)
    first = {part: adapters(model)[f"{parts.layers[0].name}.{part}_plugin"] for part in PARTS}
    # packed in memory first, because the config beside it names its hash
    packed = pack_tensors(tensors, metadata={"format": "pt"})
    config = {
        "peft_type": KIND,
        "task_type": None,
        "base_model_name_or_path": parts.base.name_or_path or None,
        "inference_mode": True,
        "model_type": parts.model_type,
        "placement": placement,
        **{f"{part}_{key}": value for part, adapter in first.items() for key, value in _shape(adapter).items()},
        "activation": first["attention"].activation,
        "init": first["attention"].init,
        "s_max": shared.s_max,
        "domains": [shared.domains[i] for i in learnt],
        "weights_sha256": hashlib.sha256(packed).hexdigest(),
    }
    config_file, weights_file = saved_files(folder)
    write_bytes(weights_file, packed)
    write_text(config_file, json.dumps(config, indent=2) + "\n")


def saved_files(folder: str | Path) -> list[Path]:
    """The two files that ``save_plugins`` writes to ``folder``: config and weights."""
    return [Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"]


def load_plugins(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> None:
    """Attach the plug-ins that ``save_plugins`` wrote; they are off until ``set_domain``. Draws no random number.

    The whole model is frozen, plug-ins, base and head, as PEFT freezes it for inference: a step on any weight that a learnt
    domain reads would change what was learnt. ``trainable=True`` leaves the base and the head as they are and lets the
    plug-ins' weights train, without protection of what the domains learnt (``eunoe run`` protects it, with ``plugins:``).
    The mask embeddings stay frozen: learnt domains read bits. A domain that has no unit among grown ones skips those, so
    with DistributedDataParallel grown plug-ins need ``find_unused_parameters=True``.

    Plug-ins go to the device that their layer computes on, so a model that accelerate spreads or offloads is loaded first.
    PEFT's adapters may be attached, merged or unloaded before or after.

    Raises ``EunoeError`` where the folder, its files or their shapes do not fit this model, the weights are not those that
    were saved, or the model has no weights (device meta). Whatever is raised, the model stays as it was.

    >>> model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", device_map="auto")  # doctest: +SKIP
    >>> load_plugins(model, "runs/mine/sequences/cpt.given.seed0/plugins")  # doctest: +SKIP
    >>> set_domain(model, "claims")  # doctest: +SKIP
    """
    path = as_path(folder, "the folder of plug-ins")
    config = _config(path)
    parts = anatomy(model)
    if config["model_type"] != parts.model_type:
        made_for = visible(config["base_model_name_or_path"] or "the model they were trained on", 100)
        raise EunoeError(
            f"the plug-ins of {path} are for a {config['model_type']!r} model, this one is {parts.model_type!r}: "
            f"load them into {made_for}."
        )
    for part in PARTS:
        refuse_skip(parts, config["placement"], part, config[f"{part}_skip"])
    tensors = _weights(path, config["weights_sha256"], _wanted(parts, config))
    domains = tuple(config["domains"])
    shared = Active(domains=domains, s=config["s_max"], s_max=config["s_max"], finished=list(range(len(domains))))

    def make(site: Site) -> Adapter:
        size, grown, skip = (config[f"{site.part}_{key}"] for key in _SHAPE)
        how = {key: config[key] for key in ("activation", "init")}
        made = Adapter(site.width, size, shared, out=site.out, skip=skip, **how)
        for units in grown:
            made.grow(units)
        return made

    # fresh plug-ins are drawn and then overwritten: the caller's random numbers stay as they were
    with torch.random.fork_rng(devices=[]):
        attached = inject(model, parts, make, placement=config["placement"])
    try:
        _fill(attached, tensors, shared, path)
    except BaseException:
        detach(model)
        raise
    if not trainable:
        model.requires_grad_(False)
    for adapter in attached.values():
        for mask in adapter.masks().values():
            mask.embedding.requires_grad_(False)


def _refuse_others(folder: Path) -> None:
    """Raises ``EunoeError`` for a folder that our config would spoil for transformers or PEFT."""
    config = saved_files(folder)[0]
    if (folder / "config.json").exists():
        raise EunoeError(f"{folder} holds a model (config.json): from_pretrained would take the plug-ins' "
                         f"{config.name} for PEFT's and fail. Save plug-ins to a folder of their own: {folder / 'plugins'}.")  # fmt: skip
    if config.exists():
        kind = _json(config).get("peft_type")
        if kind != KIND:
            raise EunoeError(f"{folder} holds an adapter of type {visible(repr(kind), 100)}, which would be overwritten. "
                             "Save plug-ins to a folder of their own.")  # fmt: skip


def _wanted(parts: Anatomy, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that plug-ins of this config have on this model, by its name in the file."""
    wanted: dict[str, tuple[int, ...]] = {}
    rows = len(config["domains"])
    for layer in parts.layers:
        for part in PARTS:
            out = getattr(parts, PLACEMENTS[config["placement"]][part].out)
            name = f"{_PREFIX}{layer.name}.{part}_plugin."
            wanted |= {f"{name}fc2.bias": (out,), f"{name}mask2.bits": (rows, packed_bytes(out))}
            for i, units in enumerate([config[f"{part}_size"], *config[f"{part}_grown"]]):
                block = f"{name}grown.{i - 1}." if i else name
                wanted |= {
                    f"{block}fc1.weight": (units, parts.width),
                    f"{block}fc1.bias": (units,),
                    f"{block}fc2.weight": (out, units),
                    f"{block}mask1.bits": (rows, packed_bytes(units)),
                }
    return wanted


def _shape(adapter: Adapter) -> dict[str, Any]:
    """What must be known of a plug-in to make one that its weights fit, under the names of ``_SHAPE``."""
    first, *grown = (mask.n for _, mask in adapter.inner())
    return dict(zip(_SHAPE, (first, grown, adapter.skip), strict=True))


def _fill(attached: dict[str, Adapter], tensors: dict[str, Tensor], shared: Active, path: Path) -> None:
    with torch.no_grad():
        for name, adapter in attached.items():
            for key, tensor in _tensors(adapter, shared.finished):
                if key.endswith(".bits"):
                    continue
                tensor.copy_(tensors[f"{_PREFIX}{name}.{key}"])
                if not tensor.isfinite().all():
                    raise EunoeError(f"the plug-ins of {path} hold numbers that are not finite in {tensor.dtype}, first in "
                                     f"{name}.{key}: every domain would read them, as 0 * nan is nan. Save undamaged ones.")  # fmt: skip
            for key, mask in adapter.masks().items():
                for domain, bits in enumerate(tensors[f"{_PREFIX}{name}.{key}.bits"]):
                    mask.restore(domain, bits.to(mask.bits.device))


def _tensors(adapter: Adapter, learnt: list[int]) -> Iterator[tuple[str, Tensor]]:
    """The plug-in's weights, and of each mask the bits of the learnt domains, side by side."""
    masks = adapter.masks()
    yield from ((key, p) for key, p in adapter.named_parameters() if key.removesuffix(".embedding") not in masks)
    yield from ((f"{key}.bits", mask.bits[learnt]) for key, mask in masks.items())


def _json(file: Path) -> dict[str, Any]:
    with reading(
        file, "Pass a folder that save_plugins wrote; it holds adapter_config.json and adapter_model.safetensors."
    ):
        size = file.stat().st_size
        if size > LARGEST_CONFIG:
            raise EunoeError(f"{file} has {size:,} bytes, a plug-in's config has at most {LARGEST_CONFIG:,}: save_plugins "
                             "did not write it. Save the plug-ins again.")  # fmt: skip
        config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise EunoeError(f"{file} describes {type(config).__name__!r}, not {KIND!r}: save_plugins did not write it.")
    return config


def _config(path: Path) -> dict[str, Any]:
    file = saved_files(path)[0]
    config = {"weights_sha256": None, **_json(file)}  # older folders have none
    if config.get("peft_type") != KIND:
        kind = visible(repr(config.get("peft_type")), 100)
        raise EunoeError(
            f"{file} describes {kind}, not {KIND!r}: save_plugins did not write it. Load it with the peft library."
        )
    missing = sorted(_VALUES.keys() - config.keys())
    if missing:
        raise EunoeError(f"{file} lacks {', '.join(missing)}: it was cut or edited. Save the plug-ins again.")
    for key, (right, allowed) in _VALUES.items():
        if not right(config[key]):
            received = visible(repr(config[key]), 100)
            raise EunoeError(
                f"{file}: {key} is {received}, but must be {allowed}: it was edited. Save the plug-ins again."
            )
    try:
        check_names(config["domains"], "domain")
    except EunoeError as error:
        raise EunoeError(f"{file}: {error} Rename the domain there.") from None
    lookup(PLACEMENTS, config["placement"], "placement")
    lookup(ACTIVATIONS, config["activation"], "activation")
    lookup(INITS, config["init"], "init")
    return config


def _word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4_096


def _word_or_none(value: Any) -> bool:
    return value is None or _word(value)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1  # true and false are integers to Python


def _list(value: Any, right: Callable[[Any], bool], most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(right, value))


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_type": (_word, "a word"),
    "base_model_name_or_path": (_word_or_none, "a word or null"),
    "placement": (_word, "a word"),
    "activation": (_word, "a word"),
    "init": (_word, "a word"),
    "s_max": (lambda v: type(v) in (int, float) and 1 <= v <= 1e30, "a number of 1 or more, at most 1e30"),
    "domains": (
        lambda v: _list(v, _word, MOST_DOMAINS) and 1 <= len(v) == len(set(v)),
        f"a list of names, each once, at least one and at most {MOST_DOMAINS:,}",
    ),
    "weights_sha256": (_word_or_none, "a word or null"),
    **{f"{part}_size": (_count, "a whole number of 1 or more") for part in PARTS},
    **{
        f"{part}_grown": (
            lambda v: _list(v, _count, MOST_GROWN),
            f"a list of whole numbers of 1 or more, at most {MOST_GROWN:,} of them",
        )
        for part in PARTS
    },
    **{f"{part}_skip": (lambda v: isinstance(v, bool), "true or false") for part in PARTS},
}
"""Key of ``adapter_config.json`` -> whether a value is right, and what it must be."""


def _weights(path: Path, sha256: str | None, wanted: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The saved tensors, read once their header has just the names and shapes ``wanted``; a given hash must be theirs."""
    file = saved_files(path)[1]
    with reading(file, "Save the plug-ins again."):
        with safe_open(file, framework="pt") as opened:
            # the header first: a file of other shapes is refused before its numbers take memory
            header = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            stored = {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in header.items()}
        wrong = sorted(wanted.keys() ^ stored.keys())
        wrong += [name for name in wanted if name in stored and not _fits(name, wanted[name], *stored[name])]
        if wrong:
            have, need = stored.get(wrong[0], "missing"), wanted.get(wrong[0], "none")
            raise EunoeError(
                f"the plug-ins of {visible(path)} do not fit this model: {len(wrong)} tensors differ in name, shape or type, first "
                f"{visible(repr(wrong[0]), 200)}: {have} in the file, {need} by the config and the model. Load them into a "
                "model with the same number of layers and the same width."
            )
        packed = file.read_bytes()
        if sha256 is not None and hashlib.sha256(packed).hexdigest() != sha256:
            raise EunoeError(
                f"{file} is not what save_plugins wrote: its SHA-256 differs from the one in adapter_config.json. It is "
                "damaged or of another save. Copy the folder or save the plug-ins again."
            )
        tensors: dict[str, Tensor] = load_tensors(packed)
        return tensors


def _fits(name: str, wanted: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> bool:
    return shape == wanted and (dtype == "U8" if name.endswith(".bits") else dtype in _FLOATS)


__all__ = ["load_plugins", "save_plugins", "saved_files"]
