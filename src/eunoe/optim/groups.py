"""Parameter groups: which weights are pulled toward which anchor, and which decay.

RecAdam's script (https://github.com/Sanyuan-Chen/RecAdam) makes four groups, {trunk, head} x {decay, no decay}, finds
the trunk by the model type in the name and pairs weights with their pretrained values BY ORDER inside a group.
Different here: pairing is by name, so a checkpoint with other weights in between cannot shift the pairs; the trunk is
what the model itself calls its base model; and the anchor may be a file that is only mapped into memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.errors import EunoeError
from eunoe.foreign import reading
from eunoe.optim.names import is_constant, plain_name

Anchor = Mapping[str, Tensor] | str | Path | None


def anchored_groups(
    model: nn.Module, *, anchor: Anchor = None, weight_decay: float = 0.0, free: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Groups for ``RecAdam``: trunk and head, each with and without weight decay; empty ones are left out.

    anchor: where the pretrained values come from: None, the model as it is now (copied); a state dict; or a safetensors
    file or a checkpoint folder, mapped into memory, so that it takes no private memory. Its dtype and device may differ
    from the model's, and it may be saved with or without the base model's prefix (``bert.``). An anchor with fewer
    rows than its weight (tokens were added) anchors the old rows: embeddings only, and what has as many rows as they.
    free: parts of the trunk without an anchor, as names or beginnings of names with or without the prefix:
    ``free=("encoder.layer.11",)``. They learn as the head does, and what the anchor holds of them is not read.

    The trunk is the ``base_model`` of a transformers model (the whole model where there is none), also inside
    DataParallel, DistributedDataParallel and ``torch.compile``; the rest is the head, which has no anchor and so learns
    at the full learning rate from the first step, as in the release. An anchor that is given must fit the trunk: every weight
    of it that trains needs a value, and every name of the trunk in the anchor needs a weight or buffer. One exception:
    a whole pooler that only one of the two has (checkpoints of masked LMs and token classifiers have none) needs no
    ``free``; that of the model then learns as the head does. Names outside the trunk (``cls.``, ``lm_head.``) are not read. Biases and
    norm weights (one dimension) do not decay. Frozen weights are left out; tied weights appear once.

    Raises ``EunoeError`` where every weight is frozen, where the file cannot be read, and where names do not fit.

    >>> [len(g["params"]) for g in anchored_groups(nn.Linear(2, 2))]
    [1, 1]
    """
    source = _Source(anchor)
    trunk = _Trunk(model)
    parts = trunk.parts(free, source.names)
    rows = _grown(model, trunk, source)
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    missing: list[list[str]] = []
    for names, weight in _trainable(model):
        value = None
        if weight in trunk.weights and not any(_within(trunk.names_of(name), parts) for name in names):
            value = weight.detach() if anchor is None else _first(source, trunk, names)
            if value is None:
                missing.append(names)
            elif value.data_ptr() == weight.data_ptr():
                value = value.clone()  # ``model.state_dict()`` holds the weights themselves, which will move
        if value is not None:
            _refuse_fewer_rows(names[0], weight, value, rows)
        key = (value is None, _no_decay(weight))
        decay = 0.0 if key[1] else weight_decay
        group = groups.setdefault(key, {"params": [], "anchor": None if key[0] else [], "weight_decay": decay})
        group["params"].append((names[0], weight))
        if value is not None:
            group["anchor"].append(value)
    if all(group["anchor"] is None for group in groups.values()):
        raise EunoeError(
            f"no weight of the model has an anchor: the model has {_some(dict(model.named_parameters()))}; the anchor "
            f"has {_some(source.names)}. Give the checkpoint that the model was loaded from."
        )
    if anchor is not None:
        _refuse_gaps(trunk, source, missing, parts)
    return [groups[key] for key in sorted(groups)]


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for any optimizer: trainable weights that decay, and biases and norm weights (one dimension), that do not.

    >>> [(len(g["params"]), g["weight_decay"]) for g in param_groups(nn.Linear(2, 2), 0.1)]
    [(1, 0.1), (1, 0.0)]
    """
    groups: dict[bool, dict[str, Any]] = {}
    for names, weight in _trainable(model):
        key = _no_decay(weight)
        group = groups.setdefault(key, {"params": [], "weight_decay": 0.0 if key else weight_decay})
        group["params"].append((names[0], weight))
    return [groups[key] for key in sorted(groups)]


def _trainable(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Trainable weights, each once, with all its names: a tied weight has several and a checkpoint may hold any."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            names.setdefault(weight, []).append(name)
    if not names:
        raise EunoeError("every weight of the model is frozen: there is nothing to train. Set requires_grad on some.")
    return [(aliases, weight) for weight, aliases in names.items()]


def _no_decay(weight: Tensor) -> bool:
    return weight.ndim < 2


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers. ``module`` may also be one part of a model: a wrapper has no other weights."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            inner = getattr(model, "module", None)
            if not isinstance(inner, nn.Module) or inner is model or set(inner.parameters()) != set(model.parameters()):
                return model
        model = inner


class _Trunk:
    """A transformers model's base model, the whole model where it has none: its weights, and the names in it."""

    def __init__(self, model: nn.Module) -> None:
        model = _unwrapped(model)
        self.prefix = str(getattr(model, "base_model_prefix", ""))
        base = getattr(model, self.prefix, None) if self.prefix else None
        inner = base if isinstance(base, nn.Module) else model
        self.weights = set(inner.parameters())
        self.inside = _names(inner)
        """Without the prefix, buffers too: a state dict holds those."""
        self.outside = _names(model) if inner is not model else set()
        self._tops = {name.split(".")[0] for name in self.inside}
        known = [getattr(m, "_keys_to_ignore_on_load_unexpected", None) or () for m in (model, inner)]
        self._dropped = [re.compile(pattern) for patterns in known for pattern in patterns]

    def names_of(self, name: str) -> tuple[str, str]:
        """A name without and with the prefix: a base model saves its weights without, a model with a head with it."""
        name = plain_name(name)
        short = name.removeprefix(f"{self.prefix}.") if self.prefix else name
        return short, f"{self.prefix}.{short}" if self.prefix else short

    def holds(self, name: str) -> bool:
        """Whether a name of a checkpoint is one of the trunk's, known or not."""
        name = plain_name(name)
        if self.prefix and name.startswith(f"{self.prefix}."):
            return True
        return name.split(".")[0] in self._tops and name not in self.outside

    def lacks(self, name: str) -> bool:
        """Whether a checkpoint's name is in the trunk and no weight or buffer has it."""
        short, whole = self.names_of(name)
        known = {short, whole, _modern(short)} & self.inside
        return (
            self.holds(name)
            and not known
            and not is_constant(whole)
            and not any(pattern.search(whole) for pattern in self._dropped)
        )

    def parts(self, free: Collection[str], names: Iterable[str]) -> list[str]:
        """``free`` as plain names; refuses what neither the model nor the anchor has, because it is a slip."""
        if isinstance(free, str):
            raise EunoeError(f"free is {free!r}; it takes several names: free=({free!r},).")
        parts = [plain_name(part) for part in free]
        known = {*self.inside, *self.outside, *map(plain_name, names)} if parts else set()
        for part in parts:
            if not any(_within((name, *self.names_of(name)), (part,)) for name in known):
                raise EunoeError(
                    f"free names {part!r}, but no weight's name is that or begins so.{_close([part], known)} It takes "
                    f"names, or their beginnings up to a dot, as in {min(self.inside, default='')}."
                )
        return parts


