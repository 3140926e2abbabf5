"""RecAdam: Adam that first recalls the pretrained weights and then, step by step, lets them go.

Paper: "Recall and Learn: Fine-tuning Deep Pretrained Language Models with Less Forgetting", EMNLP 2020,
https://arxiv.org/abs/2004.12651. Original code: https://github.com/Sanyuan-Chen/RecAdam.

With lambda = w * anneal(t), t the tensor's step from 1, a the anchor (pretrained value), m^ and v^ the bias-corrected
moments (the bare ones with ``correct_bias=False``):

``form="released"``, the default because the published numbers come from it; each line acts on the weights just moved
    p <- p - lr * lambda * m^ / (sqrt(v^) + eps')            eps' = eps / sqrt(1 - beta2^t): eps is added to sqrt(v)
    p <- p - lr * (w - lambda) * gamma * (p - a)
    p <- p - lr * weight_decay * p
``form="paper"``, Algorithm 1 as printed; all on the old weights
    p <- p - lr * lambda * m^ / (sqrt(v^) + eps) - eta * (w - lambda) * gamma * (p - a) - lr * weight_decay * p
    eta is the schedule without the rate (lr / initial_lr; 1 without a scheduler), so gamma = 5000 diverges here: this
    form's gamma is lr * gamma of the released one. The paper shows no decay; it stands where AdamW has it.

Without an anchor, and with w = 0, lambda is 1 and nothing pulls: Adam at the full rate, as the release has it for the
head.

What is exact. Where the pull is 0 ("constant" annealing; the sigmoid once lambda rounds to 1, with k = infinity right
after t0) the anchor is not read. With w = 1 ``form="paper"`` is then ``torch.optim.AdamW`` bit for bit (``fused=False``
its single-tensor form, ``fused=True`` its fused form), weight decay included. The released form is AdamW with eps' in
place of eps, and with the decay on the moved weights: the same bits only with eps = 0 and weight_decay = 0.
k = 0 gives lambda = w / 2.

The counter behind lambda is each tensor's own, as released: it stands still on steps where the tensor has no gradient,
so a layer unfrozen later starts at lambda(1) and is first pulled to its anchor.

What we do differently: one pass over memory where the weights allow it (see ``_fused``), a stable sigmoid, anchors with
a fingerprint instead of a copy in every checkpoint, rows without an anchor (new tokens), float32 moments for half
weights, and settings that diverge are refused.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.errors import EunoeError
from eunoe.lookup import unknown
from eunoe.optim import native
from eunoe.optim.anneal import ANNEALINGS, anneal

Bucket: TypeAlias = tuple[int, bool, torch.dtype, torch.device]
FORMS = ("released", "paper")
NUMBERS = ("lr", "eps", "weight_decay", "gamma", "k", "t0", "weight")
MOST = sys.float_info.max
ROUNDING = 1e-15
"""A rate so little below 0 is a scheduler's rounding of 0: torch's LinearLR ends at -5e-20, for example."""
CHUNK = 256 * 1024
"""Elements torch's CPU kernel moves before the anchor is added: small enough that the weights are still in cache then."""
TINY = 1e-36
"""The fused kernel multiplies decay by the rate, so a pull needs a rate; this one moves nothing, even in float32."""


class Numbers(NamedTuple):
    """All that one step of one tensor needs besides the tensors (see the formulas above)."""

    lr: float
    lam: float
    """What Adam's direction is multiplied by, besides lr."""
    pull: float
    """The share of the distance to the anchor that is taken away."""
    weight_decay: float
    eps: float
    """As added to sqrt(v^)."""
    step: float
    """t; infinity, where beta^step is 0, without bias correction."""


class Piece(NamedTuple):
    """Tensors of one shape that move together; ``anchor`` is None where nothing pulls."""

    weight: Tensor
    grad: Tensor
    m: Tensor
    v: Tensor
    anchor: Tensor | None


def numbers(group: Mapping[str, Any], t: int, anchored: bool) -> Numbers:
    """The numbers of step ``t`` (from 1) for a group's settings; pure, so they can be printed and plotted."""
    w, lam, pull = group["weight"], 1.0, 0.0
    if anchored and w > 0:
        lam = w * anneal(group["anneal"], t, group["k"], group["t0"])
        pull = _pull_scale(group) * (w - lam) * group["gamma"]
    step = t if group["correct_bias"] else inf
    root = (1 - group["betas"][1] ** step) ** 0.5
    eps = group["eps"] / root if group["form"] == "released" else group["eps"]
    return Numbers(float(group["lr"]), lam, pull, group["weight_decay"], eps, step)


