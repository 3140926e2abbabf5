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
from eunoe.models.anatomy import anatomy
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.inject import PARTS, Site, adapters, detach, inject
from eunoe.plugins.task_mask import Active, hard, pack, refuse_s_max

_PLUGIN = re.compile(
    r"(?P<prefix>.*?)encoder\.layer\.(?P<layer>\d+)\.(?P<part>attention\.self|attention\.output|output)"
    r"\.adapter_mask\.(?P<key>(?:fc1|fc2)\.(?:weight|bias)|(?:efc1|efc2)\.weight)"
)
_RENAMED = (("attention.self.self_attn.", "attention.self."), ("self_output.", ""))
"""Parts of base weights' names in the release and in transformers."""


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
    learnt, and may name fewer than there are: rows of domains not reached yet are random numbers. Raises ``EunoeError``
    where plug-in tensors are missing, too many, of another model's shapes or not finite; the model then stays as it was.

    >>> import_cpt(model, read_weights(Path("pytorch_model.bin")), ["restaurant", "ai", "acl", "news"])  # doctest: +SKIP
    """
    refuse_s_max(s_max, "s_max")
    found: dict[str, Tensor] = {}
    prefixes: set[str] = set()
    attention: set[str] = set()
    for name, tensor in tensors.items():
        match = _PLUGIN.fullmatch(name)
        if match:
            part = "feed_forward" if match["part"] == "output" else "attention"
            if part == "attention":
                attention.add(match["part"])
            prefixes.add(match["prefix"])
            found[f"encoder.layer.{match['layer']}.{part}_plugin.{match['key']}"] = tensor
    if not found:
        raise EunoeError("the file has no CPT plug-in: names like roberta.encoder.layer.0.output.adapter_mask.fc1.weight are needed; "
                         f"it has {_some(tensors) or 'nothing'}.")  # fmt: skip
    if len(prefixes) > 1 or len(attention) > 1:
        raise EunoeError(f"the file holds plug-ins of more than one model or placement (below {_some(prefixes)}; attention plug-ins in "
                         f"{_some(attention)}). Give a checkpoint of one.")  # fmt: skip
    placement = "parallel" if attention == {"attention.self"} else "sequential"
    flat = [key for key, tensor in found.items() if ".efc" in key and tensor.dim() != 2]
    if flat:
        raise EunoeError(f"{_some(flat)} must have a row a domain and a column a unit: {flat[0]} has shape {tuple(found[flat[0]].shape)}. "
                         "Give the file as the authors' code wrote it.")  # fmt: skip
    rows = next((len(tensor) for key, tensor in found.items() if ".efc1." in key), 0)
    twice = sorted({name for name in domains if domains.count(name) > 1})
    if twice or not 1 <= len(domains) <= rows:
        raise EunoeError(f"the file has masks of {rows} domains, and {len(domains)} names were given{', some twice' * bool(twice)}: "
                         "name the domains in the order they were learnt, each once.")  # fmt: skip
    active = Active(domains=tuple(domains), s=s_max, s_max=s_max)
    sizes = {}
    for part in PARTS:
        first = found.get(f"encoder.layer.0.{part}_plugin.fc1.weight")
        if first is None or first.dim() != 2:
            raise EunoeError(f"the file has no {part.replace('_', '-')} plug-in in layer 0: is it whole?")
        sizes[part] = len(first)

    def make(site: Site) -> Adapter:
        return Adapter(site.width, sizes[site.part], active, out=site.out, skip=site.skip)

    held = dict(model.state_dict())
    base = anatomy(model).base
    ours = next(f"{name}." if name else "" for name, module in model.named_modules() if module is base)
    with torch.random.fork_rng(devices=[]):
        inject(model, anatomy(model), make, placement=placement)
    try:
        _fill(adapters(model), found, rows, domains)
    except EunoeError:
        detach(model)
        raise
    active.finished = list(range(len(domains)))
    differs, unknown = _others(held, tensors, prefixes.pop(), ours)
    return Imported(placement, sizes, rows, differs, unknown)


def _fill(attached: Mapping[str, Adapter], found: Mapping[str, Tensor], rows: int, domains: list[str]) -> None:
    """Copy weights, and the masks of ``domains``, into the plug-ins."""
    wanted = {
        f"{name}.{key}": tuple(adapter.get_parameter(key).shape)
        for name, adapter in attached.items()
        for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    }
    masks = {f"{name}.efc1.weight": adapter.mask1.n for name, adapter in attached.items()}
    masks |= {f"{name}.efc2.weight": adapter.mask2.n for name, adapter in attached.items()}
    lacking = (wanted.keys() | masks.keys()) - found.keys()
    strange = found.keys() - wanted.keys() - masks.keys()
    if lacking or strange:
        raise EunoeError(f"the file's plug-ins are not those of this model: missing {_some(lacking) or 'none'}; unknown "
                         f"{_some(strange) or 'none'}. Give the model that they were trained on as --model.")  # fmt: skip
    wrong = [key for key, shape in wanted.items() if tuple(found[key].shape) != shape]
    wrong += [key for key, width in masks.items() if tuple(found[key].shape) != (rows, width)]
    if wrong:
        raise EunoeError(f"{_some(wrong)} do not fit this model: {wrong[0]} has shape {tuple(found[wrong[0]].shape)}, needed is "
                         f"{wanted.get(wrong[0]) or (rows, masks[wrong[0]])}. Give the model that they were trained on.")  # fmt: skip
    broken = [key for key, tensor in found.items() if not tensor.isfinite().all()]
    if broken:
        raise EunoeError(f"{_some(broken)} hold numbers that are not finite. Every domain would read them through its masks, as 0 * nan "
                         "is nan: the file is damaged or its training failed. Give a sound one.")  # fmt: skip
    with torch.no_grad():
        for key in wanted:
            plugin, _, weight = key.rpartition("_plugin.")
            attached[f"{plugin}_plugin"].get_parameter(weight).copy_(found[key])
        for name, adapter in attached.items():
            for fc, mask in (("fc1", adapter.mask1), ("fc2", adapter.mask2)):
                for i, row in enumerate(found[f"{name}.e{fc}.weight"][: len(domains)]):
                    mask.restore(i, pack(hard(row)).to(mask.bits.device))


def _others(
    held: Mapping[str, Tensor], tensors: Mapping[str, Tensor], theirs: str, ours: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of what is no plug-in: the model's weights with other numbers, and names that the model does not have.

    ``theirs`` and ``ours`` stand before a base weight's name in the file and in the model.
    """
    differs, unknown = [], []
    for name, tensor in tensors.items():
        if _PLUGIN.fullmatch(name) or name.endswith("position_ids"):  # a buffer that transformers no longer saves
            continue
        if name.startswith(theirs):
            own = ours + name.removeprefix(theirs)
        else:  # beside the base model: the LM head
            own = name.removeprefix(theirs.removesuffix(ours))
        for old, new in _RENAMED:
            own = own.replace(old, new)
        if own not in held:
            unknown.append(name)
        elif not _equal(held[own], tensor.to(held[own].device)):
            differs.append(own)
    return tuple(differs), tuple(unknown)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """The same numbers, but for rounding where one of the two is kept in fewer bits."""
    return torch.equal(ours, theirs.to(ours.dtype)) or torch.equal(ours.to(theirs.dtype), theirs)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + f" and {len(listed) - 4} more" * (len(listed) > 4)


__all__ = ["Imported", "import_cpt"]
