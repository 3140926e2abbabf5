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
    eta is the schedule without the learning rate (lr / initial_lr; 1 without a scheduler), so gamma = 5000 diverges here: this
    form's gamma is lr * gamma of the released one. The paper shows no decay; it stands where AdamW has it.

Without an anchor, and with w = 0, lambda is 1 and nothing pulls: Adam at the full learning rate, as the release has it for the
head.

What is exact. Where the pull is 0 ("constant" annealing; the sigmoid once lambda rounds to 1, with k = infinity right
after t0) the anchor is not read. With w = 1 ``form="paper"`` is then ``torch.optim.AdamW`` bit for bit (``fused=False``
its single-tensor form, ``fused=True`` its fused form), weight decay included. The released form is AdamW with eps' in
place of eps, and with the decay on the moved weights: the same bits only with eps = 0 and weight_decay = 0.
k = 0 gives lambda = w / 2.

The counter behind lambda is each tensor's own, as released: it stands still on steps where the tensor has no gradient,
so a layer unfrozen later starts at lambda(1) and is first pulled to its anchor.

What we do differently: one pass over memory where the weights allow it (``step.fused``), a stable sigmoid, anchors with
a fingerprint instead of a copy in every checkpoint, rows without an anchor (new tokens), float32 moments for half
weights, and settings that diverge are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from eunoe.errors import EunoeError
from eunoe.optim import refuse
from eunoe.optim.anchors import Anchors, anchors_of, is_sharded, local
from eunoe.optim.step import Piece, fused, has_kernel, numbers, plain

Bucket: TypeAlias = tuple[int, bool, torch.dtype, torch.device]
NOT_READ = "not read before the first step"
"""In place of a fingerprint in a state of no step: nothing was pulled yet, so it fits any anchors, and accelerate, which
saves and loads every new optimizer once, need not wait until all of them are read."""


class _Unsaid(Enum):
    UNSAID = "nothing was said about anchors"