class RecAdam(Optimizer):
    """Adam with a decoupled pull toward anchors that fades out as lambda grows from 0 to 1.

    params: tensors, named tensors, or groups (see ``anchored_groups``). A group's ``anchor`` is a list of tensors shaped
    like its ``params``, of any dtype and device (one with fewer rows anchors the first rows; the others are plain
    AdamW), or None: plain AdamW.
    gamma: strength of the pull. anneal, k, t0: how lambda grows with the step (``eunoe.optim.anneal``). t0 is in steps;
    ``eunoe.optim.table.steps_of`` makes them of a share of the run. weight: w above. form: ``released`` or ``paper``. All
    settings but ``fused`` and ``compiled`` may be set per group.
    fused: None goes the one-pass way for contiguous float32 and float64 weights on CPU and CUDA and the plain way for
    others; False always goes the plain way; True refuses dtypes and devices without a fused kernel.
    compiled: on a CPU the one pass is a loop in C where the machine has a compiler (``eunoe.optim.native``), else torch's
    fused kernel on chunks. None takes what there is, False the chunks, True refuses a machine without a compiler. All ways
    agree to rounding; a run that is to end in the same bits on machines with and without a compiler says False.

    ``state_dict()`` holds two moments and a counter for each weight and a fingerprint of each group's anchors; loading
    it over other anchors is refused. Sharded weights (DTensor) get sharded anchors. ``torch.compile`` runs the step as it
    is: there is nothing to fuse that the kernel has not fused, and its numbers change with every step.

    Raises ``EunoeError`` for settings out of range (``lr * gamma > 2`` diverges), unknown names and anchors that do not
    fit. Neighbours: ``torch.optim.AdamW`` recalls nothing; EWC pulls each weight by its importance, and through Adam.

    >>> from eunoe.optim import RecAdam, anchored_groups
    >>> model = nn.Linear(2, 2)
    >>> optimizer = RecAdam(anchored_groups(model), lr=2e-5, t0=100)
    >>> model(torch.ones(1, 2)).sum().backward(); optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma: float = 5000.0,
        anneal: str = "sigmoid",
        k: float = 0.5,
        t0: float = 250,
        weight: float = 1.0,
        correct_bias: bool = True,
        form: str = "released",
        fused: bool | None = None,
        compiled: bool | None = None,
    ) -> None:
        self.fused, self.compiled = fused, compiled
        if compiled:
            _refuse_uncompiled(fused)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "gamma": gamma, "anneal": anneal,
            "k": k, "t0": t0, "weight": weight, "correct_bias": correct_bias, "form": form, "anchor": None,
        }  # fmt: skip
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "fused": self.fused, "compiled": self.compiled}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, late unfreezing included: its tensors start at step 1. Refuses what ``RecAdam`` refuses."""
        group = {**self.defaults, **param_group}
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        if not isinstance(group["params"], set):  # which torch refuses, because it has no order
            group["params"] = list(group["params"])
            if group["anchor"] is not None:
                group["anchor"] = [anchor.detach().contiguous() for anchor in group["anchor"]]
                _refuse_misfits(group)
            _drop_repeats(group)
        for name in NUMBERS:
            if isinstance(group[name], str):  # "inf", as recipes spell it
                with suppress(ValueError):
                    group[name] = float(group[name])
        refuse_settings(group)
        super().add_param_group(group)

    @torch._disable_dynamo  # type: ignore[attr-defined]  # as torch does on its own; compiler.disable imports slowly
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every weight that has a gradient; returns what ``closure`` (a fresh forward and backward) returns.

        What is refused is refused before any weight moves: settings, which may have changed since the last step, before
        ``closure`` is called, gradients after it.
        """
        loss = None
        for group in self.param_groups:
            refuse_settings(group)
            if group["anchor"] is not None:
                _refuse_other_number(group)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._refuse_unmovable(group)
        for group in self.param_groups:
            for (t, anchored, *_), pieces in self._pieces(group).items():
                n = numbers(group, t, anchored)
                if n.pull == 0:  # so the anchor is not even read
                    pieces = [piece._replace(anchor=None) for piece in pieces]
                fast: list[Piece] = []
                for piece in pieces:
                    if self._fuses(piece):
                        fast.append(piece)
                    else:
                        _plain(piece, n, group["betas"], group["form"])
                if fast:
                    _fused(fast, n, group["betas"], group["form"], self.compiled is not False)
        return loss

    def _pieces(self, group: dict[str, Any]) -> dict[Bucket, list[Piece]]:
        """The group's tensors that have a gradient, their counters raised, in buckets that share the step's numbers."""
        indices = [i for i, p in enumerate(group["params"]) if p.grad is not None]
        for i in indices:
            self._start(group["params"][i])
        counters = [self.state[group["params"][i]]["step"] for i in indices]
        if counters:
            torch._foreach_add_(counters, 1)
        pieces: dict[Bucket, list[Piece]] = {}
        for i, counter in zip(indices, counters, strict=True):
            p, t = group["params"][i], int(counter.item())
            state, anchor, kind = self.state[p], self._anchor(group, i), (p.dtype, p.device)
            whole = [p, p.grad, state["exp_avg"], state["exp_avg_sq"]]
            if _is_sharded(p):
                whole = [_local(x) for x in whole]
            if anchor is None or anchor.shape == whole[0].shape:
                pieces.setdefault((t, anchor is not None, *kind), []).append(Piece._make([*whole, anchor]))
            else:  # rows were added after pretraining: they have nothing to recall
                old = Piece._make([*(x[: len(anchor)] for x in whole), anchor])
                new = Piece._make([*(x[len(anchor) :] for x in whole), None])
                pieces.setdefault((t, True, *kind), []).append(old)
                pieces.setdefault((t, False, *kind), []).append(new)
        return pieces

    def _refuse_unmovable(self, group: Mapping[str, Any]) -> None:
        """Raise ``EunoeError`` for a weight whose gradient, dtype, device or sharding the step could not handle."""
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise EunoeError("RecAdam received a sparse gradient: build the embedding with sparse=False.")
            if p.is_complex():
                raise EunoeError(
                    "RecAdam received a complex weight, whose parts it would mix; give it torch.view_as_real(weight)."
                )
            self._fit_moments(p)
            if self.fused and not _has_kernel(p):
                raise EunoeError(
                    f"fused=True: there is no fused kernel for {p.dtype} weights on {p.device}; it takes float32 "
                    "and float64 on cpu and cuda. fused=None uses it where it can be used."
                )
            if group["anchor"] is not None and _is_sharded(p) and group["anchor"][i].shape != p.shape:
                raise EunoeError(
                    f"an anchor of shape {tuple(group['anchor'][i].shape)} for a sharded weight of shape "
                    f"{tuple(p.shape)}: rows without an anchor are not supported in sharded weights. Add the new rows to "
                    "the anchor."
                )

    def _start(self, p: Tensor) -> None:
        """Give a weight with its first gradient its counter and moments."""
        if not self.state[p]:
            # Half moments would be wrong, not just coarse: in bfloat16 0.999 v rounds to v, in float16 v underflows.
            dtype = torch.promote_types(p.dtype, torch.float32)
            self.state[p]["step"] = torch.tensor(0.0, dtype=torch.float32)
            self.state[p]["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            self.state[p]["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype)

    def _anchor(self, group: dict[str, Any], index: int) -> Tensor | None:
        """The anchor of one weight, on the weight's device and sharded like it; brought there at the first use."""
        if group["anchor"] is None:
            return None
        p, anchor = group["params"][index], group["anchor"][index]
        if _is_sharded(p) and not _is_sharded(anchor):
            from torch.distributed.tensor import distribute_tensor  # slow to import, and rarely needed

            _fingerprint(group)  # of the whole anchor, so that it does not depend on the number of processes
            anchor = distribute_tensor(anchor.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
            group["anchor"][index] = anchor
        elif anchor.device != p.device:
            anchor = group["anchor"][index] = anchor.to(p.device)
        return _local(anchor)

    def _fit_moments(self, p: Tensor) -> None:
        """Moments of a weight whose dtype was changed since (``model.double()``) follow it: kernels read them as they are told."""
        state = self.state.get(p)
        if not state or (state["exp_avg"].dtype is p.dtype and state["exp_avg"].shape == p.shape):
            return
        dtype = torch.promote_types(p.dtype, torch.float32)
        for name in ("exp_avg", "exp_avg_sq"):
            moment = state[name]
            state[name] = moment.to(dtype)
            if moment.shape != p.shape:
                raise EunoeError(
                    f"a weight of shape {tuple(p.shape)} has moments of shape {tuple(moment.shape)}: the state belongs to "
                    "another model, or the weight was enlarged. Build the optimizer anew."
                )

    def _fuses(self, piece: Piece) -> bool:
        if self.fused is False or not _has_kernel(piece.weight):
            return False
        return piece.weight.is_contiguous() and piece.m.is_contiguous() and piece.v.is_contiguous()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with ``anchor_fingerprint`` (SHA-256 of values, shapes and dtypes; or None) instead of anchors."""
        packed = super().state_dict()
        for group, saved in zip(self.param_groups, packed["param_groups"], strict=True):
            saved["anchor_fingerprint"] = _fingerprint(group)
            del saved["anchor"]
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; raises ``EunoeError`` where the state was saved with other anchors than this optimizer has."""
        anchors = [group["anchor"] for group in self.param_groups]
        for i, (group, saved) in enumerate(zip(self.param_groups, state_dict["param_groups"], strict=False)):
            here, there = _fingerprint(group), saved.get("anchor_fingerprint")
            if here != there:
                raise EunoeError(
                    f"the saved optimizer state belongs to another anchor: group {i} has {_short(here)} here and "
                    f"{_short(there)} there. Build the optimizer with the anchor that training started with."
                )
        ids = [i for saved in state_dict["param_groups"] for i in saved["params"]]
        for i, p in zip(ids, [p for group in self.param_groups for p in group["params"]], strict=False):
            held = state_dict["state"].get(i, {}).get("exp_avg")
            if held is not None and held.shape != p.shape:
                raise EunoeError(
                    f"the saved optimizer state has moments of shape {tuple(held.shape)} where the weight (number {i}) has "
                    f"{tuple(p.shape)}: it belongs to another model."
                )
        super().load_state_dict(state_dict)
        for group, anchor in zip(self.param_groups, anchors, strict=True):
            group["anchor"] = anchor
        # torch casts a loaded state to the weight's dtype; half weights have float32 moments.
        for i, p in zip(ids, [p for group in self.param_groups for p in group["params"]], strict=True):
            for name, value in self.state.get(p, {}).items():
                if name != "step" and value.dtype != torch.promote_types(p.dtype, torch.float32):
                    self.state[p][name] = state_dict["state"][i][name].to(p.device, torch.float32)


def _plain(piece: Piece, n: Numbers, betas: tuple[float, float], form: str) -> None:
    """The formulas, one after another; torch's AdamW in its single-tensor form where nothing pulls."""
    weight, grad, m, v, anchor = piece
    p = weight.to(m.dtype)  # a copy for half weights, so that they are rounded once
    grad = grad.to(m.dtype)
    m.lerp_(grad, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    denominator = (v.sqrt() / (1 - betas[1] ** n.step) ** 0.5).add_(n.eps)
    step_size, keep = n.lr * n.lam / (1 - betas[0] ** n.step), 1 - n.lr * n.weight_decay
    if form == "paper":
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


def _fused(pieces: list[Piece], n: Numbers, betas: tuple[float, float], form: str, compiled: bool) -> None:
    """The same in one pass over memory. Both forms are p <- keep * p - rate * m^ / (sqrt(v^) + eps) + add * a.

    In C this is one loop. torch's fused AdamW does p <- (1 - LR * WD) p - LR * m^ / (sqrt(v^) + EPS), so there LR = rate,
    WD = (1 - keep) / rate, and the anchor is added while a chunk is in cache.
    """
    decay = n.lr * n.weight_decay
    if form == "paper":
        shrink, rate, add = decay + n.pull, n.lr * n.lam, n.pull
    else:  # the pull scales what Adam did, and the decay what both did
        keep = (1 - n.pull) * (1 - decay)
        shrink, rate, add = n.pull + decay - n.pull * decay, n.lr * n.lam * keep, n.pull * (1 - decay)
    if compiled and _fits_c(pieces):
        bias1, bias2 = 1 - betas[0] ** n.step, 1 - betas[1] ** n.step
        numbers = (1 - betas[0], betas[1], 1 - betas[1], rate / bias1, bias2**-0.5, n.eps, 1 - shrink, add)
        native.step([(p, g.contiguous(), m, v, a) for p, g, m, v, a in pieces if a is not None], numbers)
        return
    if abs(rate) < TINY and shrink:
        rate = TINY
    anchored = pieces[0].anchor is not None
    step = torch.tensor(n.step, dtype=torch.float32, device=pieces[0].weight.device)
    on_cpu = pieces[0].weight.device.type == "cpu"  # other devices do better with few large launches
    for batch in _batches(pieces, CHUNK) if anchored and on_cpu else [pieces]:
        weights = [piece.weight for piece in batch]
        grads = [piece.grad.to(piece.weight.dtype).contiguous() for piece in batch]
        torch._fused_adamw_(
            weights, grads, [piece.m for piece in batch], [piece.v for piece in batch], [], [step] * len(batch), lr=rate,
            beta1=betas[0], beta2=betas[1], weight_decay=shrink / rate if shrink else 0.0, eps=n.eps, amsgrad=False, maximize=False,
        )  # fmt: skip
        if anchored:
            torch._foreach_add_(weights, [piece.anchor for piece in batch if piece.anchor is not None], alpha=add)


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


def _batches(pieces: list[Piece], size: int) -> Iterator[list[Piece]]:
    """The same elements in the same order, at most ``size`` at a time: large tensors are cut, small ones joined."""
    batch: list[Piece] = []
    filled = 0
    for piece in pieces:
        if piece.weight.numel() <= size:
            parts = [piece]
        else:
            flat = [torch.split(x.reshape(-1), size) for x in piece if x is not None]
            parts = [Piece._make(cut) for cut in zip(*flat, strict=True)]
        for part in parts:
            if batch and filled + part.weight.numel() > size:
                yield batch
                batch, filled = [], 0
            batch.append(part)
            filled += part.weight.numel()
    if batch:
        yield batch


def _has_kernel(weight: Tensor) -> bool:
    return weight.dtype in (torch.float32, torch.float64) and weight.device.type in ("cpu", "cuda")


def _pull_scale(group: Mapping[str, Any]) -> float:
    """What gamma is multiplied by: the rate as released; in the paper's form the schedule's multiplier alone."""
    lr = float(group["lr"])
    if group["form"] == "released" or lr == 0:
        return lr
    return lr / float(group.get("initial_lr", lr))


# -- sharded weights ---------------------------------------------------------------------------------------------------
def _is_sharded(x: Tensor) -> bool:
    # Asked by attribute because importing torch.distributed.tensor is slow.
    return type(x) not in (Tensor, nn.Parameter) and hasattr(x, "placements")


def _local(x: Any) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor itself."""
    local: Tensor = x.to_local() if _is_sharded(x) else x
    return local


# -- which anchors -----------------------------------------------------------------------------------------------------
def _fingerprint(group: dict[str, Any]) -> str | None:
    """SHA-256 over the group's anchors; computed once, at the first save or load, because it reads all of them."""
    if group["anchor"] is None:
        return None
    if "anchor_fingerprint" not in group:
        digest = hashlib.sha256()
        for anchor in group["anchor"]:
            whole = anchor.full_tensor() if _is_sharded(anchor) else anchor
            digest.update(f"{whole.dtype} {tuple(whole.shape)}".encode())
            digest.update(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        group["anchor_fingerprint"] = digest.hexdigest()
    return str(group["anchor_fingerprint"])


# -- what is refused ---------------------------------------------------------------------------------------------------
def _refuse_uncompiled(fused: bool | None) -> None:
    """``compiled=True`` asks for the C loop, which has to be there and to be wanted."""
    if fused is False:
        raise EunoeError("compiled=True and fused=False: the C loop is a fused way. Leave one of them at None.")
    reason = native.kernels()
    if isinstance(reason, str):
        raise EunoeError(f"compiled=True: {reason}. compiled=None goes in chunks where it cannot be compiled.")


def _refuse_divergence(group: Mapping[str, Any]) -> None:
    """The pull alone multiplies the distance to the anchor by 1 - scale * w * gamma: below -1 it grows without end."""
    if group["anchor"] is None or group["anneal"] == "constant":
        return
    lr, gamma, w, scale = float(group["lr"]), group["gamma"], group["weight"], _pull_scale(group)
    if scale * w * gamma <= 2:
        return
    told = f"gamma {gamma:g} * weight {w:g} = {scale * w * gamma:g} is above 2: the pull overshoots its anchor and diverges."
    if group["form"] == "paper":
        raise EunoeError(
            f"schedule {scale:g} * {told} In form 'paper' the rate does not scale the pull: what is gamma {gamma:g} in "
            f"form 'released' is gamma {gamma * lr:g} here."
        )
    raise EunoeError(f"lr {lr:g} * {told} Take lr <= {2 / (gamma * w):g} or gamma <= {2 / (lr * w):g}.")


def refuse_settings(group: Mapping[str, Any]) -> None:
    """Raise ``EunoeError`` for a group's settings that are out of range, unknown or divergent."""
    if group["anneal"] not in ANNEALINGS:
        raise unknown(group["anneal"], ANNEALINGS, "annealing")
    if group["form"] not in FORMS:
        raise unknown(group["form"], FORMS, "form of RecAdam")
    for name in NUMBERS:
        value, endless = group[name], name in ("k", "t0")
        least = -ROUNDING if name == "lr" else 0
        if not _is_number(value) or not least <= float(value) <= (inf if endless else MOST):
            raise EunoeError(f"{name} is {value!r}; RecAdam needs a {'' if endless else 'finite '}number >= 0.")
    if 0 < group["t0"] < 1:
        raise EunoeError(
            f"t0 is {group['t0']:g}; RecAdam takes it in steps, and below 1 it looks like a share of the run. In steps that "
            f"is eunoe.optim.table.steps_of({group['t0']:g}, STEPS), STEPS the length of the run; recipes and the Trainer's "
            "recadam take the share itself."
        )
    betas = group["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
        raise EunoeError(f"betas are {betas!r}; RecAdam needs two numbers >= 0 and < 1.")
    _refuse_divergence(group)


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__")  # text has none, tensors of one element have


def _refuse_other_number(group: Mapping[str, Any]) -> None:
    params, anchors = group["params"], group["anchor"]
    if len(params) != len(anchors):
        raise EunoeError(
            f"a group has {len(params)} weights and {len(anchors)} anchors: give each weight its anchor, or anchor=None."
        )


def _refuse_misfits(group: Mapping[str, Any]) -> None:
    """Each anchor must be shaped like its weight, or have fewer rows, and must not be the weight itself."""
    _refuse_other_number(group)
    params, anchors = group["params"], group["anchor"]
    for i, (param, anchor) in enumerate(zip(params, anchors, strict=True)):
        name, p = param if isinstance(param, tuple) else (f"number {i} of its group", param)
        fewer_rows = p.ndim > 0 and p.ndim == anchor.ndim and 0 < len(anchor) < len(p)
        if anchor.shape != p.shape and not (fewer_rows and anchor.shape[1:] == p.shape[1:]):
            raise EunoeError(
                f"the anchor of weight {name} has shape {tuple(anchor.shape)}; the weight has {tuple(p.shape)}. Only rows "
                "may be missing (tokens added after pretraining). Is it the same model?"
            )
        if not _is_sharded(p) and p.numel() and anchor.data_ptr() == p.data_ptr():
            raise EunoeError(
                f"the anchor of weight {name} is the weight itself, so nothing would ever be pulled. Give a copy: "
                "weight.detach().clone()."
            )


def _drop_repeats(group: dict[str, Any]) -> None:
    """A tied weight may be listed under each of its names; it moves once."""
    first: dict[int, int] = {}
    for i, p in enumerate(group["params"]):
        first.setdefault(id(p[1] if isinstance(p, tuple) else p), i)
    for name in ("params", "anchor", "param_names"):
        if group.get(name) is not None:
            group[name] = [group[name][i] for i in first.values()]


def _short(fingerprint: str | None) -> str:
    return "no anchor" if fingerprint is None else f"anchor {fingerprint[:12]}"
