"""What RecAdam refuses, each with the value received, what is allowed and the next step. Nothing here changes anything."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import inf
from typing import Any

from torch import Tensor

from eunoe.errors import EunoeError
from eunoe.lookup import unknown
from eunoe.optim import native
from eunoe.optim.anchors import Anchors, anchors_of, is_sharded
from eunoe.optim.anneal import ANNEALINGS, anneal
from eunoe.optim.step import has_kernel, pull_scale

FORMS = ("released", "paper")
NUMBERS = ("lr", "eps", "weight_decay", "gamma", "k", "t0", "weight")
SETTINGS = (*NUMBERS, "betas", "anneal", "correct_bias", "form")
"""All that a group of RecAdam has besides its weights and anchors."""
ENDLESS = ("k", "t0")
"""May be infinite: lambda is then a step, or stays at 0."""
WHOLE = ("fused", "compiled")
"""Settings of the whole optimizer, which a group cannot have."""
ROUNDING = 1e-15
"""A learning rate so little below 0 is a scheduler's rounding of 0: torch's LinearLR ends at -5e-20, for example."""
MOMENTS = ("exp_avg", "exp_avg_sq")


# -- settings ----------------------------------------------------------------------------------------------------------
def refuse_settings(group: Mapping[str, Any]) -> None:
    """Raise ``EunoeError`` for a group's settings that are out of range, unknown or divergent."""
    if group["anneal"] not in list(ANNEALINGS):
        raise unknown(group["anneal"], ANNEALINGS, "annealing")
    if group["form"] not in FORMS:
        raise unknown(group["form"], FORMS, "form of RecAdam")
    if not isinstance(group["correct_bias"], bool):
        raise EunoeError(f"correct_bias is {group['correct_bias']!r}; RecAdam needs True or False.")
    refuse_numbers({name: group[name] for name in NUMBERS}, "RecAdam")
    refuse_betas(group["betas"], "RecAdam")
    if 0 < group["t0"] < 1:
        raise EunoeError(
            f"t0 is {group['t0']:g}; RecAdam takes it in steps, and below 1 it looks like a share of the run. In steps that "
            f"is eunoe.optim.table.steps_of({group['t0']:g}, STEPS), STEPS the length of the run; recipes and the Trainer's "
            "recadam take the share itself."
        )
    _refuse_divergence(group)


def refuse_numbers(named: Mapping[str, Any], optimizer: str) -> None:
    """Raise ``EunoeError`` for what is no number, below 0, or infinite where that means nothing."""
    for name, value in named.items():
        number, endless = _number(value), name in ENDLESS
        least = -ROUNDING if name == "lr" else 0
        if number is None or not least <= number <= (inf if endless else sys.float_info.max):
            raise EunoeError(f"{name} is {value!r}; {optimizer} needs a {'' if endless else 'finite '}number >= 0.")


def refuse_betas(betas: Any, optimizer: str) -> None:
    """Raise ``EunoeError`` for what is not two numbers in [0, 1)."""
    numbers = [_number(beta) for beta in betas] if isinstance(betas, tuple | list) else []
    if len(numbers) != 2 or not all(beta is not None and 0 <= beta < 1 for beta in numbers):
        raise EunoeError(f"betas are {betas!r}; {optimizer} needs two numbers >= 0 and < 1.")