class RecAdam(Optimizer):
    """Adam with a decoupled pull toward anchors that fades out as lambda grows from 0 to 1.

    params: tensors, named tensors, or groups (see ``anchored_groups``). A group's ``anchor`` is a list of tensors shaped
    like its ``params``, of any dtype and device (one with fewer rows anchors the first rows; the others are plain
    AdamW), or None: plain AdamW.
    anchor: for groups that have no ``anchor`` of their own. Where neither says one, RecAdam warns that these weights
    are moved as AdamW moves them; ``anchor=None`` says that this is meant.
    gamma: strength of the pull. anneal, k, t0: how lambda grows with the step (``eunoe.optim.anneal``). t0 is in steps;
    ``eunoe.optim.table.steps_of`` makes them of a share of the run. weight: w above. form: ``released`` or ``paper``. All
    settings but ``fused`` and ``compiled`` may be set per group.
    fused: None goes the one-pass way for contiguous float32 and float64 weights on CPU and CUDA and the plain way for
    others; False always goes the plain way; True refuses dtypes and devices without a fused kernel.
    compiled: on a CPU the one pass is a loop in C where the machine has a compiler (``eunoe.optim.native``), else torch's
    fused kernel and one addition. None takes what there is, False torch's kernel, True refuses a machine without a
    compiler. All ways agree to rounding; a run that is to end in the same bits on machines with and without a compiler
    says False.

    ``state_dict()`` holds two moments and a counter for each weight and, in place of each group's anchors, their
    fingerprint; loading it over other anchors is refused, as are states of other optimizers. Sharded weights (DTensor)
    get sharded anchors. ``ZeroRedundancyOptimizer`` deals out weights without their anchors and is refused. ``torch.compile``
    runs the step as it is: there is nothing to fuse that the kernel has not fused, and its numbers change with every step.

    Raises ``EunoeError`` for settings out of range (``lr * gamma > 2`` diverges), unknown names and anchors that do not
    fit. Neighbours: ``torch.optim.AdamW`` recalls nothing; EWC pulls each weight by its importance, and through Adam.

    >>> from eunoe.optim import RecAdam, anchored_groups
    >>> model = torch.nn.Linear(2, 2)
    >>> optimizer = RecAdam(anchored_groups(model), lr=2e-5, t0=100)
    >>> model(torch.ones(1, 2)).sum().backward(); optimizer.step()
    """

    _made = True
    """Whether the first groups are in: their warning is given once for all, at the line that called ``RecAdam``."""
    _unsaid = 0
    """Weights about whose anchors nothing was said, and no warning given yet."""

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
        anchor: Iterable[Tensor] | _Unsaid | None = _Unsaid.UNSAID,
        fused: bool | None = None,
        compiled: bool | None = None,
    ) -> None:
        refuse.refuse_ways(fused, compiled)
        self.fused, self.compiled = fused, compiled
        self.anchor_said = anchor is not _Unsaid.UNSAID
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "gamma": gamma, "anneal": anneal,
            "k": k, "t0": t0, "weight": weight, "correct_bias": correct_bias, "form": form,
            "anchor": anchor if self.anchor_said else None,
        }  # fmt: skip
        # torch's constructor adds the groups one by one; the warning waits until all are there
        self._made = False
        super().__init__(params, defaults)
        self._made = True
        self._warn_unsaid()

    def __getstate__(self) -> dict[str, Any]:
        ways = {"fused": self.fused, "compiled": self.compiled, "anchor_said": self.anchor_said}
        return {**super().__getstate__(), **ways}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, late unfreezing included: its tensors start at step 1. Refuses what ``RecAdam`` refuses.

        torch's own schedulers keep a list of the groups they were made with and fail at their next step: make those anew
        afterwards. ``eunoe.optim.make_scheduler``'s takes the new group in.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:  # as torch refuses what is no group
            return super().add_param_group(param_group)
        refuse.refuse_slips(param_group)
        group = {**self.defaults, **param_group}
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        if not isinstance(group["params"], set):  # which torch refuses, because it has no order
            group["params"] = list(group["params"])
            if group["anchor"] is not None:
                group["anchor"] = Anchors(group["anchor"])
                refuse.refuse_other_number(group)
                refuse.refuse_misfits(group["params"], group["anchor"])
            _drop_repeats(group)
        for name in refuse.NUMBERS:
            if isinstance(group[name], str):  # "inf", as recipes spell it
                with suppress(ValueError):
                    group[name] = float(group[name])
        refuse.refuse_settings(group)
        super().add_param_group(group)
        if not self.anchor_said and "anchor" not in param_group:
            self._unsaid += len(group["params"])
        if self._made:
            self._warn_unsaid()
        return None

    def _warn_unsaid(self) -> None:
        if self._unsaid:
            warnings.warn(
                f"weights without an anchor: {self._unsaid}. RecAdam recalls nothing of them and moves them as AdamW does. "
                "Anchor them: RecAdam(anchored_groups(model), lr=...); or say that this is meant: anchor=None, in the group "
                "or in RecAdam(...).",
                stacklevel=3,
            )
            self._unsaid = 0

    @torch._disable_dynamo  # type: ignore[attr-defined]  # as torch does on its own; compiler.disable imports slowly
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every weight that has a gradient; returns what ``closure`` (a fresh forward and backward) returns.

        What is refused is refused before any weight moves: settings, which may have changed since the last step, before
        ``closure`` is called, gradients after it.
        """
        loss = None
        for group in self.param_groups:
            refuse.refuse_settings(group)
            refuse.refuse_other_number(group)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    refuse.refuse_unmovable(p, group["anchor"][i] if group["anchor"] is not None else None, self.fused)
                    self._fit_moments(p)
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
                        plain(piece, n)
                if fast:
                    fused(fast, n, self.compiled is not False)
        return loss

    def _pieces(self, group: dict[str, Any]) -> dict[Bucket, list[Piece]]:
        """The group's tensors that have a gradient, their counters raised, in buckets that share the step's numbers."""
        indices = [i for i, p in enumerate(group["params"]) if p.grad is not None]
        for i in indices:
            self._start(group["params"][i])
        counters = [self.state[group["params"][i]]["step"] for i in indices]
        if counters:
            # one call for all: a step of many small tensors consists of calls
            torch._foreach_add_(counters, 1)
        anchors = anchors_of(group)
        pieces: dict[Bucket, list[Piece]] = {}
        for i, counter in zip(indices, counters, strict=True):
            p, t = group["params"][i], int(counter.item())
            state, kind = self.state[p], (p.dtype, p.device)
            anchor = None if anchors is None else anchors.beside(i, p)
            whole = [p, p.grad, state["exp_avg"], state["exp_avg_sq"]]
            if is_sharded(p):
                whole = [local(x) for x in whole]
            if anchor is None or anchor.shape == whole[0].shape:
                pieces.setdefault((t, anchor is not None, *kind), []).append(Piece._make([*whole, anchor]))
            else:  # rows were added after pretraining: they have nothing to recall
                old = Piece._make([*(x[: len(anchor)] for x in whole), anchor])
                new = Piece._make([*(x[len(anchor) :] for x in whole), None])
                pieces.setdefault((t, True, *kind), []).append(old)
                pieces.setdefault((t, False, *kind), []).append(new)
        return pieces

    def _start(self, p: Tensor) -> None:
        """Give a weight with its first gradient its counter and moments."""
        if "step" not in self.state[p]:  # wrappers such as Lookahead keep values of their own beside ours
            # Half moments would be wrong, not just coarse: in bfloat16 0.999 v rounds to v, in float16 v underflows.
            dtype = torch.promote_types(p.dtype, torch.float32)
            self.state[p]["step"] = torch.tensor(0.0, dtype=torch.float32)
            for name in refuse.MOMENTS:
                self.state[p][name] = torch.zeros_like(p, dtype=dtype)

    def _fit_moments(self, p: Tensor) -> None:
        """Moments of a weight whose dtype was changed since (``model.double()``) follow it: kernels read them as they are told."""
        state = self.state.get(p)
        if (
            not state
            or "step" not in state
            or (state["exp_avg"].dtype is p.dtype and state["exp_avg"].shape == p.shape)
        ):
            return
        dtype = torch.promote_types(p.dtype, torch.float32)
        for name in refuse.MOMENTS:
            moment = state[name]
            state[name] = moment.to(dtype)
            if moment.shape != p.shape:
                raise EunoeError(
                    f"a weight of shape {tuple(p.shape)} has moments of shape {tuple(moment.shape)}: the state belongs to "
                    "another model, or the weight was enlarged. Build the optimizer anew."
                )

    def _fuses(self, piece: Piece) -> bool:
        if self.fused is False or not has_kernel(piece.weight):
            return False
        return piece.weight.is_contiguous() and piece.m.is_contiguous() and piece.v.is_contiguous()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with SHA-256 over a group's anchors (values, shapes and dtypes) as its ``anchor``; None without.

        The key stands in the state as it does in the group: torch's distributed checkpoints, flattened ones too, look for
        every key of a group. All anchors are read at the first call after the first step.
        """
        packed = super().state_dict()
        for group, saved in zip(self.param_groups, packed["param_groups"], strict=True):
            anchors = anchors_of(group)
            saved["anchor"] = None if anchors is None else anchors.fingerprint if self.state else NOT_READ
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; raises ``EunoeError``, before anything changes, for a state of other anchors, models or optimizers."""
        refuse.refuse_no_state(state_dict)
        groups, weights = self.param_groups, [p for group in self.param_groups for p in group["params"]]
        anchors = [anchors_of(group) for group in groups]
        # before torch loads anything, so that a refused state has changed nothing
        for i, (group, saved) in enumerate(zip(groups, state_dict["param_groups"], strict=False)):
            refuse.refuse_other_settings(saved, group, i)
            _refuse_other_anchors(anchors[i], saved, i)
        ids = [i for saved in state_dict["param_groups"] for i in saved["params"]]
        for i, p in zip(ids, weights, strict=False):
            refuse.refuse_other_state(state_dict["state"].get(i, {}), p, i)
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, anchors, strict=True):
            # the state holds a fingerprint; the anchors are those that this optimizer was built with
            group["anchor"] = own
            group.pop("anchor_fingerprint", None)
        for i, p in zip(ids, weights, strict=True):
            state = self.state.get(p)
            if not state or "step" not in state:
                continue
            state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)  # counted on the CPU
            dtype = torch.promote_types(p.dtype, torch.float32)
            for name in refuse.MOMENTS:  # torch casts them to the weight's dtype; half weights have float32 moments
                if state[name].dtype != dtype:
                    state[name] = state_dict["state"][i][name].to(p.device, dtype)


def _refuse_other_anchors(anchors: Anchors | None, saved: dict[str, Any], index: int) -> None:
    # The first releases called it anchor_fingerprint.
    there = saved["anchor"] if "anchor" in saved else saved.get("anchor_fingerprint")
    here = None if anchors is None else NOT_READ if there == NOT_READ else anchors.fingerprint
    if here != there:
        raise EunoeError(
            f"the saved optimizer state belongs to another anchor: group {index} has {_short(here)} here and "
            f"{_short(there)} there. Build the optimizer with the anchor that training started with."
        )


def _drop_repeats(group: dict[str, Any]) -> None:
    """A tied weight may be listed under each of its names; it moves once. torch warns of repeats, and so do we."""
    first: dict[int, int] = {}
    for i, p in enumerate(group["params"]):
        first.setdefault(id(p[1] if isinstance(p, tuple) else p), i)
    if len(first) == len(group["params"]):
        return
    warnings.warn(
        f"a parameter group with duplicate parameters (repeats: {len(group['params']) - len(first)}): each moves once, and its "
        "first anchor and name count. List tied weights once.",
        stacklevel=5,
    )
    for name in ("params", "anchor", "param_names"):
        if group.get(name) is not None:
            group[name] = [group[name][i] for i in first.values()]


def _short(fingerprint: str | None) -> str:
    return "no anchor" if fingerprint is None else f"anchor {fingerprint[:12]}"
