"""Features of words, kept on the disk, and the task models over them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eunoe.data.features import shown_size
from eunoe.data.tasks import Example, Task
from eunoe.data.words import join_words, split_words
from eunoe.errors import EunoeError
from eunoe.methods.base import Method
from eunoe.models.anatomy import anatomy
from eunoe.models.load import LanguageModel, load_lm
from eunoe.recipe import ModelSettings
from eunoe.transfer import TRANSFERS
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.features import FeatureSettings
from eunoe.transfer.readers import LayerReader, read_texts, words_of_pieces
from tests.conftest import shared
from tests.tiny import WORDS, tiny_folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("eunoe.data.features.say", lines.append)
    return lines


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return load_lm(ModelSettings(name=str(tiny_folder(tmp_path, initializer_range=0.3)), dropout=0.0))


def task(kind: str = "classification", pair: bool = False, n: int = 32) -> Task:
    """The label is the first word (good or bad), a number, whether a pair's words are the same, or each word's own kind."""

    def row(i: int) -> Example:
        word = ("good", "bad")[i % 2]
        words = (word, WORDS[i], WORDS[i + 3])
        if kind == "tagging":
            return Example(" ".join(words), None, ("B-X" if i % 2 else "O", "O", "B-Y"), tokens=words)
        if pair:
            return Example(WORDS[i // 2], WORDS[i // 2] if i % 2 else WORDS[i // 2 + 1], "same" if i % 2 else "other")
        return Example(" ".join(words), None, word if kind == "classification" else (1.0, -1.0)[i % 2])

    rows = tuple(map(row, range(n)))
    tags = {tag for example in rows if isinstance(example.label, tuple) for tag in example.label}
    labels = () if kind == "regression" else tuple(sorted(tags or {str(e.label) for e in rows}))
    return Task("made", kind, labels, rows, rows[:8], None)


def tune(name: str, lm: LanguageModel, given: Task, folder: Path | None = None, **change: Any) -> Tuned:
    entry = TRANSFERS[name]
    settings = entry.resolve(entry.settings(**{"batch": 8, "epochs": 12, "lr": 0.02, "max_length": 16, "dropout": 0.0,
                                               "lstm_cells": 16, "schedule": "constant", **change}), "recipe.transfer")  # fmt: skip
    entry.refuse(lm, given, settings, "recipe.transfer")
    start = Start(lm=lm, method=Method(lm.model, None, []), domain=None, task=given, seed=0, batch=4, folder=folder)
    return entry.transfer(start, settings)


def values(tuned: Tuned) -> dict[str, float]:
    return {s.metric: s.value for s in tuned.scores}


class Passes:
    """Counts how often the base model is called."""

    def __init__(self, lm: LanguageModel) -> None:
        self.count = 0
        anatomy(lm.model).base.register_forward_hook(self.add)

    def add(self, *_: Any) -> None:
        self.count += 1


# -- words and their pieces -------------------------------------------------------------------------------------------
def test_a_piece_belongs_to_the_words_that_it_holds_characters_of() -> None:
    text = split_words("It's raining, no?")
    assert list(text) == ["It's", "raining", ",", "no", "?"]
    pieces = [(0, 0), (0, 2), (2, 4), (4, 8), (8, 12), (12, 16), (16, 17), (0, 0)]
    assert words_of_pieces(text, pieces) == [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (3, 5), (4, 6)]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@torch.inference_mode()
def test_features_are_the_layers_of_the_model_over_a_words_pieces(tmp_path: Path, kind: str) -> None:
    lm = load_lm(ModelSettings(name=str(tiny_folder(tmp_path, kind))))
    texts = [join_words([WORDS[0], "unheardof", WORDS[1]]), join_words([WORDS[2]]), split_words("")]
    mean, first = (
        LayerReader(lm, Method(lm.model, None, []), None, 64, pieces).read(texts) for pieces in ("mean", "first")
    )
    assert [row.shape[0] for row in mean] == [3, 1, 0]
    for i, text in enumerate(texts[:2]):
        coded = lm.tokenizer(text.text, return_offsets_mapping=True)
        out = anatomy(lm.model).base(input_ids=torch.tensor([coded["input_ids"]]), output_hidden_states=True)
        states = torch.stack([layer[0] for layer in out.hidden_states], 1)
        for word, (start, end) in enumerate(text.places):
            places = enumerate(coded["offset_mapping"])
            pieces = [k for k, (a, b) in places if b > a and max(a, start) < min(b, end)]
            assert np.allclose(mean[i][word], states[pieces].mean(0), atol=1e-5)
            assert np.allclose(first[i][word], states[pieces[0]], atol=1e-5)


def test_a_text_is_cut_behind_the_last_word_that_is_read(lm: LanguageModel) -> None:
    texts = [join_words(list(WORDS[:10]))]
    whole, cut = (LayerReader(lm, Method(lm.model, None, []), None, n).read(texts)[0] for n in (64, 6))
    assert len(whole) == 10
    assert 0 < len(cut) < 10


# -- the disk ---------------------------------------------------------------------------------------------------------
def test_features_are_made_once_and_their_size_is_said(lm: LanguageModel, said: list[str]) -> None:
    passes = Passes(lm)
    first = tune("features", lm, task())
    made = passes.count
    assert made > 0
    assert sum("on the disk in" in line and "bytes" in line for line in said) == 2
    second = tune("features", lm, task(), epochs=24)
    assert passes.count == made, "twice the epochs, and not one pass of the model"
    assert second.steps == 2 * first.steps
    assert sum(" read from " in line for line in said) == 2


def test_another_model_text_tokenizer_or_setting_is_another_entry(lm: LanguageModel, tmp_path: Path) -> None:
    base = {"max_length": 16, "pieces": "mean", "all_layers": True}

    def identity(**change: Any) -> str:
        return LayerReader(lm, Method(lm.model, None, []), None, **{**base, **change}).identity

    seen = {identity(), identity(max_length=15), identity(pieces="first"), identity(all_layers=False)}
    assert len(seen) == 4
    assert identity() in seen, "the same again"
    with torch.no_grad():
        next(anatomy(lm.model).base.parameters())[0, 0] += 1e-3
    assert identity() not in seen
    seen.add(identity())
    lm.tokenizer.add_tokens(["brandnew"])
    assert identity() not in seen
    reader = LayerReader(lm, Method(lm.model, None, []), None, 16)
    folders = {read_texts(reader, [split_words(text)], "it", "float32", 4).folder for text in ("good", "bad", "good")}
    assert len(folders) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "meta"])
def test_damaged_features_are_noticed_and_made_again(lm: LanguageModel, said: list[str], damage: str) -> None:
    reader = LayerReader(lm, Method(lm.model, None, []), None, 16)
    texts = [split_words("good bad")]
    stored = read_texts(reader, texts, "it", "float32", 4)
    expected = stored[0].copy()
    file = stored.folder / "values.bin"
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[5] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    else:
        (stored.folder / "meta.json").write_text("{}")
    again = read_texts(reader, texts, "it", "float32", 4)
    assert any("are damaged" in line for line in said)
    assert np.array_equal(again[0], expected)


def test_features_for_a_task_alone_are_removed_and_others_keep_theirs(lm: LanguageModel) -> None:
    reader, texts = LayerReader(lm, Method(lm.model, None, []), None, 16), [split_words("good bad")]
    alone = read_texts(reader, texts, "it", "float32", 4, stays=False)
    expected, beside = alone[0].copy(), read_texts(reader, texts, "it", "float32", 4, stays=False)
    alone.remove()
    assert not alone.folder.exists()
    assert np.array_equal(beside[0], expected), "what is open stays readable"
    kept = read_texts(reader, texts, "it", "float32", 4)
    read_texts(reader, texts, "it", "float32", 4, stays=False).remove()
    assert kept.folder.exists(), "it was made to stay"


def test_an_entry_that_is_removed_as_it_is_made_is_no_damage(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process with ``keep_features: false`` is done with the same texts at that moment."""
    reader, texts = LayerReader(lm, Method(lm.model, None, []), None, 16), [split_words("good bad")]
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        done = real(self, target)
        shutil.rmtree(target)
        return done

    monkeypatch.setattr(Path, "rename", rename)
    assert read_texts(reader, texts, "it", "float32", 4, stays=False)[0].shape[0] == 2


