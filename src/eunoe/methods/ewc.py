"""EWC, elastic weight consolidation: hold each weight to where it was, as firmly as earlier domains need it.

Paper: Kirkpatrick et al. 2017 (https://arxiv.org/abs/1612.00796); merged as one Fisher, not one a domain: Schwarz et al. 2018
(https://arxiv.org/abs/1805.06370). While domain t is learnt,

    L = L_lm + (lambda / 2) sum_i F_i (theta_i - theta*_i)^2          theta*: the weights at the start of the stage

F is the diagonal of the Fisher information, of each weight's shape: the mean over blocks x of a domain's text of the squared gradient of
one block's LM loss (its mean over the block's target tokens), taken when the domain has been learnt, without dropout:

    F_new,i = (1 / n) sum_x (dL_lm(x) / dtheta_i)^2,     F <- (F_new + t F) / (t + 1) after domain t (from 0), or gamma F + F_new

The pull lambda F (theta - theta*) is added to the finished gradient (see ``l2``), so no graph holds copies of all weights.

Settings from the re-implementation released with DAS (https://github.com/UIC-Liu-Lab/ContinualLM): lambda 5000 (its grid: 500 to 50000),
10,000 blocks. Different here: it squares the mean gradient of batches of 100, which is far below the mean of the squares
(``squared: 100`` gives that, times the batch's size as there); and it leaves the penalty inside the loss of the Fisher pass.

The pass reads one block at a time, divided between processes. It saves its sums in the stage's folder, so a run that is stopped in
it resumes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from eunoe import checkpoint, stop
from eunoe.data.buffer import lm_batches
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods.base import Method, Stage, bytes_of, not_its_state, nothing_to_keep, trainable
from eunoe.methods.l2 import Anchor, pull
from eunoe.methods.store import Keep, kept, named_place
from eunoe.progress import Bar

_LOOK = 32
"""Groups of blocks between two looks at whether to stop."""
_SAVE = 640
"""Groups of blocks between two saves of the sums."""


@dataclass(kw_only=True)
class EwcSettings:
    """How strong the pull is, and how the Fisher is measured and merged."""

    strength: Annotated[float, Field(ge=0)] = 5000.0
    """lambda, the weight of half the squared distance."""
    blocks: Annotated[int, Field(ge=1)] | None = 10_000
    """Blocks of a domain's text that its Fisher is measured on, spread evenly over it; null: all of them."""
    squared: Annotated[int, Field(ge=1)] = 1
    """How many blocks' mean gradient is squared at once: 1 is the Fisher; more is quicker, and an approximation from below."""
    merge: Literal["mean", "online"] = "mean"
    """One Fisher of all domains: their ``mean``, or ``online``: the old one times ``gamma``, plus the new one."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What ``online`` keeps of the old one; 1: the sum over all domains."""
    keep: Keep = "device"
    """Where Fisher and anchor lie: on the model's ``device``, in main memory (``cpu``) or in mapped files on ``disk``."""


class Ewc(Method):
    """Learn each domain with all weights, each of them held as firmly as its Fisher says."""

    pulls = True
    returns = True

    def __init__(self, model: nn.Module, settings: EwcSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.fisher: dict[str, Tensor] = {}
        self.measured = 0
        """Stages whose Fisher is in ``fisher``."""
        self.anchor = Anchor(model, "stage", settings.keep)

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    def begin(self, stage: Stage) -> None:
        if self.measured:
            self.anchor.begin(stage)
            device = next(self.model.parameters()).device
            self.fisher = kept(self.fisher, self.settings.keep, stage.folder, device)

    def on_gradients(self) -> None:
        pull(dict(trainable(self.model)), self.anchor.tensors, self.settings.strength, self.fisher)

    def end(self, stage: Stage) -> None:
        own, done = self.settings, self.measured
        new = fisher(self.model, stage, own.blocks, own.squared)
        for name, old in self.fisher.items():
            before = old.to(new[name]) if name in new else old
            total = new.get(name, torch.zeros_like(before))
            new[name] = (total + done * before) / (done + 1) if own.merge == "mean" else own.gamma * before + total
        self.fisher, self.measured = kept(new, own.keep, stage.folder), done + 1

    def sizes(self) -> dict[str, int]:
        return {named_place("Fisher", self.settings.keep): bytes_of(self.fisher), **self.anchor.sizes()}

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "measured": self.measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"fisher", "measured"} or not isinstance(state["fisher"], Mapping):
            raise not_its_state("ewc", state, "are fisher and measured")
        named = dict(self.model.named_parameters())
        wrong = [n for n, t in state["fisher"].items() if n not in named or named[n].shape != t.shape]
        if wrong:
            raise EunoeError(f"ewc: the saved Fisher does not fit this model: {', '.join(wrong[:3])} differ.")
        self.fisher, self.measured = kept(state["fisher"], self.settings.keep), int(state["measured"])


