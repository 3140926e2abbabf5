"""Pretrained word vectors: what there was before language models were transferred, and what they are compared with.

Vectors of a text file (GloVe, fastText) or the embedded table feed the same task models as ELMo. They are fixed, or tuned for the
words of the training rows. The language model is not read: in a run over domains the score is the same after every one.
"""

from __future__ import annotations

from dataclasses import dataclass

from eunoe.data.tasks import Task
from eunoe.models.load import LanguageModel
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.over_features import TaskModelSettings, check_task_model, train_task_model


@dataclass(kw_only=True)
class VectorSettings(TaskModelSettings):
    """A task model over word vectors."""

    word_vectors: str = "wordllama"
    """``wordllama`` (embedded, needs eunoe[vectors]) or a text file of word vectors, as GloVe and fastText (.vec) give them."""
    tune_vectors: bool = False
    """Also train the vectors of the words in the training rows."""


def check(lm: LanguageModel, task: Task, settings: VectorSettings, where: str) -> None:
    """Refuse vectors that cannot be read, a kind without a task model."""
    check_task_model(task, settings, where)


def vectors(start: Start, settings: VectorSettings) -> Tuned:
    """Train a task model on word vectors; the language model is not read."""
    return train_task_model(start, settings, None)


__all__ = ["VectorSettings", "check", "vectors"]
