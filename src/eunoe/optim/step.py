"""RecAdam's step as pure functions: the numbers of a step, and two ways to carry it out (see ``recadam`` for the formulas).

``plain`` writes the formulas one after another and takes any weight. ``fused`` is one pass over memory for contiguous
float32 and float64 weights: a loop in C on the CPU (``native``), else torch's fused AdamW and one addition.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eunoe.optim import native
from eunoe.optim.anneal import anneal

TINY = 1e-36
"""The fused kernel multiplies decay by the learning rate, so a pull needs one; this one moves nothing, even in float32."""


class Numbers(NamedTuple):
    """All that one step of one tensor needs besides the tensors (see the formulas in ``recadam``)."""

    lr: float
    lam: float
    """What Adam's direction is multiplied by, besides lr."""
    pull: float
    """The share of the distance to the anchor that is taken away."""
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    """As added to sqrt(v^)."""
    step: float
    """t; infinity, where beta^step is 0, without bias correction."""
    form: str


class Piece(NamedTuple):
    """The tensors that move one weight; ``anchor`` is None where nothing pulls."""

    weight: Tensor
    grad: Tensor
    m: Tensor
    v: Tensor
    anchor: Tensor | None


def numbers(group: Mapping[str, Any], t: int, anchored: bool) -> Numbers:
    """The numbers of step ``t`` (from 1) for a group's settings; pure, so they can be printed and plotted."""
    w, lam, pull = float(group["weight"]), 1.0, 0.0
    if anchored and w > 0:
        lam = w * anneal(group["anneal"], t, float(group["k"]), float(group["t0"]))
        pull = pull_scale(group) * (w - lam) * float(group["gamma"])
    step = t if group["correct_bias"] else inf
    betas = (float(group["betas"][0]), float(group["betas"][1]))
    eps = float(group["eps"])
    if group["form"] == "released":
        eps /= (1 - betas[1] ** step) ** 0.5
    return Numbers(float(group["lr"]), lam, pull, float(group["weight_decay"]), betas, eps, step, group["form"])


def pull_scale(group: Mapping[str, Any]) -> float:
    """What gamma is multiplied by: the learning rate as released; in the paper's form the schedule's multiplier alone."""
    lr = float(group["lr"])
    if group["form"] == "released" or lr == 0:
        return lr
    return lr / float(group.get("initial_lr", lr))


def plain(piece: Piece, n: Numbers) -> None:
    """The formulas, one after another; torch's AdamW in its single-tensor form where nothing pulls."""
    weight, grad, m, v, anchor = piece
    p = weight.to(m.dtype)  # a copy for half weights, so that they are rounded once
    grad = grad.to(m.dtype)
    m.lerp_(grad, 1 - n.betas[0])
    v.mul_(n.betas[1]).addcmul_(grad, grad, value=1 - n.betas[1])
    denominator = (v.sqrt() / (1 - n.betas[1] ** n.step) ** 0.5).add_(n.eps)
    step_size, keep = n.lr * n.lam / (1 - n.betas[0] ** n.step), 1 - n.lr * n.weight_decay
    if n.form == "paper":
        distance = None if anchor is None else p - anchor
        p.mul_(keep)
        p.addcdiv_(m, denominator, value=-step_size)
        if distance is not None:
            p.sub_(distance, alpha=n.pull)
    else:
        p.addcdiv_(m, denominator, value=-step_size)
        if anchor is not None:
            p.sub_(p - anchor, alpha=n.pull)
        p.mul_(keep)
    if p is not weight:
        weight.copy_(p)


def fused(pieces: list[Piece], n: Numbers, compiled: bool) -> None:
    """The same for all ``pieces`` (one dtype and device) at once: p <- keep * p - rate * m^ / (sqrt(v^) + eps) + add * a.

    In C this is one loop. torch's fused AdamW does p <- (1 - LR * WD) p - LR * m^ / (sqrt(v^) + EPS), so there LR = rate
    and WD = (1 - keep) / rate, and the anchor is added after it.
    """
    decay = n.lr * n.weight_decay
    if n.form == "paper":
        shrink, rate, add = decay + n.pull, n.lr * n.lam, n.pull
    else:  # the pull scales what Adam did, and the decay what both did
        keep = (1 - n.pull) * (1 - decay)
        shrink, rate, add = n.pull + decay - n.pull * decay, n.lr * n.lam * keep, n.pull * (1 - decay)
    if compiled and _fits_c(pieces):
        bias1, bias2 = 1 - n.betas[0] ** n.step, 1 - n.betas[1] ** n.step
        x = (1 - n.betas[0], n.betas[1], 1 - n.betas[1], rate / bias1, bias2**-0.5, n.eps, 1 - shrink, add)
        native.step([(p, g.contiguous(), m, v, a) for p, g, m, v, a in pieces if a is not None], x)
        return
    if abs(rate) < TINY and shrink:
        rate = TINY
    step = torch.tensor(n.step, dtype=torch.float32, device=pieces[0].weight.device)
    weights = [piece.weight for piece in pieces]
    torch._fused_adamw_(
        weights, [piece.grad.to(piece.weight.dtype).contiguous() for piece in pieces], [piece.m for piece in pieces],
        [piece.v for piece in pieces], [], [step] * len(pieces), lr=rate, beta1=n.betas[0], beta2=n.betas[1],
        weight_decay=shrink / rate if shrink else 0.0, eps=n.eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    anchors = [piece.anchor for piece in pieces if piece.anchor is not None]
    if anchors:
        torch._foreach_add_(weights, anchors, alpha=add)


def has_kernel(weight: Tensor) -> bool:
    """Whether torch has a fused kernel for a weight's dtype and device."""
    return weight.dtype in (torch.float32, torch.float64) and weight.device.type in ("cpu", "cuda")


def _fits_c(pieces: list[Piece]) -> bool:
    """Whether C can do it: on the CPU, anchors and gradients in the weights' dtype, and a compiler. Without a pull torch's
    kernel does the same in as many streams, and in AdamW's bits."""
    weight, anchor = pieces[0].weight, pieces[0].anchor
    return (
        anchor is not None
        and weight.device.type == "cpu"
        and all(x is not None and x.dtype == weight.dtype for p in pieces for x in p)
        and all(p.anchor is not None and p.anchor.is_contiguous() for p in pieces)
        and not isinstance(native.kernels(), str)
    )
