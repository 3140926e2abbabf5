"""The one table of transfers: how a post-trained model is brought to an end task. A new one is a file, a row, a test file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eunoe.errors import EunoeError
from eunoe.recipe import TaskSettings
from eunoe.transfer import elmo, features, finetune, gpt, over_features, ulmfit, vectors, watch
from eunoe.transfer.base import Course, Entry, Start, Tuned

_OVER_FEATURES: Any = {
    "resolve": over_features.resolve, "no_best": watch.no_best, "scorings": watch.scorings,
    "kinds": over_features.KINDS, "reads": over_features.reads,
    "drafted": lambda epochs, tokens: {"epochs": epochs, "max_length": tokens},
}  # fmt: skip
"""What the transfers with a task model over features have alike."""

TRANSFERS: dict[str, Entry] = {
    "finetune": Entry(
        transfer=finetune.finetune, settings=finetune.FinetuneSettings, check=finetune.check, resolve=finetune.resolve,
        course=finetune.course, no_best=watch.no_best, scorings=watch.scorings,
        composed={"evaluate_every": 0.1}, drafted=lambda epochs, tokens: {"epochs": epochs, "max_length": tokens},
        summary="fresh classifier, everything trains; optimizer adamw or recadam",
    ),
    "gpt": Entry(
        transfer=gpt.gpt, settings=gpt.GptSettings, check=gpt.check, resolve=gpt.resolve,
        course=finetune.course, no_best=watch.no_best, scorings=watch.scorings,
        composed={"evaluate_every": 0.1}, drafted=lambda epochs, tokens: {"epochs": epochs, "max_length": tokens},
        summary="causal LMs, as GPT-1: rows between new tokens, the LM's own loss beside the task's",
    ),
    "features": Entry(
        transfer=features.features, settings=features.FeatureSettings, check=features.check, **_OVER_FEATURES,
        summary="the model frozen: a BiLSTM over a mix of its layers, computed once and kept on the disk; also tags",
    ),
    "elmo": Entry(
        transfer=elmo.elmo, settings=elmo.ElmoSettings, check=elmo.check, unlabelled=True,
        **_OVER_FEATURES | {"reads": elmo.reads},
        summary="the same over the layers of a biLM: a released one, or one trained on text here; also tags",
    ),
    "vectors": Entry(
        transfer=vectors.vectors, settings=vectors.VectorSettings, check=vectors.check, **_OVER_FEATURES,
        summary="the same over word vectors, fixed or tuned, without a language model; also tags",
    ),
    "ulmfit": Entry(
        transfer=ulmfit.ulmfit, settings=ulmfit.UlmfitSettings, check=ulmfit.check, resolve=ulmfit.resolve, unlabelled=True,
        reads=ulmfit.reads,
        summary="fine-tune the language model on the task's text, then a classifier, unfreezing layer by layer from the top",
    ),
}  # fmt: skip


def refuse_unread(tasks: Mapping[str, TaskSettings], names: Iterable[str]) -> None:
    """Raise ``EunoeError`` for a task with unlabelled text that none of the transfers called ``names`` reads."""
    read = [name for name, entry in TRANSFERS.items() if entry.unlabelled]
    if any(name in read for name in names):
        return
    for task, settings in tasks.items():
        if settings.unlabelled is not None:
            raise EunoeError(f"task of {task!r}: unlabelled is {settings.unlabelled!r}, but no transfer of the recipe reads it. Transfers "
                             f"that do: {', '.join(read) or 'none'}. Choose one of them, or leave unlabelled out.")  # fmt: skip


__all__ = ["TRANSFERS", "Course", "Entry", "Start", "Tuned", "refuse_unread"]
