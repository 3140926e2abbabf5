"""The CPT authors' checkpoints (https://github.com/UIC-Liu-Lab/CPT) as our plug-ins.

The release saves one state dict of its edited RoBERTa: ``...adapter_mask.fc1`` and ``fc2`` are the plug-in's two layers,
``efc1`` and ``efc2`` its mask embeddings, one row a domain. Where they stand tells the placement: the attention plug-in of
``parallel`` lies in ``attention.self``, that of ``sequential`` in ``attention.output``.

What we keep of it: the plug-ins' weights, and each domain's hard mask, ``e > 0``, as bits. What we leave: everything else
in the file. The release loads only plug-ins into the next domain and into end tasks, over the base RoBERTa; the
LayerNorms and the LM head that it trained on the way are thrown away (papers: the released numbers come from that too). Base
weights that the file has and that differ from the model's are named, as a file for another base model would go unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.models.anatomy import Anatomy, anatomy
from eunoe.models.files import odd
from eunoe.optim.names import is_constant
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.inject import PARTS, PLACEMENTS, Site, detach, inject
from eunoe.plugins.task_mask import Active, hard, pack, refuse_s_max
from eunoe.recipe import check_names

_PLUGIN = re.compile(
    r"(?P<prefix>.*?)encoder\.layer\.(?P<layer>\d+)\.(?P<part>attention\.self|attention\.output|output)"
    r"\.adapter_mask\.(?P<key>(?:fc1|fc2)\.(?:weight|bias)|(?:efc1|efc2)\.weight)"
)
_RENAMED = (("attention.self.self_attn.", "attention.self."), ("self_output.", ""))
"""Parts of base weights' names in the release and in transformers."""
_REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""What a plug-in's weights may be: cast to ours they keep their value, where a complex one would lose its imaginary part."""


@dataclass(frozen=True)
class Imported:
    """What ``import_cpt`` found in a checkpoint besides the plug-ins it attached."""

    placement: str
    sizes: dict[str, int]
    """Inner units of the plug-ins: part -> size."""
    rows: int
    """Domains that the mask embeddings have rows for."""
    differs: tuple[str, ...]
    """Weights of the file that the model has too, but with other numbers, under the model's names."""
    unknown: tuple[str, ...]
    """Names in the file that are neither a plug-in's nor the model's."""


def import_cpt(model: nn.Module, tensors: Mapping[str, Tensor], domains: list[str], s_max: float = 400.0) -> Imported:
    """Attach the plug-ins of a released checkpoint to ``model``, all ``domains`` learnt; ``save_plugins`` then keeps them.

    ``tensors`` is the checkpoint's state dict; ``domains`` names the rows of its mask embeddings in the order they were
    learnt, and may name fewer than there are: rows of domains not reached yet are random numbers. The model is frozen, as
    by ``load_plugins``. Raises ``EunoeError`` for a name that is not allowed, a model that is not whole in memory, and
    plug-in tensors that are missing, too many, of another model's shapes, not real numbers, not dense or not finite; the
    model then stays as it was.

    >>> import_cpt(model, read_weights(Path("pytorch_model.bin")), ["restaurant", "ai", "acl", "news"])  # doctest: +SKIP
    """
    refuse_s_max(s_max, "s_max")
    check_names(domains, "domain")
    plugins, placement, prefix = _plugins(tensors)
    flat = [key for key, tensor in plugins.items() if ".efc" in key and tensor.dim() != 2]
    if flat:
        raise EunoeError(f"{_some(flat)} must have a row a domain and a column a unit: {flat[0]} has shape {tuple(plugins[flat[0]].shape)}"
                         ". Give the file as the authors' code wrote it.")  # fmt: skip
    rows = next((len(tensor) for key, tensor in plugins.items() if ".efc1." in key), 0)
    if not 1 <= len(domains) <= rows:
        raise EunoeError(f"the file has masks of {rows} domains, and {len(domains)} names were given: name the domains in the order "
                         "they were learnt, each once.")  # fmt: skip
    active = Active(domains=tuple(domains), s=s_max, s_max=s_max, finished=list(range(len(domains))))
    sizes = {}
    for part in PARTS:
        first = plugins.get(f"encoder.layer.0.{part}_plugin.fc1.weight")
        if first is None or first.dim() != 2:
            raise EunoeError(f"the file has no {part.replace('_', '-')} plug-in in layer 0: is it whole?")
        sizes[part] = len(first)
    parts = anatomy(model)
    _refuse_others(_wanted(parts, placement, sizes, rows), plugins)
    state = dict(model.state_dict())
    if any(tensor.device.type == "meta" for tensor in state.values()):
        raise EunoeError(
            "the model is not whole in memory (device meta): load it without offloading, to compare its weights."
        )
    ours = next(f"{name}." if name else "" for name, module in model.named_modules() if module is parts.base)
    differs, unknown = _others(state, tensors, prefix, ours)

    def make(site: Site) -> Adapter:
        return Adapter(site.width, sizes[site.part], active, out=site.out, skip=site.skip)

    with torch.random.fork_rng(devices=[]):
        attached = inject(model, parts, make, placement=placement)
    try:
        _fill(attached, plugins, len(domains))
    except BaseException:
        detach(model)
        raise
    model.requires_grad_(False)
    return Imported(placement, sizes, rows, differs, unknown)


