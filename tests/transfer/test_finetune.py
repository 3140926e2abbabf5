"""Fine-tuning a copy on labelled rows: encoders and decoders, classes and numbers, odd rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from eunoe.data.collate import pad_rows
from eunoe.data.tasks import Example, Task, load_task
from eunoe.errors import EunoeError
from eunoe.methods.base import Method
from eunoe.models.anatomy import anatomy
from eunoe.models.load import LanguageModel, load_lm
from eunoe.recipe import CorpusSettings, ModelSettings, TaskSettings
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.finetune import FinetuneSettings, check, encode_task, finetune
from tests.conftest import shared
from tests.tiny import WORDS, size, tiny_folder, tiny_gpt2, tiny_tokenizer


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


def fine(lm: LanguageModel, given: Task, **change: Any) -> Tuned:
    settings = FinetuneSettings(**{"batch": 8, "epochs": 12, "lr": 0.01, "max_length": 16, "dropout": 0.0, **change})
    start = Start(lm=lm, method=Method(lm.model, None, []), domain=None, task=given, seed=0, batch=4)
    return finetune(start, settings)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_plain_task_is_learnt_and_the_model_stays_as_it_was(tmp_path: Path, kind: str, pair: bool) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, kind, initializer_range=0.3)), dropout=0.0))
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    actual = fine(lm, task(pair=pair))
    assert {s.metric: s.value for s in actual.scores} == {"accuracy": 1.0, "macro_f1": 1.0}
    assert actual.steps == 48
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    assert fine(lm, task(pair=pair)).scores == actual.scores


def test_numbers_are_learnt_by_their_correlation(tmp_path: Path) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, initializer_range=0.3)), dropout=0.0))
    actual = {s.metric: s.value for s in fine(lm, task("regression")).scores}
    assert actual["pearson"] > 0.9
    assert actual["spearman"] > 0.8


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_right_choice_is_learnt_and_answered_by_its_place(tmp_path: Path, kind: str) -> None:
    """The right choice is the word of the context; each choice is scored by itself, so which place it has means nothing."""

    def row(i: int) -> Example:
        word, other = ("good", "bad") if i % 3 else ("bad", "good")
        place = i % 2
        return Example(f"{WORDS[i]} {word}", None, place, (word, other) if place == 0 else (other, word))

    made = Task("made", "choice", (), tuple(map(row, range(32))), tuple(map(row, range(32, 44))), None)
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, kind, initializer_range=0.3)), dropout=0.0))
    tuned = fine(lm, made, epochs=40)
    assert {s.metric: s.value for s in tuned.scores} == {"accuracy": 1.0}
    assert tuned.predict(made.test) == [e.label for e in made.test]
    swapped = [Example(e.text, None, 0, e.choices[::-1]) for e in made.test]
    assert tuned.predict(swapped) == [1 - int(e.label) for e in made.test]


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
        check(lm, task(), FinetuneSettings(max_length=129), "recipe.transfer")


@pytest.mark.parametrize("source", ["cases/gpt2_bert_tokenizer", "cases/roberta_bert_tokenizer"])
def test_pairs_of_a_model_with_another_familys_tokenizer(source: str) -> None:
    lm = load_lm(ModelSettings(name=str(shared(source))))
    rows = str(shared("cases/train_pair.csv"))
    given = load_task("pairs", TaskSettings(train=rows, test=rows, pair="pair"), CorpusSettings(source="unread.txt"))
    assert fine(lm, given, max_length=64, epochs=1).scores


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "distilbert", "bert"])
def test_token_types_go_only_to_models_with_a_table_of_them(kind: str) -> None:
    """By effect: only a model with such a table may tell the texts of a pair apart by more than their order."""
    small = {"vocab_size": size(), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
             "initializer_range": 0.5, "max_position_embeddings": 80, "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "gpt2": lambda: tiny_gpt2(initializer_range=0.5),
        "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**small, type_vocab_size=1)),
        "distilbert": lambda: DistilBertForMaskedLM(
            DistilBertConfig(vocab_size=size(), dim=16, n_layers=1, n_heads=2, hidden_dim=32, initializer_range=0.5)
        ),
        "bert": lambda: BertForMaskedLM(BertConfig(**small)),
    }
    lm = LanguageModel(made[kind]().eval(), tiny_tokenizer(), "causal" if kind == "gpt2" else "masked", kind)
    rows, _ = encode_task(lm, task(pair=True), FinetuneSettings(max_length=16))
    batch = {k: v for k, v in pad_rows(rows, range(len(rows))).items() if k != "labels"}
    base = anatomy(lm.model).base
    with torch.inference_mode():
        as_given = base(**batch)[0]
        without = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    assert torch.equal(as_given, without) == (kind != "bert")
