"""Replay: a share of earlier or of general text in each batch.

The advice that practitioners give, and hard to beat. For language models: Scialom et al. 2022 (https://arxiv.org/abs/2205.12393) and
Ibrahim et al. 2024 (https://arxiv.org/abs/2403.08763), who find 1 % to 5 % enough for mild shifts, and up to 50 % useful for strong ones.

    L = mean over the target tokens of b new rows and r old ones,     share = r / (b + r)

The old rows come on top of the batch, so as many new ones are learnt as without replay. They are drawn by (seed, step) and masked anew each
time. ``source: earlier`` reads the training text of the domains learnt before, up to ``blocks`` of each, all alike likely;
nothing is added in the first stage. ``source: general`` reads the recipe's general text, in every stage.

25 % is a choice of ours between the two papers' findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from eunoe.data.buffer import Mixed, lm_batches, rows_of_share
from eunoe.data.corpus import joined
from eunoe.methods.base import Batches, Method, Stage, nothing_to_keep


@dataclass(kw_only=True)
class ReplaySettings:
    """What is read again, and how much of it."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of old rows among all rows of a step, kept in the mean over the steps."""
    source: Literal["earlier", "general"] = "earlier"
    """Text of the ``earlier`` domains, or the recipe's ``general`` text."""
    blocks: Annotated[int, Field(ge=1)] | None = 10_000
    """Blocks of each text that may be read again, spread evenly over it; null: all of them."""


class Replay(Method):
    """Learn each domain with all weights, and old text beside it."""

    returns = True

    def __init__(self, model: nn.Module, settings: ReplaySettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)

    @classmethod
    def reads_again(cls, settings: ReplaySettings) -> frozenset[str]:
        return frozenset({settings.source})

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    def batches(self, stage: Stage) -> Batches:
        own = self.settings
        if own.source == "general":
            texts = [] if stage.general is None else [stage.general]
        else:  # a domain that returns is no old text
            texts = [blocks for domain, blocks in stage.earlier.items() if domain not in stage.domains]
        if not texts:
            return stage.batches
        rows = rows_of_share(own.share, lm_batches(stage.batches).batch)
        return Mixed(stage.batches, joined([text.take(own.blocks) for text in texts]), rows, stage.seed)


__all__ = ["Replay", "ReplaySettings"]
