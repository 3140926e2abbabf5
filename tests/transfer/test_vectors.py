"""Word vectors as a transfer: fixed, tuned, and without a look at the language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eunoe.data.tasks import Example, Task
from eunoe.errors import EunoeError
from eunoe.models.load import LanguageModel, load_lm
from eunoe.recipe import ModelSettings
from tests.tiny import WORDS, tiny_folder
from tests.transfer.test_features import Passes, task, tune, values


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return load_lm(ModelSettings(name=str(tiny_folder(tmp_path))))


@pytest.fixture
def file(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path / "vectors.txt"
    path.write_text(
        "".join(f"{word} {' '.join(f'{x:.4f}' for x in rng.normal(size=8))}\n" for word in (*WORDS, "good", "bad"))
    )
    return str(path)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_task_is_learnt_from_vectors_without_the_language_model(lm: LanguageModel, file: str, tuned: bool) -> None:
    passes = Passes(lm)
    actual = tune("vectors", lm, task(), word_vectors=file, tune_vectors=tuned)
    assert values(actual)["accuracy"] == 1.0
    assert passes.count == 0
    assert actual.trunk is None


def test_tuned_vectors_are_those_of_the_training_rows_alone(lm: LanguageModel, file: str) -> None:
    """Two words without vectors: only tuning can tell them apart, and only where a training row has them."""
    rows = tuple(Example(("unseena", "unseenb")[i % 2], None, ("good", "bad")[i % 2]) for i in range(16))
    given = Task("made", "classification", ("bad", "good"), rows, rows[:8], None)
    assert values(tune("vectors", lm, given, word_vectors=file))["accuracy"] == 0.5
    tuned = tune("vectors", lm, given, word_vectors=file, tune_vectors=True)
    assert values(tuned)["accuracy"] == 1.0
    later = tuned.predict([Example("never", None, ""), Example("seen", None, "")])
    assert later[0] == later[1], "words of later have no vectors, and are alike"


def test_vectors_enter_beside_the_layers_of_a_model(lm: LanguageModel, file: str) -> None:
    for placement in ("input", "output", "both"):
        given: dict[str, Any] = {"word_vectors": file, "mix_placement": placement, "epochs": 2}
        fixed, tuned = (
            tune("features", lm, task(), **given, tune_vectors=t).phases["task"].curve for t in (False, True)
        )
        assert fixed != tuned
    plain = tune("features", lm, task(), epochs=2).phases["task"].curve
    assert plain != fixed


def test_a_changed_file_is_read_again(lm: LanguageModel, file: str) -> None:
    one = tune("vectors", lm, task(), word_vectors=file, epochs=1).phases["task"].curve
    assert tune("vectors", lm, task(), word_vectors=file, epochs=1).phases["task"].curve == one
    Path(file).write_text(Path(file).read_text().replace("0.1", "0.7"))
    assert tune("vectors", lm, task(), word_vectors=file, epochs=1).phases["task"].curve != one


def test_vectors_that_are_not_there_are_refused_before_anything_trains(lm: LanguageModel) -> None:
    with pytest.raises(EunoeError, match=r"recipe\.transfer\.word_vectors: 'glove\.txt' is not a file"):
        tune("vectors", lm, task(), word_vectors="glove.txt")
    with pytest.raises(EunoeError, match=r"recipe\.transfer\.word_vectors: 'glove\.txt' is not a file"):
        tune("features", lm, task(), word_vectors="glove.txt")


def test_in_bf16_too(lm: LanguageModel, file: str) -> None:
    for kind in ("classification", "tagging"):
        tuned = tune("vectors", lm, task(kind), word_vectors=file, precision="bf16", crf=kind == "tagging", epochs=2)
        assert all(torch.isfinite(torch.tensor(loss)) for _, loss, *_ in tuned.phases["task"].curve)