def _plugins(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, str]:
    """The plug-ins' tensors under our names, their placement, and what stands before the base model's names in the file."""
    plugins: dict[str, Tensor] = {}
    prefixes: set[str] = set()
    attention: set[str] = set()
    for name, tensor in tensors.items():
        if why := odd(tensor):
            raise EunoeError(f"{visible(name, 200)} is {why}; numbers that lie whole in the file are needed. Give the file as the "
                             "authors' code wrote it.")  # fmt: skip
        match = _PLUGIN.fullmatch(name)
        if not match:
            continue
        if tensor.dtype not in _REAL:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in _REAL)
            raise EunoeError(f"{visible(name, 200)} holds {str(tensor.dtype).removeprefix('torch.')}, where a plug-in has {kinds}. "
                             "Give the file as the authors' code wrote it.")  # fmt: skip
        part = "feed_forward" if match["part"] == "output" else "attention"
        if part == "attention":
            attention.add(match["part"])
        prefixes.add(match["prefix"])
        plugins[f"encoder.layer.{match['layer']}.{part}_plugin.{match['key']}"] = tensor.detach()
    if not plugins:
        raise EunoeError("the file has no CPT plug-in: names like roberta.encoder.layer.0.output.adapter_mask.fc1.weight are needed; "
                         f"it has {_some(tensors) or 'nothing'}.")  # fmt: skip
    if len(prefixes) > 1 or len(attention) > 1:
        raise EunoeError(f"the file holds plug-ins of more than one model or placement (below {_some(prefixes)}; attention plug-ins in "
                         f"{_some(attention)}). Give a checkpoint of one.")  # fmt: skip
    return plugins, "parallel" if attention == {"attention.self"} else "sequential", prefixes.pop()


def _wanted(parts: Anatomy, placement: str, sizes: Mapping[str, int], rows: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that the plug-ins of this model have in a released file, by our names."""
    wanted: dict[str, tuple[int, ...]] = {}
    for layer in parts.layers:
        for part, size in sizes.items():
            out = getattr(parts, PLACEMENTS[placement][part].out)
            name = f"{layer.name}.{part}_plugin."
            wanted |= {f"{name}fc1.weight": (size, parts.width), f"{name}fc1.bias": (size,)}
            wanted |= {f"{name}fc2.weight": (out, size), f"{name}fc2.bias": (out,)}
            wanted |= {f"{name}efc1.weight": (rows, size), f"{name}efc2.weight": (rows, out)}
    return wanted


def _refuse_others(wanted: Mapping[str, tuple[int, ...]], plugins: Mapping[str, Tensor]) -> None:
    """Raises ``EunoeError`` for plug-ins that are not this model's, or not finite; before memory is taken for them."""
    lacking, strange = wanted.keys() - plugins.keys(), plugins.keys() - wanted.keys()
    if lacking or strange:
        raise EunoeError(f"the file's plug-ins are not those of this model: missing {_some(lacking) or 'none'}; unknown "
                         f"{_some(strange) or 'none'}. Give the model that they were trained on as --model.")  # fmt: skip
    wrong = [key for key, shape in wanted.items() if tuple(plugins[key].shape) != shape]
    if wrong:
        raise EunoeError(f"{_some(wrong)} do not fit this model: {wrong[0]} has shape {tuple(plugins[wrong[0]].shape)}, needed is "
                         f"{wanted[wrong[0]]}. Give the model that they were trained on.")  # fmt: skip
    _refuse_infinite(key for key, tensor in plugins.items() if not tensor.isfinite().all())


def _refuse_infinite(names: Iterable[str]) -> None:
    broken = list(names)
    if broken:
        raise EunoeError(f"{_some(broken)} hold numbers that are not finite. Every domain would read them through its masks, as 0 * nan "
                         "is nan: the file is damaged or its training failed. Give an undamaged one.")  # fmt: skip


def _fill(attached: Mapping[str, Adapter], plugins: Mapping[str, Tensor], domains: int) -> None:
    """Copy weights, and the masks of the first ``domains``, into the plug-ins."""
    for name, adapter in attached.items():
        weights = {key: adapter.get_parameter(key) for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
        with torch.no_grad():
            for key, weight in weights.items():
                weight.copy_(plugins[f"{name}.{key}"])
        _refuse_infinite(f"{name}.{key}" for key, weight in weights.items() if not weight.isfinite().all())
        for fc, mask in (("fc1", adapter.mask1), ("fc2", adapter.mask2)):
            for i, row in enumerate(plugins[f"{name}.e{fc}.weight"][:domains]):
                mask.restore(i, pack(hard(row)).to(mask.bits.device))


def _others(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], theirs: str, ours: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of what is no plug-in: the model's weights with other numbers, and names that the model does not have.

    ``theirs`` and ``ours`` stand before a base weight's name in the file and in the model.
    """
    differs, unknown = [], []
    for name, tensor in tensors.items():
        if _PLUGIN.fullmatch(name) or is_constant(name):
            continue
        if name.startswith(theirs):
            own = ours + name.removeprefix(theirs)
        else:  # beside the base model: the LM head
            own = name.removeprefix(theirs.removesuffix(ours))
        for old, new in _RENAMED:
            own = own.replace(old, new)
        if own not in state:
            unknown.append(name)
        elif not _equal(state[own], tensor):
            differs.append(own)
    return tuple(differs), tuple(unknown)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """The same numbers, but for rounding where one of the two is kept in fewer bits."""
    if ours.shape != theirs.shape or ours.is_complex() != theirs.is_complex():
        return False
    cast = theirs.to(ours.device).to(ours.dtype)
    return torch.equal(ours, cast) or torch.equal(ours.to(theirs.dtype).to(ours.dtype), cast)


def _some(names: Iterable[str], most: int = 4) -> str:
    """The first of the names, fit for a terminal, and how many more there are."""
    listed = sorted(names)
    shown = ", ".join(visible(name, 200) for name in listed[:most])
    return shown + f" and {len(listed) - most} more" * (len(listed) > most)


__all__ = ["Imported", "import_cpt"]