class _Source:
    """Values by name: a state dict or safetensors files; names may hold what wrappers put into them."""

    def __init__(self, anchor: Anchor) -> None:
        self.value_of, self.names = _source(anchor)
        self._known = set(self.names)
        self._by_plain = {plain_name(name): name for name in self.names}

    def get(self, name: str) -> Tensor | None:
        key = name if name in self._known else self._by_plain.get(plain_name(name))
        return None if key is None else self.value_of(key)


def _names(module: nn.Module) -> set[str]:
    weights, buffers = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return {plain_name(name) for named in (weights, buffers) for name, _ in named}


def _within(names: Iterable[str], parts: Collection[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for name in names for part in parts)


def _modern(name: str) -> str:
    """BERT's first checkpoints call the weights of a norm gamma and beta, as TensorFlow does."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _first(source: _Source, trunk: _Trunk, names: Iterable[str]) -> Tensor | None:
    for name in names:
        for candidate in (name, *trunk.names_of(name)):
            old = candidate.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            for spelling in (candidate, old):
                value = source.get(spelling)
                if value is not None:
                    return value
    return None


def _grown(model: nn.Module, trunk: _Trunk, source: _Source) -> set[tuple[int, int]]:
    """(rows now, rows in the anchor) of every embedding to which rows were added after pretraining."""
    grown = set()
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)} if source.names else set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        value = _first(source, trunk, [name]) if weight in tables else None
        if value is not None and value.ndim == weight.ndim and len(value) < len(weight):
            grown.add((len(weight), len(value)))
    return grown


def _refuse_fewer_rows(name: str, weight: Tensor, value: Tensor, rows: Collection[tuple[int, int]]) -> None:
    if 0 < value.ndim == weight.ndim and len(value) < len(weight) and (len(weight), len(value)) not in rows:
        raise EunoeError(
            f"the anchor of weight {name} has shape {tuple(value.shape)}; the weight has {tuple(weight.shape)}. Only an "
            "embedding, and what has as many rows as it, may have gained rows since pretraining. Is it the same model?"
        )


def _refuse_gaps(trunk: _Trunk, source: _Source, missing: list[list[str]], parts: Collection[str]) -> None:
    """Every trunk weight needs an anchor and every trunk name of the anchor a weight; a whole pooler may lack."""
    poolers_here = {_pooler(name) for name in trunk.inside}
    poolers_there = {_pooler(trunk.names_of(name)[0]) for name in source.names if trunk.holds(name)}

    def alone(name: str, others: set[str | None]) -> bool:
        pooler = _pooler(trunk.names_of(name)[0])
        return pooler is not None and pooler not in others

    bereft = [plain_name(names[0]) for names in missing if not any(alone(name, poolers_there) for name in names)]
    spare = [
        name for name in source.names
        if trunk.lacks(name) and not alone(name, poolers_here) and not _within(trunk.names_of(name), parts)
    ]  # fmt: skip
    if bereft:
        raise EunoeError(
            f"weights of the trunk without an anchor: {_some(bereft)}.{_close(bereft, spare or source.names)} Give the "
            "checkpoint that the model was loaded from (anchor=None where its names are others there: the model as it is "
            f"now), or say what is new by its name or the beginning of it: free=({bereft[0]!r},)."
        )
    if spare:
        raise EunoeError(
            f"names of the trunk in the anchor for which the model has no weight: {_some(spare)}."
            f"{_close(spare, trunk.inside)} Give the checkpoint that the model was loaded from, or say what it does "
            f"without by its name or the beginning of it: free=({spare[0]!r},)."
        )


def _pooler(name: str) -> str | None:
    """The name of the pooler that a weight belongs to, or None."""
    parts = name.split(".")
    return ".".join(parts[: parts.index("pooler") + 1]) if "pooler" in parts else None


def _close(names: list[str], known: Iterable[str]) -> str:
    close = get_close_matches(names[0], list(known), n=3, cutoff=0.8)
    return f" {names[0]} is close to {' and '.join(close)}." if close else ""


def _source(anchor: Anchor) -> tuple[Callable[[str], Tensor | None], list[str]]:
    """A function from a name to its value or None, and the names there are."""
    if anchor is None:
        return lambda name: None, []
    if isinstance(anchor, Mapping):
        return anchor.get, list(anchor)
    # Imported here because the optimizer alone needs torch and nothing else.
    from safetensors import safe_open

    path, advice = Path(anchor), "It is the anchor: fetch or save it again."
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise EunoeError(f"no safetensors weights at {path}: give a .safetensors file or a folder that holds some.")
    holders: dict[str, tuple[Path, Any]] = {}
    for file in files:
        with reading(file, advice):
            opened: Any = safe_open(file, framework="pt")
            holders.update(dict.fromkeys(opened.keys(), (file, opened)))

    def value_of(name: str) -> Tensor | None:
        if name not in holders:
            return None
        file, opened = holders[name]
        with reading(file, advice):
            value: Tensor = opened.get_tensor(name)
        return value

    return value_of, list(holders)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    if len(listed) > 3:
        return f"{', '.join(listed[:3])}, ... ({len(listed)} names)"
    return ", ".join(listed) or "no names"


def scale_rates(optimizer: Optimizer, model: nn.Module, rates: Mapping[str, float]) -> Optimizer:
    """Give the weights named in ``rates`` (name in ``model`` -> factor) groups of their own at that share of the learning rate.

    For a fresh optimizer, before any scheduler. Whatever a group lists per weight (names, anchors) is split alike.
    Returns the optimizer.
    """
    factor_of = {p: rates[name] for name, p in model.named_parameters() if name in rates}
    split: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[float, list[int]] = {}
        for i, p in enumerate(group["params"]):
            parts.setdefault(factor_of.get(p, 1.0), []).append(i)
        listed = [k for k in ("params", "param_names", "anchor") if isinstance(group.get(k), list)]
        for factor, chosen in sorted(parts.items(), reverse=True):
            part = {**group, **{k: [group[k][i] for i in chosen] for k in listed}}
            part["lr"] = group["lr"] * factor
            split.append(part)
    optimizer.param_groups[:] = split
    return optimizer
