"""The one table of transfers: how a post-trained model is brought to an end task. A new one is a file, a row, a test file."""

from __future__ import annotations

from eunoe.transfer import finetune
from eunoe.transfer.base import Course, Entry, Start, Tuned

TRANSFERS: dict[str, Entry] = {
    "finetune": Entry(
        transfer=finetune.finetune, settings=finetune.FinetuneSettings, check=finetune.check, resolve=finetune.resolve,
        course=finetune.course, no_best=finetune.no_best, scorings=finetune.scorings,
        composed={"evaluate_every": 0.1}, drafted=lambda epochs, tokens: {"epochs": epochs, "max_length": tokens},
        summary="fresh classifier, everything trains; optimizer adamw or recadam",
    ),
}  # fmt: skip

__all__ = ["TRANSFERS", "Course", "Entry", "Start", "Tuned"]