def _number(value: Any) -> float | None:
    """A number or a tensor of one element as a float; None for all else: text, truth values, tensors of several."""
    if isinstance(value, bool | str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _refuse_divergence(group: Mapping[str, Any]) -> None:
    """The pull alone multiplies the distance to the anchor by 1 - scale * w * gamma: below -1 it grows without end."""
    w, gamma, lr = float(group["weight"]), float(group["gamma"]), float(group["lr"])
    if group["anchor"] is None or w == 0 or anneal(group["anneal"], 1, float(group["k"]), float(group["t0"])) == 1:
        return  # lambda never falls, so nothing is ever pulled
    scale = pull_scale(group)
    if scale * w * gamma <= 2:
        return
    problem = f"gamma {gamma:g} * weight {w:g} = {scale * w * gamma:g} is above 2: the pull overshoots its anchor and diverges."
    if group["form"] == "paper":
        raise EunoeError(
            f"schedule {scale:g} * {problem} In form 'paper' the learning rate does not scale the pull: what is gamma {gamma:g} in "
            f"form 'released' is gamma {gamma * lr:g} here."
        )
    raise EunoeError(f"lr {lr:g} * {problem} Take lr <= {2 / (gamma * w):g} or gamma <= {2 / (lr * w):g}.")


def refuse_ways(fused: Any, compiled: Any) -> None:
    """``fused`` and ``compiled`` are None, False or True; ``compiled=True`` needs a compiler and a fused way."""
    for name, value in (("fused", fused), ("compiled", compiled)):
        if value is not None and not isinstance(value, bool):
            raise EunoeError(f"{name} is {value!r}; RecAdam needs None, False or True.")
    if not compiled:
        return
    if fused is False:
        raise EunoeError("compiled=True and fused=False: the C loop is a fused way. Leave one of them at None.")
    reason = native.kernels()
    if isinstance(reason, str):
        raise EunoeError(
            f"compiled=True: {reason}. compiled=None takes torch's own kernel where the loop cannot be compiled."
        )


def refuse_slips(given: Iterable[str]) -> None:
    """Groups may hold what others read (``lr_scale``), so only a name that looks like one of ours is refused."""
    known = (*SETTINGS, "anchor", "params", "param_names", "initial_lr")
    for name in given:
        if name in WHOLE:
            raise EunoeError(f"a group sets {name}, which holds for all groups: give it to RecAdam(..., {name}=...).")
        if name not in known and get_close_matches(name, known, n=1, cutoff=0.85):
            raise unknown(name, known, "setting of RecAdam")


# -- weights and their anchors -----------------------------------------------------------------------------------------
def refuse_other_number(group: dict[str, Any]) -> None:
    """Each weight needs its anchor."""
    anchors = anchors_of(group)
    if anchors is not None and len(group["params"]) != len(anchors):
        raise EunoeError(
            f"a group has {len(group['params'])} weights and {len(anchors)} anchors: give each weight its anchor, or "
            "anchor=None. (ZeroRedundancyOptimizer deals out the weights and not their anchors: shard with FSDP2 instead.)"
        )


def refuse_misfits(params: Sequence[Any], anchors: Anchors) -> None:
    """Each anchor must be shaped like its weight, or have fewer rows, and must not be the weight itself."""
    for i, (param, anchor) in enumerate(zip(params, anchors, strict=True)):
        name, p = param if isinstance(param, tuple) else (f"number {i} of its group", param)
        fewer_rows = p.ndim > 0 and p.ndim == anchor.ndim and 0 < len(anchor) < len(p)
        if anchor.shape != p.shape and not (fewer_rows and anchor.shape[1:] == p.shape[1:]):
            raise EunoeError(
                f"the anchor of weight {name} has shape {tuple(anchor.shape)}; the weight has {tuple(p.shape)}. Only rows "
                "may be missing (tokens added after pretraining). Is it the same model?"
            )
        if not is_sharded(p) and p.numel() and anchor.data_ptr() == p.data_ptr():
            raise EunoeError(
                f"the anchor of weight {name} is the weight itself, so nothing would ever be pulled. Give a copy: "
                "weight.detach().clone()."
            )


def refuse_unmovable(p: Tensor, anchor: Tensor | None, fused: bool | None) -> None:
    """Raise ``EunoeError`` for a weight with a gradient whose layout, dtype, device or sharding a step cannot handle."""
    if p.grad is not None and p.grad.is_sparse:
        raise EunoeError("RecAdam received a sparse gradient: build the embedding with sparse=False.")
    if p.is_complex():
        raise EunoeError(
            "RecAdam received a complex weight, whose parts it would mix; give it torch.view_as_real(weight)."
        )
    if p.is_meta:
        raise EunoeError(
            f"a weight of shape {tuple(p.shape)} is on the meta device, so there is nothing to move: load the model "
            "(model.to_empty(device=...), then its weights) and build RecAdam from that."
        )
    if any(stride == 0 and size > 1 for stride, size in zip(p.stride(), p.shape, strict=True)):
        raise EunoeError(
            f"a weight of shape {tuple(p.shape)} has strides {p.stride()}: several of its elements are one number in memory, "
            "which would move several times. Give RecAdam the tensor that it was expanded from, or a copy: weight.clone()."
        )
    if fused and not has_kernel(p):
        raise EunoeError(
            f"fused=True: there is no fused kernel for {p.dtype} weights on {p.device}; it takes float32 "
            "and float64 on cpu and cuda. fused=None uses it where it can be used."
        )
    if anchor is not None and is_sharded(p) and anchor.shape != p.shape:
        raise EunoeError(
            f"an anchor of shape {tuple(anchor.shape)} for a sharded weight of shape {tuple(p.shape)}: rows without an "
            "anchor are not supported in sharded weights. Add the new rows to the anchor."
        )


# -- saved states ------------------------------------------------------------------------------------------------------
def refuse_no_state(given: Any) -> None:
    """Raise ``EunoeError`` for what is not the ``state_dict()`` of an optimizer."""
    kinds = {"param_groups": list, "state": Mapping}
    if not isinstance(given, Mapping) or not all(isinstance(given.get(key), kind) for key, kind in kinds.items()):
        raise EunoeError(f"the saved optimizer state is a {type(given).__name__} without param_groups (a list) and state (a dict): give "
                         "what state_dict() returned.")  # fmt: skip


def refuse_other_settings(saved: Mapping[str, Any], group: Mapping[str, Any], index: int) -> None:
    """A saved group must have every setting of RecAdam, in range: AdamW's lack most, and a step would fail on them."""
    missing = [name for name in SETTINGS if name not in saved]
    if missing:
        raise EunoeError(
            f"group {index} of the saved optimizer state has no {', '.join(missing)}: it was not saved by this RecAdam (one "
            "of AdamW has the moments alone). Start without it, or load the state that RecAdam saved."
        )
    refuse_settings({**group, **saved, "anchor": group["anchor"]})


def refuse_other_state(saved: Mapping[str, Any], p: Tensor, index: int) -> None:
    """A weight's saved state must be a counter and two moments of its shape, or none of them."""
    if not any(name in saved for name in ("step", *MOMENTS)):
        return
    lacking = [name for name in ("step", *MOMENTS) if name not in saved]
    if lacking:
        raise EunoeError(
            f"the saved optimizer state has no {', '.join(lacking)} for weight number {index}, only {', '.join(saved)}: it "
            "belongs to another optimizer, or is damaged. Start without it, or load the state that RecAdam saved."
        )
    t = _number(saved["step"])
    if t is None or not 0 <= t < inf or t != int(t):
        raise EunoeError(
            f"the saved optimizer state has step {saved['step']!r} for weight number {index}; RecAdam needs a whole number "
            ">= 0. The state is damaged: load an earlier one."
        )
    for name in MOMENTS:
        if not isinstance(saved[name], Tensor) or saved[name].shape != p.shape:
            shape = tuple(saved[name].shape) if isinstance(saved[name], Tensor) else type(saved[name]).__name__
            raise EunoeError(
                f"the saved optimizer state has moments of shape {shape} where the weight (number {index}) has "
                f"{tuple(p.shape)}: it belongs to another model."
            )
