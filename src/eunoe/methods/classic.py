"""CLASSIC: HAT's masked adapters, and a contrast that draws a text's state toward what all domains so far make of it.

Paper: Ke, Liu, Xu, Shu 2021, "CLASSIC: Continual and Contrastive Learning of Aspect Sentiment Classification Tasks" (EMNLP 2021,
https://aclanthology.org/2021.emnlp-main.550; code https://github.com/ZixuanKe/PyContinual), as used for post-training by
https://github.com/UIC-Liu-Lab/ContinualLM. The adapters, their soft masks and what protects them are ``methods/hat.py``'s.

From the second domain on, in each step, for the B texts of a micro-batch:

1. ``z_t`` (B, width): the mean over a text's tokens of the last hidden states under the running domain's masks, from the LM loss' own
   pass; ``z_i`` likewise under the masks at s_max of each earlier domain i, in passes without gradient.
2. They are mixed by learned self-attention over the domains (``ViewMix``), x_i = z_i: ``o_i = x_i + g * sum_j softmax_j(q_i . k_j) v_j``,
   ``mixed = dropout(sum_i o_i)``; q, k (width / 8), v (width) are linear maps, g a number that starts at 0 (self-attention of
   SAGAN, https://arxiv.org/abs/1805.08318).
3. ``nt_xent``: SimCLR's loss (https://arxiv.org/abs/2002.05709) with a text's z_t and mixed as the two views of it, cosine similarity
   and temperature 1: each of the 2 B views shall find its partner among the 2 B - 1 others. L = LM loss + ``contrast`` * this + HAT's R.

The mix is drawn anew for each domain and used in its training alone: reading text costs what it costs with ``hat``.

What we do differently, and why: the release switches a task variable that the masks do not read, so that its earlier views use the
running masks; here they use their own. It normalises the mixed view alone; a cosine needs both. Supervised terms of the paper have
no labels to work on in post-training. Each earlier domain costs a pass in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.data.collate import Batch
from eunoe.methods.base import Outputs, Stage
from eunoe.methods.hat import Hat, HatSettings
from eunoe.methods.masked import seed_of
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import mean_pool
from eunoe.plugins.adapter import Affine


@dataclass(kw_only=True)
class ClassicSettings(HatSettings):
    """Those of ``hat``, and the contrast's."""

    contrast: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the contrastive loss; 0 leaves out the passes of earlier domains."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the contrastive loss."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of the mixed view."""


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss of B texts with two views each, a and b (B, width): summed over the texts, the mean of both views.

    ``-log( exp(cos(x, partner) / temperature) / sum_{y != x} exp(cos(x, y) / temperature) )`` for each view x.
    """
    views = F.normalize(torch.cat([a, b]), dim=-1)
    scores = views @ views.T / temperature  # (2 B, 2 B)
    scores = scores.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(a))
    return F.cross_entropy(scores, partner, reduction="sum") / 2


class ViewMix(nn.Module):
    """Self-attention over the views of a text, and their sum: (B, views, width) -> (B, width)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key = (Affine(width, max(1, width // 8)) for _ in range(2))
        self.value = Affine(width, width)
        self.gain = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(self.query(x) @ self.key(x).transpose(-2, -1), -1)
        mixed: Tensor = self.dropout((x + self.gain * (shares @ self.value(x))).sum(-2))
        return mixed

    def begin(self, generator: torch.Generator) -> None:
        """Draw the weights anew as ``nn.Linear`` draws them, on the CPU, so the same on any device."""
        with torch.no_grad():
            for layer in (self.query, self.key, self.value):
                bound = layer.weight.shape[1] ** -0.5
                for p in layer.parameters():
                    p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) * bound)
            self.gain.zero_()


class Classic(Hat):
    """Adapters learn through soft masks, with a contrast between a text's state and what all domains so far make of it.

    >>> Classic(model, ClassicSettings(contrast=0.5), ["law", "sport"])  # doctest: +SKIP
    """

    contrasts = True

    def __init__(self, model: nn.Module, settings: ClassicSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        base, first = anatomy(model).base, next(iter(self.adapters.values())).fc1.weight
        base.add_module("view_mix", ViewMix(anatomy(model).width, settings.dropout).to(first.device, first.dtype))

    @property
    def mix(self) -> ViewMix:
        mix = anatomy(self.model).base.view_mix
        assert isinstance(mix, ViewMix)
        return mix

    def own(self) -> set[nn.Parameter]:
        return super().own() | set(self.mix.parameters())

    # -- hooks -------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        self.stage = stage
        self.mix.begin(torch.Generator().manual_seed(seed_of(self.seed, f"{stage.name}/mix")))
        self.mix.requires_grad_(self._contrasts())  # a weight that no loss reads would make processes wait for it

    def extra_items(self, batch: Batch) -> int:
        return len(batch["input_ids"]) if self._contrasts() else 0

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """``contrast`` times the contrastive loss, summed over the rows of the micro-batch."""
        views = []
        with torch.no_grad():
            for domain in self.active.finished:
                self.active.domain = domain
                hidden, mask = self.stage.forward(batch)
                views.append(mean_pool(hidden, mask))
        self.active.domain = self.active.running
        now = mean_pool(outputs.states, mask)
        mixed = self.mix(torch.stack([*views, now], 1))
        weighted: Tensor = self.settings.contrast * nt_xent(now, mixed, self.settings.temperature)
        return weighted

    def _contrasts(self) -> bool:
        return bool(self.active.finished) and self.settings.contrast > 0

    # -- use ---------------------------------------------------------------------------------------------------
    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """As ``hat``; the mix, which only post-training reads, stays."""
        rates = super().for_end_task(model, domain, freeze)
        anatomy(model).base.view_mix.requires_grad_(False)
        return rates


__all__ = ["Classic", "ClassicSettings", "ViewMix", "nt_xent"]
