"""DER++, dark experience replay: a buffer of old text and of what the model answered to it.

Paper: Buzzega et al. 2020 (https://arxiv.org/abs/2004.07211; https://github.com/aimagelab/mammoth). Beside the batch, a step reads two
independent draws of as many blocks each from the buffer, x' and x'':

    L = L_lm(x) + alpha mean_x' MSE(z', f(x')) + beta mean_x'' L_lm(x'')

z': the logits that the model gave to x' when x' was put into the buffer, kept with it; f(x'): its logits now, on the same masked
input. MSE is the mean over a block's target positions and the logits kept there; x'' is masked anew, and its LM loss is the mean over
the block's target positions.

When a domain ends, its blocks pass the *reservoir*: of all blocks of all domains so far each is in the buffer with the same probability
capacity / seen. New ones are read once, without dropout, and their logits are kept.

A language model has as many logits as tokens: 15 % of 128 positions x 30,522 logits x 4 bytes are 2.3 MB a block, and 25 MB for a causal
LM with 50,000 tokens. So by default the ``top`` 100 of each position are kept (8 bytes each: 15 KB and 100 KB a block), and the MSE is
over these; ``top: null`` keeps all, as the paper does.

Settings: alpha = beta = 0.5 from PyContinual (https://github.com/ZixuanKe/PyContinual); as many replayed rows as the batch has in
each draw, as in mammoth; the capacity is ours, for what the papers' comparisons used was not published. Different from the
re-implementation released with DAS: it keeps hidden states, not logits, and one draw serves both terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe import stop
from eunoe.data.buffer import Mixed, lm_batches, target_rows
from eunoe.data.collate import NO_TARGET, Batch, LMBatches
from eunoe.data.corpus import Blocks
from eunoe.methods.base import Batches, Method, Outputs, Stage, bytes_of, not_its_state, nothing_to_keep
from eunoe.methods.store import Keep, kept, named_place
from eunoe.models.cross_entropy import at_least_float32

_ANSWERS, _LABELS = "der_answers", "der_labels"
"""Marks of a batch's rows: 1 + their place in the buffer, where its answers (or its labels) are learnt; else 0."""
_READ_AT_ONCE = 8


@dataclass(kw_only=True)
class DerSettings:
    """The buffer, and how much it counts."""

    capacity: Annotated[int, Field(ge=1)] = 500
    """Blocks in the buffer, of all domains together."""
    alpha: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the distance to the kept logits."""
    beta: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the LM loss on the buffer."""
    rows: Annotated[float, Field(gt=0)] | None = None
    """Blocks of each of the two draws in a step, below 1 as well (0.5: one in every second step); null: as many as the batch."""
    top: Annotated[int, Field(ge=1)] | None = 100
    """Logits kept of each target position, the largest ones; null: all of them."""
    keep: Keep = "device"
    """Where the kept logits lie: on the model's ``device``, in main memory (``cpu``) or in a mapped file on ``disk``."""


def reservoir(size: int, seen: int, new: int, capacity: int, rng: np.random.Generator) -> dict[int, int]:
    """Algorithm R on ``new`` more items: which of them (from 0) ends in which of the ``capacity`` places, of which ``size`` are taken.

    ``seen``: items that passed before. Afterwards each of the ``seen + new`` is in a place with the same probability.
    """
    places = rng.integers(0, seen + np.arange(1, new + 1))  # of the item with i before it, one of i + 1
    filling = np.arange(size, min(capacity, size + new))
    places[: len(filling)] = filling
    return {int(place): item for item, place in enumerate(places) if place < capacity}