def fisher(model: nn.Module, stage: Stage, blocks: int | None = None, squared: int = 1) -> dict[str, Tensor]:
    """The diagonal Fisher of the stage's text: for each trainable weight a tensor of its shape, on its device.

    Of at most ``blocks`` blocks, ``squared`` of which are read at once: their mean gradient is squared and multiplied by their number.
    Resumes from what ``stage.folder`` holds; raises ``Interrupted`` when a signal came, with the sums saved there.
    """
    lm = lm_batches(stage.batches)
    text, rank, world = lm.blocks.take(blocks), lm.rank, lm.world
    named = dict(trainable(model))
    groups = [range(i, min(i + squared, len(text))) for i in range(0, len(text), squared)]
    folder = stage.folder / f"fisher-{rank}" if stage.folder is not None else None
    identity = (
        {"groups": f"{len(groups)} of {squared} for {world}", "weights": checkpoint.digest(named)} if folder else {}
    )
    sums, done = {n: torch.zeros_like(p) for n, p in named.items()}, 0
    if folder is not None and checkpoint.intact(folder) and checkpoint.identity_of(folder) == identity:
        saved = checkpoint.load(folder).groups
        sums, done = {n: saved["sums"][n].to(p.device) for n, p in named.items()}, int(saved["done"])
    model.eval()
    with stop.watching(), Bar(f"Fisher of {stage.name}", -(-len(groups) // _LOOK), done // _LOOK) as bar:
        while done < len(groups):
            for group in groups[done : done + _LOOK][rank::world]:
                batch = lm.collate([(text.ids[i], (0xF15E, stage.seed, i)) for i in group])
                if len(batch["labels"]):  # text of special tokens alone has no gradient
                    model.zero_grad(set_to_none=True)
                    loss = stage.loss(batch)
                    mean: Any = loss.total / loss.items
                    mean.backward()
                    for name, p in named.items():
                        if p.grad is not None:
                            sums[name].addcmul_(p.grad, p.grad, value=len(group))
            before, done = done, min(done + _LOOK, len(groups))
            bar.advance((done - before) * squared * text.ids.shape[1])
            asked = _any_asked(world, next(iter(named.values())).device)
            if folder is not None and (asked or done // _SAVE > before // _SAVE):
                checkpoint.save(folder, {"sums": sums, "done": done}, identity)
            if asked:
                where = f"saved after {done:,} of {len(groups):,}" if folder else "it starts over"
                raise Interrupted(
                    f"stopped by {asked} while measuring the Fisher of {stage.name}; {where}. Run the same command to resume."
                )
    model.zero_grad(set_to_none=True)
    for total in sums.values():
        if world > 1:
            dist.all_reduce(total)
        total /= len(groups)
    return sums


def _any_asked(world: int, device: Any) -> str | None:
    """Why all processes stop now: they do so at one place, or one would wait for the others."""
    asked = stop.asked()
    if world == 1:
        return asked
    any_of_them = torch.tensor(float(asked is not None), device=device)
    dist.all_reduce(any_of_them)
    return (asked or "a signal to another process") if any_of_them > 0 else None


__all__ = ["Ewc", "EwcSettings", "fisher"]
