"""The frozen model's layers as features: its contribution to a task without a weight of it being trained.

ELMo's way (NAACL 2018, https://arxiv.org/abs/1802.05365) for any Hugging Face model: the layers are mixed for each word, with
weights that the task learns, and feed a BiLSTM. The model runs once over each text; what it gives lies on the disk from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eunoe.data.tasks import Task
from eunoe.errors import EunoeError
from eunoe.methods.base import Method
from eunoe.models.load import LanguageModel, refuse_longer
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.over_features import LayerSettings, check_task_model, too_long, train_task_model, words_of
from eunoe.transfer.readers import LayerReader, refuse_without_places


@dataclass(kw_only=True)
class FeatureSettings(LayerSettings):
    """Features from the layers of the model."""

    word_pieces: Literal["mean", "first"] = "mean"
    """What a word of several tokens gets: the mean of theirs, or the first's."""


def check(lm: LanguageModel, task: Task, settings: FeatureSettings, where: str) -> None:
    """Refuse a length beyond the model's positions, a tokenizer that does not say where its tokens are, a kind without a task model."""
    check_task_model(task, settings, where)
    refuse_longer(lm, settings.max_length, f"{where}.max_length")
    refuse_without_places(lm)
    around = lm.tokenizer.num_special_tokens_to_add(pair=False)
    if settings.max_length <= around:
        raise EunoeError(f"{where}.max_length is {settings.max_length}, which leaves nothing of a text: the tokenizer puts {around} tokens "
                         f"around it. Set it to {around + 1} or more.")  # fmt: skip
    if task.kind == "tagging":
        rows = [*task.train, *task.test]
        reader = _reader(lm, Method(lm.model, None, []), None, settings)
        for example, read in zip(rows, reader.words_read([words_of(e)[0] for e in rows]), strict=True):
            if read < len(example.tokens):
                raise too_long(task, example, read)


def features(start: Start, settings: FeatureSettings) -> Tuned:
    """Train a task model on the layers of the frozen model; the model itself is not changed."""
    return train_task_model(start, settings, _reader(start.lm, start.method, start.domain, settings))


def _reader(lm: LanguageModel, method: Method, domain: str | None, settings: FeatureSettings) -> LayerReader:
    return LayerReader(
        lm, method, domain, settings.max_length, settings.word_pieces, all_layers=settings.read_layers == "all"
    )


__all__ = ["FeatureSettings", "check", "features"]