def test_numbers_that_half_precision_does_not_hold_are_refused(lm: LanguageModel) -> None:
    reader = LayerReader(lm, Method(lm.model, None, []), None, 16)
    with torch.no_grad():
        anatomy(lm.model).embeddings.weight.mul_(1e9)
        for p in lm.model.modules():
            if isinstance(p, torch.nn.LayerNorm):
                p.weight.mul_(1e6)
    with pytest.raises(EunoeError, match=r"features that float16 does not hold .*Set stored_as: float32"):
        read_texts(reader, [split_words("good")], "it", "float16", 4)
    read_texts(reader, [split_words("good")], "it", "float32", 4)


def test_features_can_be_taken_off_the_disk_when_the_task_is_done(
    lm: LanguageModel, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    tuned = tune("features", lm, task(), keep_features=False, epochs=1)
    assert list((tmp_path / "cache/features").iterdir()) == []
    assert tuned.predict(task().test[:1]), "rows of later are read anew"
    assert list((tmp_path / "cache/features").iterdir()) == []
    tune("features", lm, task(), epochs=1)
    assert len(list((tmp_path / "cache/features").iterdir())) == 2


def test_sizes_are_said_as_people_say_them() -> None:
    assert [shown_size(n) for n in (12, 99_999, 2_500_000, 3 * 10**9)] == [
        "12 bytes",
        "99,999 bytes",
        "2.5 MB",
        "3.0 GB",
    ]


# -- task models ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["classification", "regression", "tagging", "pair"])
def test_a_plain_task_is_learnt_from_features_and_the_model_stays_as_it_was(lm: LanguageModel, kind: str) -> None:
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    given = task("classification" if kind == "pair" else kind, kind == "pair")
    actual = tune("features", lm, given, epochs=20, crf=kind == "tagging")
    metric = {"regression": "pearson", "tagging": "span_f1"}.get(kind, "accuracy")
    assert values(actual)[metric] > 0.9, values(actual)
    assert actual.trunk is None
    assert actual.predict(given.test)[0] == pytest.approx(
        given.test[0].label if kind != "tagging" else list(given.test[0].label), abs=0.5
    )
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    assert tune("features", lm, given, epochs=20, crf=kind == "tagging").scores == actual.scores


@pytest.mark.parametrize(
    "change",
    [{"read_layers": "last"}, {"layer_norm": True}, {"mix_pull": 1.0}, {"word_pieces": "first"}, {"lstm_layers": 2}, {"dropout": 0.3},
     {"stored_as": "float32"}, {"mix_placement": "both"}, {"lstm_cells": 8}, {"optimizer": "bert_adam"}, {"micro_batch": 4}],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_what_is_learnt(lm: LanguageModel, change: dict[str, Any]) -> None:
    rows = tuple(Example(f"{e.text} {WORDS[0]}{WORDS[1]}", None, e.label) for e in task().train)  # a word of two pieces
    given = Task("made", "classification", ("bad", "good"), rows, rows[:8], None)
    plain, other = (tune("features", lm, given, epochs=2, **more).phases["task"].curve for more in ({}, change))
    assert plain != other
    if change == {"micro_batch": 4}:
        assert [loss for _, loss, *_ in plain] == pytest.approx([loss for _, loss, *_ in other], rel=1e-3)


def test_a_strong_pull_keeps_the_mix_at_the_mean_of_all_layers(lm: LanguageModel) -> None:
    spread = []
    for pull in (0.001, 1.0, 100.0):
        from eunoe.transfer import over_features

        kept: list[Any] = []
        make = over_features.task_model
        over_features.task_model = lambda *args, make=make, kept=kept: kept.append(make(*args)) or kept[-1]
        try:
            tune("features", lm, task(), mix_pull=pull)
        finally:
            over_features.task_model = make
        spread.append(float(kept[0].inputs.below.weights.detach().abs().max()))
    assert spread[0] > spread[1] > spread[2]


def test_scores_on_the_way_and_the_best_of_them(lm: LanguageModel) -> None:
    assert tune("features", lm, task(), epochs=2).best == []
    tuned = tune("features", lm, task(), evaluate_every=0.25)
    assert tuned.best[0].value == max(
        value for _, metric, value in tuned.phases["task"].observed if metric == "accuracy"
    )


def test_empty_and_long_rows_are_read(lm: LanguageModel) -> None:
    rows = (Example("", None, "good"), Example(" ".join(WORDS * 3), None, "bad"), *task().train)
    given = Task("odd", "classification", ("bad", "good"), rows, rows, None)
    assert values(tune("features", lm, given, epochs=1))["accuracy"] >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"max_length": 2},
            r"max_length is 2, which leaves nothing of a text: .* puts 2 tokens around it\. Set it to 3",
        ),
        ({"max_length": 129}, r"recipe\.transfer\.max_length is 129, but .* reads at most 128 tokens"),
        ({"crf": True}, r"recipe\.transfer\.crf is for tagging tasks, and 'made' is of kind classification"),
        ({"mix_placement": "output"}, r"mix_placement: output leaves nothing for the BiLSTM to read"),
        ({"tune_vectors": True}, r"tune_vectors is true, but there are no word_vectors"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_read(
    lm: LanguageModel, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(EunoeError, match=message):
        tune("features", lm, task(), **change)


def test_a_word_without_a_piece_is_read_as_zero_and_cuts_nothing(lm: LanguageModel) -> None:
    odd = "\u200b"
    texts = [join_words([WORDS[0], odd]), join_words([odd]), join_words([odd, WORDS[0], odd, *WORDS[:10], odd])]
    whole = LayerReader(lm, Method(lm.model, None, []), None, 64).read(texts)
    assert [len(row) for row in whole] == [2, 1, 14]
    assert not whole[0][1].any()
    assert whole[0][0].any()
    assert not whole[2][[0, 2, 13]].any()
    cut = LayerReader(lm, Method(lm.model, None, []), None, 6)
    assert [len(row) for row in cut.read(texts)] == cut.words_read(texts) == [2, 1, 6]
    assert cut.words_read([]) == []
    rows = (*task("tagging").train, Example(f"good {odd}", None, ("B-X", "O"), tokens=("good", odd)))
    tune("features", lm, Task("made", "tagging", ("B-X", "B-Y", "O"), rows, rows, None), epochs=1)


def test_a_tagging_row_that_would_be_cut_is_refused(lm: LanguageModel) -> None:
    words = tuple(WORDS[:20])
    long = Example(" ".join(words), None, ("O", "B-X") * 10, tokens=words)
    given = Task("long", "tagging", ("B-X", "O"), (long, *task("tagging").train), (long,), None)
    with pytest.raises(EunoeError, match=r"of a row of 20 words .* 16 are read, as max_length says"):
        tune("features", lm, given)
    with pytest.raises(EunoeError, match=r"of a row of 20 words .* \d+ are read, as max_length says"):
        tune("features", lm, given, max_length=20)  # 20 words are more tokens with the marks around them


def test_tags_are_not_for_fine_tuning(lm: LanguageModel) -> None:
    entry = TRANSFERS["finetune"]
    with pytest.raises(
        EunoeError, match=r"the task 'made' is of kind tagging, and this transfer is for classification"
    ):
        entry.refuse(lm, task("tagging"), entry.settings(), "recipe.transfer")
    choice = Task("c", "choice", (), task().train, task().test, None)
    with pytest.raises(
        EunoeError, match=r"of kind choice, and this transfer is for classification, regression, tagging"
    ):
        TRANSFERS["features"].refuse(lm, choice, FeatureSettings(), "recipe.transfer")


def test_a_slow_tokenizer_is_refused(lm: LanguageModel) -> None:
    class Slow:
        is_fast = False

    lm.tokenizer = Slow()
    with pytest.raises(EunoeError, match=r"the tokenizer of .* \(Slow\) does not say where in the text its tokens are"):
        LayerReader(lm, Method(lm.model, None, []), None, 16)


@pytest.mark.parametrize("after", [1, 5, 11])
def test_killed_in_the_task_it_resumes_to_the_same_bits(
    lm: LanguageModel, tmp_path: Path, after: int, monkeypatch: Any
) -> None:
    whole = tune("features", lm, task(), epochs=3, dropout=0.2, checkpoint_every=2)
    seen = 0
    import eunoe.train as loop

    step = loop._step

    def stopping(*args: Any) -> float:
        nonlocal seen
        seen += 1
        if seen == after:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune("features", lm, task(), tmp_path / "steps", epochs=3, dropout=0.2, checkpoint_every=2)
    monkeypatch.setattr(loop, "_step", step)
    again = tune("features", lm, task(), tmp_path / "steps", epochs=3, dropout=0.2, checkpoint_every=2)
    assert again.phases["task"].curve == whole.phases["task"].curve
    assert again.scores == whole.scores


def test_encoders_whose_positions_count_from_the_padding() -> None:
    """RoBERTa finds positions by which ids are padding: a batch's shorter texts must be as they are alone."""
    lm = load_lm(ModelSettings(name=str(shared("cases/roberta_bert_tokenizer"))))
    reader = LayerReader(lm, Method(lm.model, None, []), None, 32)
    texts = [split_words("the match"), split_words("the match was long and the goal came late in the rain")]
    together, alone = reader.read(texts)[0], reader.read(texts[:1])[0]
    assert np.allclose(together, alone, atol=1e-5)


def test_meta_says_what_the_features_are(lm: LanguageModel) -> None:
    stored = read_texts(
        LayerReader(lm, Method(lm.model, None, []), None, 16), [split_words("good bad")], "it", "float16", 4
    )
    meta = json.loads((stored.folder / "meta.json").read_text())
    assert meta["lengths"] == [2]
    assert [meta["layers"], meta["width"]] == [3, anatomy(lm.model).width]
    assert stored.bytes == 2 * 3 * meta["width"] * 2
