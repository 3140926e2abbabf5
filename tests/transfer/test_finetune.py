"""Fine-tuning a copy on labelled rows: encoders and decoders, classes and numbers, odd rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eunoe.data.tasks import Example, Task
from eunoe.errors import EunoeError
from eunoe.methods.base import Method
from eunoe.models.load import LanguageModel, load_lm
from eunoe.recipe import ModelSettings
from eunoe.transfer.finetune import Finetuned, FinetuneSettings, encode_task, finetune
from tests.tiny import WORDS, tiny_folder


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def task(kind: str = "classification", pair: bool = False, n: int = 32) -> Task:
    """The label is the first word (good or bad); as a number 1 or -1."""

    def row(i: int) -> Example:
        word = ("good", "bad")[i % 2]
        label: str | float = word if kind == "classification" else (1.0, -1.0)[i % 2]
        return Example(f"{word} {WORDS[i]} {WORDS[i + 3]}", WORDS[i + 5] if pair else None, label)

    labels = ("bad", "good") if kind == "classification" else ()
    return Task("made", kind, labels, tuple(map(row, range(n))), tuple(map(row, range(n, n + 8))), None)


def fine(lm: LanguageModel, given: Task, **change: Any) -> Finetuned:
    settings = FinetuneSettings(**{"batch": 8, "epochs": 12, "lr": 0.01, "max_length": 16, "dropout": 0.0, **change})
    rows = encode_task(lm, given, settings)
    return finetune(lm, Method(lm.model, None, []), None, given, rows, settings, 0, 4)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_plain_task_is_learnt_and_the_model_stays_as_it_was(tmp_path: Path, kind: str, pair: bool) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, kind, initializer_range=0.3)), dropout=0.0))
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    found = fine(lm, task(pair=pair))
    assert {s.metric: s.value for s in found.scores} == {"accuracy": 1.0, "macro_f1": 1.0}
    assert found.steps == 48
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    assert fine(lm, task(pair=pair)).scores == found.scores


def test_numbers_are_learnt_by_their_correlation(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, initializer_range=0.3)), dropout=0.0))
    found = {s.metric: s.value for s in fine(lm, task("regression")).scores}
    assert found["pearson"] > 0.9
    assert found["spearman"] > 0.8


def test_only_models_that_tell_segments_apart_are_given_them(tmp_path: Path) -> None:
    """GPT-2 would add the embedding of the word number 0 or 1 to every token."""
    for kind, wanted in (("bert", True), ("gpt2", False), ("llama", False)):
        lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, kind))))
        rows, _ = encode_task(lm, task(pair=True), FinetuneSettings(max_length=16))
        assert ("token_type_ids" in rows.inputs[0]) == wanted


def test_an_empty_row_of_a_decoder_is_one_token_and_not_none(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, "gpt2"))))
    made = task()
    odd = Task(
        made.name, made.kind, made.labels, (Example("", None, "good"), *made.train), (Example("", None, "bad"),), None
    )
    rows, test_rows = encode_task(lm, odd, FinetuneSettings(max_length=16))
    assert [len(r.inputs[0]["input_ids"]) for r in (rows, test_rows)] == [1, 1]
    assert all(0.0 <= s.value <= 1.0 for s in fine(lm, odd, epochs=1).scores)


def test_rows_longer_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path))))
    with pytest.raises(
        EunoeError, match=r"recipe\.transfer\.max_length is 129, but .* reads at most 128 tokens at once"
    ):
        encode_task(lm, task(), FinetuneSettings(max_length=129))
