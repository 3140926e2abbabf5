"""Features of a frozen model: the epoch that computes them against the epochs that read them from the disk.

A text of 128 words in each of 128 rows (words of one token each), a classifier of ``transfer: features`` with its defaults (a
BiLSTM of 128 cells over a mix of all layers, batch 32), as ``eunoe finetune --transfer features`` trains it. The first epoch runs
the model over the rows, writes what it gives, and trains; the second trains. Two models: MiniLM as it is embedded, and random weights
of RoBERTa-base's shape with MiniLM's tokenizer. One thread, time on the wall: writing and reading count.
"""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np

from benchmarks.measure import one_thread, ratio
from benchmarks.posttraining import MODELS
from eunoe.choices import make_optimizer
from eunoe.data.features import shown_size
from eunoe.data.tasks import Example, Task
from eunoe.data.words import split_words
from eunoe.methods.base import Method
from eunoe.models.load import LanguageModel, pretrained
from eunoe.recipe import ModelSettings
from eunoe.transfer.features import FeatureSettings
from eunoe.transfer.over_features import FeatureBatches, FeatureLoss, FeatureRows, task_model
from eunoe.transfer.phase import phase
from eunoe.transfer.readers import LayerReader, read_texts

ROWS, WORDS, TURNS = 128, 128, 3
AIM = 10.0


def models() -> dict[str, LanguageModel]:
    small = pretrained(ModelSettings(name="minilm"))
    large, _ = MODELS["RoBERTa-base, 8 x 128"].make(frozen=False)
    return {"MiniLM": small, "RoBERTa-base's shape": LanguageModel(large.eval(), small.tokenizer, "masked", "roberta")}


def rows_of(lm: LanguageModel) -> Task:
    """Rows of words that are one token each, the same for both models."""
    words = [word for word in lm.tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2]
    drawn = np.random.default_rng(0).choice(sorted(words), (ROWS, WORDS))
    examples = tuple(Example(" ".join(row), None, "ab"[i % 2]) for i, row in enumerate(drawn))
    return Task("rows", "classification", ("a", "b"), examples, examples[:1], None)


def epochs(lm: LanguageModel, task: Task) -> tuple[float, float, str]:
    """Seconds of the first epoch and of the second, and what the features take on the disk."""
    settings = FeatureSettings(max_length=WORDS + 2)
    began = time.perf_counter()
    reader = LayerReader(lm, Method(lm.model, None, []), None, settings.max_length)
    texts = [split_words(example.text) for example in task.train]
    stored = read_texts(reader, texts, "the rows", settings.stored_as, 32)
    rows = FeatureRows(task, task.train, texts, None, stored, {})
    model = task_model(rows, settings)
    batches = FeatureBatches(rows, settings.batch, 2, 0)
    ends: list[float] = []

    def observe(step: int) -> dict[str, float]:
        if step % (len(batches) // 2) == 0:
            ends.append(time.perf_counter())
        return {}

    phase(model, batches, FeatureLoss("classification", settings.mix_pull),
          lambda m: make_optimizer(settings.optimizer, m, settings.lr, len(batches)), settings, None, {}, None,
          name="rows", seed=0, observe=observe)  # fmt: skip
    size = shown_size(stored.bytes)
    stored.remove()
    return ends[0] - began, ends[1] - ends[0], size


def main() -> None:
    os.environ["EUNOE_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as folder, one_thread():
        os.environ["EUNOE_CACHE"] = folder
        for name, lm in models().items():
            task = rows_of(lm)
            seen = [epochs(lm, task) for _ in range(TURNS)]
            first, second, size = (list(column) for column in zip(*seen, strict=True))
            print(f"{name}: the second epoch is {ratio(first, second)} as fast as the first, aim {AIM:.0f} x; {ROWS} rows x {WORDS} words, "
                  f"{size[0]} on the disk", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
