"""KD: the model as it was before a domain teaches the one that learns it.

Papers: Hinton et al. 2015 (https://arxiv.org/abs/1503.02531) and Li & Hoiem 2016, *Learning without Forgetting*
(https://arxiv.org/abs/1606.09282), as a baseline of continual post-training (Ke et al. 2022, https://arxiv.org/abs/2210.05549).
The teacher is a frozen copy of the model at the start of the stage. On text of the running domain without its masks,

    L = L_lm + w tau^2 mean_positions KL( softmax(z_T / tau) || softmax(z_S / tau) )

z_T and z_S (vocabulary): the logits of teacher and student at one position; tau: the temperature; w: the weight. No old text is kept.
A causal LM reads its text without masks anyway, so the student's own pass serves; a masked LM passes the text once more.

Positions: those that the LM loss predicts. In a masked LM they are a random 15 % of the text, so the mean over them is an
estimate of the mean over all, without a vocabulary product at every position.

Different from the re-implementation released with DAS (https://github.com/UIC-Liu-Lab/ContinualLM): it takes the softmax of the last
hidden states over the axis of the positions, and scores the teacher under the student. Weight 1 and temperature 1 are its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.data.buffer import lm_batches
from eunoe.data.collate import NO_TARGET, Batch
from eunoe.methods.base import Method, Outputs, Stage, bytes_of, nothing_to_keep
from eunoe.methods.store import Keep, frozen_copy, named_place
from eunoe.models.cross_entropy import at_least_float32
from eunoe.models.heads import target_logits


@dataclass(kw_only=True)
class KdSettings:
    """How much the teacher counts, how soft its answers are, and where it lies."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """What the distillation loss is multiplied by."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """tau: logits are divided by it before the softmax; above 1 unlikely tokens count for more."""
    keep: Keep = "device"
    """Where the teacher lies: on the model's ``device``, in main memory (``cpu``) or in a mapped file on ``disk``."""


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) of each row; logits (n, vocabulary) -> (n,), at least float32."""
    ours = F.log_softmax(at_least_float32(student) / temperature, -1)
    theirs = F.log_softmax(at_least_float32(teacher) / temperature, -1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


class Kd(Method):
    """Learn each domain with all weights, held to what the model of before answers on the same text."""

    returns = True
    masked = False
    teacher: nn.Module

    def __init__(self, model: nn.Module, settings: KdSettings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)

    def clashes(self, other: Method) -> str | None:
        return nothing_to_keep(other)

    def begin(self, stage: Stage) -> None:
        self.masked = lm_batches(stage.batches).objective == "masked"
        self.teacher = frozen_copy(self.model, self.settings.keep, stage.folder)

    def end(self, stage: Stage) -> None:
        del self.teacher

    def sizes(self) -> dict[str, int]:
        return {named_place("teacher", self.settings.keep): bytes_of(dict(self.model.named_parameters()))}

    def extra_items(self, batch: Batch) -> int:
        """All target positions; those of a buffer's rows too, where another method adds them."""
        return int((batch["labels"] != NO_TARGET).sum())

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        chosen, text, student = batch["labels"] != NO_TARGET, batch, outputs.logits
        if self.masked:
            text = {**batch, "input_ids": unmasked(batch)}
            student = target_logits(self.model, text)
        with torch.no_grad():
            teacher = target_logits(self.teacher, text)
        loss: Tensor = self.settings.weight * (distillation(student, teacher, self.settings.temperature) * chosen).sum()
        return loss


def unmasked(batch: Batch) -> Tensor:
    """The text (B, T) of a masked LM's batch: every target token in its place again."""
    ids, real = batch["input_ids"].flatten(), batch["labels"] != NO_TARGET
    there = batch["positions"][real]
    return ids.index_put((there,), batch["labels"][real]).view_as(batch["input_ids"])


__all__ = ["Kd", "KdSettings", "distillation", "unmasked"]