class Derpp(Method):
    """Learn each domain with all weights, a buffer of old text, and what the model answered to it."""

    returns = True
    keeps_text = True

    def __init__(self, model: nn.Module, settings: DerSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.seen = 0
        """Blocks that passed the reservoir."""
        self.kept: dict[str, Tensor] = {}
        """``ids`` (N, block); ``masks`` (N, 2): the key that each block was masked with; ``starts`` (N + 1): where its positions begin
        in ``logits`` (n, top) and ``tokens`` (n, top): which logits these are."""
        self.lm: LMBatches

    @classmethod
    def reads_again(cls, settings: DerSettings) -> frozenset[str]:
        return frozenset()

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    # -- hooks -------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        self.lm = lm_batches(stage.batches)
        self.kept = self._put(self.kept, stage)

    def _put(self, tensors: Mapping[str, Tensor], stage: Stage | None) -> dict[str, Tensor]:
        """The logits where ``keep`` says; the rest is small and stays in main memory."""
        large = {n: t for n, t in tensors.items() if n in ("logits", "tokens")}
        device = next(self.model.parameters()).device
        return {**tensors, **kept(large, self.settings.keep, stage.folder if stage else None, device)}

    def batches(self, stage: Stage) -> Batches:
        if not self.kept:
            return stage.batches
        rows = self.settings.rows or float(lm_batches(stage.batches).batch)
        buffer = Blocks(self.kept["ids"].numpy(), self.lm.blocks.special, "buffer")
        # the seeds of the two draws are those of no other stage's: a stage's seed is below 2^63
        for draw, mark in enumerate((_ANSWERS, _LABELS)):
            seed = 2 * stage.seed + draw
            stage = stage.bind(batches=Mixed(stage.batches, buffer, rows, seed, partial(self._rows, mark, seed)))
        return stage.batches

    def _rows(self, mark: str, seed: int, step: int, chosen: Sequence[tuple[int, int]]) -> Batch:
        """Blocks of the buffer under the masks they were put in with, or under new ones; the LM loss leaves them out."""
        keys = [self._key(i) if mark == _ANSWERS else (0xDE2, seed, step, place) for i, place in chosen]
        batch = self.lm.collate([(self.kept["ids"][i].numpy(), key) for (i, _), key in zip(chosen, keys, strict=True)])
        marked = {mark: torch.tensor([i + 1 for i, _ in chosen])}
        return {**batch, **marked, "labels": torch.full_like(batch["labels"], NO_TARGET)}

    def _key(self, block: int) -> tuple[int, ...]:
        return (0xDE2, *self.kept["masks"][block].tolist())

    def extra_items(self, batch: Batch) -> int:
        """Rows of both draws, which are as many in each; of rows alone, so that a row counts the same whatever its targets."""
        return sum(int((batch[mark] > 0).sum()) for mark in (_ANSWERS, _LABELS) if mark in batch)

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """2 (alpha sum_x' + beta sum_x''): the mean over the rows of both draws is alpha mean_x' + beta mean_x''."""
        own, rows = self.settings, target_rows(batch)
        counts = torch.bincount(rows, minlength=len(batch["input_ids"]))
        total = outputs.logits.new_zeros((), dtype=at_least_float32(outputs.logits).dtype)
        for mark, weight, loss in ((_ANSWERS, own.alpha, self._distances), (_LABELS, own.beta, self._losses)):
            block = batch[mark][rows] - 1 if mark in batch else torch.full_like(rows, -1)
            there = (block >= 0).nonzero()[:, 0]
            if len(there):
                each = loss(batch, there, block[there], at_least_float32(outputs.logits[there]))
                total = total + 2 * weight * (each / counts[rows[there]]).sum()
        return total

    def _distances(self, batch: Batch, there: Tensor, block: Tensor, logits: Tensor) -> Tensor:
        """Mean squared distance (m,) of ``logits`` (m, vocabulary) at the positions ``there`` (m,) to those kept of ``block`` (m,)."""
        rows = target_rows(batch)
        begins = torch.searchsorted(
            rows, rows[there]
        )  # where the row's own positions begin: they stand in order of the rows
        index = self.kept["starts"].to(block.device)[block] + there - begins
        index = index.to(self.kept["logits"].device)
        wanted = self.kept["logits"][index].to(logits)
        if "tokens" in self.kept:
            logits = logits.gather(-1, self.kept["tokens"][index].to(logits.device).long())
        return (logits - wanted).square().mean(-1)

    def _losses(self, batch: Batch, there: Tensor, block: Tensor, logits: Tensor) -> Tensor:
        """LM loss (m,) of ``logits`` (m, vocabulary) at the positions ``there`` (m,), where ``block`` (m,) has its own tokens."""
        place = batch["positions"][there] % batch["input_ids"].shape[1] + (self.lm.objective == "causal")
        tokens = self.kept["ids"].to(block.device)[block, place].long()
        return F.cross_entropy(logits, tokens, reduction="none")

    def end(self, stage: Stage) -> None:
        text, size = self.lm.blocks, len(self.kept["ids"]) if self.kept else 0
        chosen = reservoir(
            size, self.seen, len(text), self.settings.capacity, np.random.default_rng((0xDE2, stage.seed))
        )
        entries = [self._entry(i) for i in range(size)]
        entries += [{}] * (len({*range(size), *chosen}) - size)
        for place, entry in zip(chosen, self._read(stage, text, list(chosen.values())), strict=True):
            entries[place] = entry
        counts = torch.tensor([0, *(len(entry["logits"]) for entry in entries)])
        joined = {"logits": torch.cat, "tokens": torch.cat, "ids": torch.stack, "masks": torch.stack}
        tensors = {n: join([e[n] for e in entries]) for n, join in joined.items() if n in entries[0]}
        self.kept = self._put({**tensors, "starts": counts.cumsum(0)}, stage)
        self.seen += len(text)

    def _entry(self, block: int) -> dict[str, Tensor]:
        """One block of the buffer, with its logits."""
        span = slice(*self.kept["starts"][block : block + 2].tolist())
        of_positions = {n: t[span] for n, t in self.kept.items() if n in ("logits", "tokens")}
        return {"ids": self.kept["ids"][block], "masks": self.kept["masks"][block], **of_positions}

    @torch.no_grad()
    def _read(self, stage: Stage, text: Blocks, chosen: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Blocks of the stage's text as the buffer has them, with what the model answers to them now."""
        self.model.eval()
        for start in range(0, len(chosen), _READ_AT_ONCE):
            if self.lm.world == 1:  # several processes read alike, and none may leave the others alone
                stop.check(f"reading blocks of {stage.name} into the buffer")
            some = chosen[start : start + _READ_AT_ONCE]
            batch = self.lm.collate([(text.ids[i], (0xDE2, stage.seed, i)) for i in some])
            logits = at_least_float32(stage.loss(batch).outputs.logits)
            rows = target_rows(batch)
            for row, i in enumerate(some):
                here = logits[(rows == row).to(logits.device)]
                entry = {"ids": _tensor(text.ids[i]), "masks": torch.tensor([stage.seed, i]), "logits": here}
                if self.settings.top is not None and self.settings.top < logits.shape[-1]:
                    largest = here.topk(self.settings.top)
                    entry |= {"logits": largest.values, "tokens": largest.indices.int()}
                yield entry

    def sizes(self) -> dict[str, int]:
        logits = {n: t for n, t in self.kept.items() if n in ("logits", "tokens")}
        rest = {n: t for n, t in self.kept.items() if n not in logits}
        return {
            named_place("logits of the buffer", self.settings.keep): bytes_of(logits),
            "text of the buffer": bytes_of(rest),
        }

    # -- state -------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "kept": dict(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        whole = {"ids", "masks", "starts", "logits"}
        if set(state) != {"seen", "kept"} or (state["kept"] and not whole <= set(state["kept"]) <= whole | {"tokens"}):
            raise not_its_state("der++", state, "are seen and kept, a buffer")
        self.seen, self.kept = int(state["seen"]), self._put(state["kept"], None)


def _tensor(ids: NDArray[Any]) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))


__all__ = ["DerSettings", "Derpp", "reservoir"]
