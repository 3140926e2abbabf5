"""Parameter groups: which weights are pulled toward which anchor, and which decay.

RecAdam's script (https://github.com/Sanyuan-Chen/RecAdam) makes four groups, {trunk, head} x {decay, no decay}, finds
the trunk by the model type in the name and pairs weights with their pretrained values BY ORDER inside a group.
Different here: pairing is by name, so a checkpoint with other weights in between cannot shift the pairs; the trunk is
what the model itself calls its base model; and the anchor may be a file that is only mapped into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.errors import EunoeError

Anchor = Mapping[str, Tensor] | str | Path | None


def anchored_groups(model: nn.Module, *, anchor: Anchor = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for ``RecAdam``: trunk and head, each with and without weight decay; empty ones are left out.

    anchor: where the pretrained values come from: None, the model as it is now (copied); a state dict; or a safetensors
    file or a checkpoint folder, mapped into memory, so that it takes no private memory. Its dtype and device may differ
    from the model's, and it may be saved with or without the base model's prefix (``bert.``). An anchor with fewer
    rows than its weight (tokens were added) anchors the old rows.

    The trunk is the ``base_model`` of a transformers model (the whole model where there is none), less what the anchor
    does not hold; the rest is the head, which has no anchor and so learns at the full rate from the first step, as in
    the release. Biases and norm weights (one dimension) do not decay. Frozen weights are left out; tied weights appear
    once.

    Raises ``EunoeError`` where every weight is frozen, where the file cannot be read, or where no name matches.

    >>> [len(g["params"]) for g in anchored_groups(nn.Linear(2, 2))]
    [1, 1]
    """
    value_of, held = _source(anchor)
    trunk, prefix = _trunk(model)
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for names, weight in _trainable(model):
        value = None
        if trunk is None or weight in trunk:
            value = weight.detach() if anchor is None else _first(value_of, names, prefix)
            if value is not None and value.data_ptr() == weight.data_ptr():
                value = value.clone()  # ``model.state_dict()`` holds the weights themselves, which will move
        key = (value is None, _no_decay(weight))
        decay = 0.0 if key[1] else weight_decay
        group = groups.setdefault(key, {"params": [], "anchor": None if key[0] else [], "weight_decay": decay})
        group["params"].append((names[0], weight))
        if value is not None:
            group["anchor"].append(value)
    if all(group["anchor"] is None for group in groups.values()):
        raise EunoeError(
            f"no weight of the model has an anchor: the model has {_some(dict(model.named_parameters()))}; the anchor "
            f"has {_some(held)}. Give the checkpoint that the model was loaded from."
        )
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


def _trunk(model: nn.Module) -> tuple[set[nn.Parameter] | None, str]:
    """The weights of a transformers model's base model and its prefix; None where the model is all trunk."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    if isinstance(base, nn.Module):
        return set(base.parameters()), prefix
    return None, prefix


def _first(value_of: Callable[[str], Tensor | None], names: list[str], prefix: str) -> Tensor | None:
    for name in names:
        name = name.removeprefix("module.").removeprefix("_orig_mod.")  # wrappers of DDP and torch.compile
        # A base model saves its weights without the prefix that a model with a head gives them, and the reverse.
        for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
            value = value_of(candidate)
            if value is not None:
                return value
    return None


def _source(anchor: Anchor) -> tuple[Callable[[str], Tensor | None], list[str]]:
    """A function from a name to its value or None, and the names there are."""
    if anchor is None:
        return lambda name: None, []
    if isinstance(anchor, Mapping):
        return anchor.get, list(anchor)
    # Imported here because the optimizer alone needs torch and nothing else.
    from safetensors import SafetensorError, safe_open

    path = Path(anchor)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise EunoeError(f"no safetensors weights at {path}: give a .safetensors file or a folder that holds some.")
    holders: dict[str, Any] = {}
    for file in files:
        try:
            opened: Any = safe_open(file, framework="pt")
            holders.update(dict.fromkeys(opened.keys(), opened))
        except SafetensorError as error:
            raise EunoeError(f"{file} is no readable safetensors file ({error}). Fetch or save it again.") from error
    return lambda name: holders[name].get_tensor(name) if name in holders else None, list(holders)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{', '.join(listed[:3])}, ... ({len(listed)} names)" if listed else "no names"


def scale_rates(optimizer: Optimizer, model: nn.Module, rates: Mapping[str, float]) -> Optimizer:
    """Give the weights named in ``rates`` (name in ``model`` -> factor) groups of their own at that share of the rate.

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
