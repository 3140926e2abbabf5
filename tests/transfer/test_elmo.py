"""ELMo as a transfer: a biLM that is given, trained on text or tuned on the task's, and frozen in the task."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eunoe.train as loop
from eunoe.data.tasks import Example, Task
from eunoe.data.words import characters
from eunoe.errors import EunoeError
from eunoe.models.bilm import BiLM
from eunoe.models.load import LanguageModel, load_lm
from eunoe.recipe import ModelSettings
from eunoe.transfer.elmo import (
    BiLMLoss,
    BiLMSettings,
    Lines,
    StreamBatches,
    learn_bilm,
    load_bilm,
    new_bilm,
    own_text,
    train_bilm,
)
from eunoe.transfer.readers import weights_identity
from tests.conftest import shared
from tests.tiny import tiny_folder
from tests.transfer.test_features import Passes, task, tune, values

STREAMS: dict[str, Any] = {"bilm_batch": 4, "bilm_unroll": 5}
SMALL: dict[str, Any] = {
    "bilm_width": 8, "bilm_cells": 16, "bilm_filters": [[1, 4], [3, 8]], "bilm_epochs": 2, **STREAMS,
}  # fmt: skip
TEXT = "The rain fell on the town.\nIt fell all day!\n\nThe sun came late, and the town was dry again.\n" * 6


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return load_lm(ModelSettings(name=str(tiny_folder(tmp_path))))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "town.txt"
    path.write_text(TEXT)
    return str(path)


# -- text -------------------------------------------------------------------------------------------------------------
def test_streams_hold_every_word_once_and_predict_the_next() -> None:
    lines = Lines.read(["a b c\nd e", "f"])
    batches = StreamBatches(lines, tuple(lines.vocabulary(100)), 2, 3, 1, 0, 50)
    assert batches.total == 3 + 2 + 1 + 2 * 3 - 1
    assert batches.streams == 2
    vocabulary = batches.vocabulary
    steps = [batches[i][0] for i in range(len(batches))]
    labels = [[vocabulary[i] for step in steps for i in step["labels"][row].tolist()] for row in range(2)]
    text = ["<S>", *labels[0], *labels[1]]
    assert sorted("".join(text).replace("</S>", "|").replace("<S>", "").strip("|").split("|")) in (
        ["abc", "de", "f"], ["abc", "de"], ["abc", "d", "f"], ["ab", "de", "f"],
    )  # fmt: skip
    for step in steps:
        for back in ("", "_back"):
            chars, next_words = step[f"characters{back}"], step[f"labels{back}"]
            for row in range(2):
                for t in range(chars.shape[1] - 1):
                    word = vocabulary[int(next_words[row, t])]
                    if not word.startswith("<"):
                        assert chars[row, t + 1].tolist() == characters(word)


def test_the_backward_stream_has_each_sentence_turned_round() -> None:
    lines = Lines.read(["a b c\nd e"])
    batches = StreamBatches(lines, tuple(lines.vocabulary(100)), 1, 100, 1, 0, 50)
    forward, backward = (
        [batches.vocabulary[i] for i in batches[0][0][name][0].tolist()] for name in ("labels", "labels_back")
    )
    whole, turned = ["<S>", *forward], ["</S>", *backward]
    cut = whole.index("</S>") + 1
    assert turned == [*reversed(whole[:cut]), *reversed(whole[cut:])]


def test_words_beyond_the_vocabulary_are_unknown_to_the_softmax_and_not_to_the_characters() -> None:
    lines = Lines.read(["a a b"])
    assert lines.vocabulary(4) == ["<S>", "</S>", "<UNK>", "a"]
    batch = StreamBatches(lines, tuple(lines.vocabulary(4)), 1, 10, 1, 0, 50)[0][0]
    assert batch["labels"].tolist() == [[3, 3, 2, 1]]
    assert batch["characters"][0, 3].tolist() == characters("b")


def test_text_of_fewer_than_two_words_is_refused() -> None:
    with pytest.raises(EunoeError, match="fewer than two words"):
        Lines.read(["one"])


# -- the biLM by itself -------------------------------------------------------------------------------------------------
def test_the_state_is_carried_from_batch_to_batch() -> None:
    """Two steps with the state carried are one step over both: the same outputs, so the same summed loss."""
    lines = Lines.read([TEXT])
    settings = BiLMSettings(**SMALL)
    model = new_bilm(settings, lines.vocabulary(100), 0).eval()
    short, long = (StreamBatches(lines, tuple(lines.vocabulary(100)), 4, n, 1, 0, 50) for n in (5, 10))
    carried, whole = BiLMLoss(model, 4, 8192), BiLMLoss(model, 4, 8192)
    with torch.no_grad():
        both = sum(float(carried(model, short[i][0]).total) for i in (0, 1))
        assert float(whole(model, long[0][0]).total) == pytest.approx(both, rel=1e-5)
        assert torch.allclose(carried.state.cell, whole.state.cell, atol=1e-6)
        afresh = BiLMLoss(model, 4, 8192)
        assert float(afresh(model, short[1][0]).total) != pytest.approx(
            both - float(BiLMLoss(model, 4, 8192)(model, short[0][0]).total)
        )


def test_a_bilm_learns_its_text_and_is_written_for_later(text: str, tmp_path: Path) -> None:
    settings = BiLMSettings(**{**SMALL, "bilm_epochs": 15, "bilm_dropout": 0.0})
    done = train_bilm(text, tmp_path / "bilm", settings)
    losses = [loss for _, loss, *_ in done.curve]
    assert losses[0] == pytest.approx(math.log(len(Lines.read([TEXT]).vocabulary(10**6))), abs=0.3)
    assert losses[-1] < 0.8 * losses[0]
    model, words = load_bilm(str(tmp_path / "bilm"), "bilm")
    assert words[:3] == ["<S>", "</S>", "<UNK>"]
    assert {"rain", "town"} < set(words)
    assert isinstance(model, BiLM)
    assert len(words) == model.config.words


@pytest.mark.parametrize("change", [{"bilm_samples": 4}, {"bilm_dropout": 0.5}, {"bilm_lr": 0.1}, {"bilm_unroll": 4}, {"bilm_batch": 2},
                                    {"bilm_words": 8}, {"bilm_cells": 8}], ids=str)  # fmt: skip
def test_every_setting_changes_what_a_bilm_learns(text: str, tmp_path: Path, change: dict[str, Any]) -> None:
    plain, other = (train_bilm(text, tmp_path / name, BiLMSettings(**{**SMALL, "bilm_epochs": 1, **more})).curve
                    for name, more in (("a", {}), ("b", change)))  # fmt: skip
    assert plain != other


def test_a_step_is_bilm_tfs(text: str) -> None:
    """Adagrad from sums of 1 on the loss times the words of a step, its gradient at most 10 long."""
    settings = BiLMSettings(**{**SMALL, "bilm_dropout": 0.0, "bilm_epochs": 1})
    lines = Lines.read([Path(text).read_text()])
    vocabulary = lines.vocabulary(100)
    ours, by_hand = (new_bilm(settings, vocabulary, 0).train() for _ in range(2))
    for model in (ours, by_hand):  # gradients that are too long at first
        model.softmax_weight.data.mul_(5)
    batches = StreamBatches(lines, tuple(vocabulary), 4, 5, 1, 0, 50)
    learn_bilm(ours, lines, vocabulary, settings, 1, None, 0, "x", {}, "float32")
    loss, optimizer = (
        BiLMLoss(by_hand, batches.streams, 8192),
        torch.optim.Adagrad(by_hand.parameters(), 0.2, 0.0, 0.0, 1.0),
    )
    lengths = []
    for step in range(len(batches)):
        optimizer.zero_grad()
        total, items, _ = loss(by_hand, batches[step][0])
        (5 * total / items).backward()
        lengths.append(float(torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 10.0)))
        optimizer.step()
    assert min(lengths) < 10 < max(lengths), lengths
    for one, other in zip(ours.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_new_bilm_starts_as_bilm_tfs() -> None:
    largest = lambda weight: float(weight.detach().abs().max())  # noqa: E731
    model = new_bilm(BiLMSettings(bilm_width=32, bilm_cells=64), ["<S>", "</S>", "<UNK>"], 0)
    lstm = model.lstms[0][0]
    assert largest(lstm.weight_input) == pytest.approx((6 / (32 + 32 + 4 * 64)) ** 0.5, rel=0.01)
    assert largest(lstm.projection) == pytest.approx((6 / (32 + 64)) ** 0.5, rel=0.01)
    assert largest(model.encoder.filters[4].weight) == pytest.approx(0.05, rel=0.01)
    assert largest(model.encoder.table.weight[1:]) == pytest.approx(1.0, rel=0.01)
    assert not model.encoder.table.weight[0].any()
    assert float(model.encoder.projection.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.1)


def test_the_words_of_tagging_rows_are_taken_as_they_are() -> None:
    words = ("U.S.", "-LRB-", "9.30")
    rows = (Example(" ".join(words), None, ("O", "O", "O"), tokens=words),)
    lines = Lines.read(own_text(Task("t", "tagging", ("O",), rows, rows, None)))
    assert lines.words[2:] == list(words)


# -- as a transfer -------------------------------------------------------------------------------------------------------
def test_a_released_bilm_feeds_the_task_and_is_left_as_it_is(lm: LanguageModel) -> None:
    pytest.importorskip("h5py")
    passes = Passes(lm)
    folder = str(shared("golden/elmo"))
    actual = tune("elmo", lm, task(), bilm=folder)
    assert values(actual)["accuracy"] > 0.8
    assert list(actual.phases) == ["task"]
    assert passes.count == 0
    tuned = tune("elmo", lm, task(), bilm=folder, tune_epochs=1, **STREAMS)
    assert list(tuned.phases) == ["tune", "task"]
    assert tuned.phases["task"].curve != actual.phases["task"].curve


def test_a_new_bilm_is_trained_on_the_tasks_text_or_on_text_of_its_own(lm: LanguageModel, text: str) -> None:
    own = tune("elmo", lm, task(), **SMALL)
    assert values(own)["accuracy"] > 0.9
    assert list(own.phases) == ["bilm", "task"]
    more = tune("elmo", lm, replace(task(), unlabelled=(TEXT,)), **SMALL)
    other = tune("elmo", lm, task(), bilm_text=text, **SMALL)
    tuned = tune("elmo", lm, task(), bilm_text=text, tune_epochs=1, **SMALL)
    curves = [tuple(t.phases["task"].curve) for t in (own, more, other, tuned)]
    assert len(set(curves)) == 4
    assert list(tuned.phases) == ["bilm", "tune", "task"]
    assert tuned.steps == sum(phase.steps for phase in tuned.phases.values())


def test_a_bilm_that_was_written_here_is_given_and_tuned_with_its_own_softmax(
    lm: LanguageModel, text: str, tmp_path: Path
) -> None:
    train_bilm(text, tmp_path / "bilm", BiLMSettings(**SMALL))
    before = (tmp_path / "bilm/model.safetensors").read_bytes()
    tuned = tune("elmo", lm, task(), bilm=str(tmp_path / "bilm"), tune_epochs=1, **STREAMS)
    assert values(tuned)["accuracy"] > 0.9
    assert (tmp_path / "bilm/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["tagging", "pair"])
def test_tags_and_pairs(lm: LanguageModel, kind: str) -> None:
    given = task("classification" if kind == "pair" else kind, kind == "pair")
    tuned = tune("elmo", lm, given, epochs=30, layer_norm=True, lr=0.01, crf=kind == "tagging", **SMALL)
    # the characters of a tiny untrained biLM tell most pairs of words apart, not all
    assert values(tuned)["span_f1" if kind == "tagging" else "accuracy"] > 0.7


def stopped_at(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ``which``-th update of the process does not happen: it is killed there."""
    seen, step = 0, loop._step

    def stopping(*args: Any) -> float:
        nonlocal seen
        seen += 1
        if seen == which:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "_step", stopping)


def test_killed_in_each_phase_and_at_each_boundary_it_resumes_to_the_same_bits(
    lm: LanguageModel, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {
        **SMALL,
        "bilm_text": text,
        "tune_epochs": 1,
        "epochs": 2,
        "dropout": 0.2,
        "checkpoint_every": 3,
        "bilm_samples": 6,
    }
    whole = tune("elmo", lm, task(), **how)
    bilm, tuned, last = (whole.phases[name].steps for name in ("bilm", "tune", "task"))
    assert bilm > 5
    plain = loop._step
    for at in (5, bilm + 1, bilm + tuned // 2, bilm + tuned + 1, bilm + tuned + last // 2):
        folder = tmp_path / f"steps{at}"
        stopped_at(at, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            tune("elmo", lm, task(), folder, **how)
        monkeypatch.setattr(loop, "_step", plain)
        again = tune("elmo", lm, task(), folder, **how)
        assert {name: phase.curve for name, phase in again.phases.items()} == {
            name: phase.curve for name, phase in whole.phases.items()
        }, at
        assert again.scores == whole.scores


def test_a_phase_that_is_done_is_not_done_again(
    lm: LanguageModel, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {**SMALL, "bilm_text": text, "epochs": 1, "checkpoint_every": 1000}
    steps = tune("elmo", lm, task(), **how).phases["bilm"].steps
    stopped_at(steps + 1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        tune("elmo", lm, task(), tmp_path / "steps", **how)
    stopped_at(steps + 1, monkeypatch)  # the biLM's steps again would be counted
    assert tune("elmo", lm, task(), tmp_path / "steps", **how).scores


def test_checkpoints_of_a_bilm_come_as_often_as_is_asked(
    lm: LanguageModel, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every: list[int] = []
    real = loop.train
    monkeypatch.setattr(
        "eunoe.transfer.phase.train", lambda job: (every.append(job.settings.checkpoint_every), real(job))[1]
    )
    tune("elmo", lm, task(), **{**SMALL, "bilm_text": text, "tune_epochs": 1, "epochs": 1, "checkpoint_every": 7})
    assert every == [7, 7, 7]


def test_another_seed_or_precision_is_another_training(text: str, tmp_path: Path) -> None:
    train_bilm(text, tmp_path / "bilm", BiLMSettings(**SMALL))
    train_bilm(text, tmp_path / "bilm", BiLMSettings(**SMALL))
    for change in ({"seed": 1}, {"precision": "bf16"}):
        with pytest.raises(EunoeError, match="belongs to another training"):
            train_bilm(text, tmp_path / "bilm", BiLMSettings(**SMALL), **change)


def test_changed_text_is_another_training(text: str, tmp_path: Path) -> None:
    train_bilm(text, tmp_path / "bilm", BiLMSettings(**SMALL))
    Path(text).write_text(TEXT.replace("rain", "snow"))
    with pytest.raises(EunoeError):
        train_bilm(text, tmp_path / "bilm", BiLMSettings(**SMALL))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bilm": "nowhere"},
            r"recipe\.transfer\.bilm: 'nowhere' is not the folder of a biLM.*this one has none of them",
        ),
        ({"bilm": "x", "bilm_text": "y"}, r"bilm_text trains a new biLM, and bilm gives one"),
        ({"bilm_filters": [[1]]}, r"bilm_filters: expected pairs"),
        ({"bilm_filters": []}, r"bilm_filters: expected pairs"),
        ({"read_layers": "last", "mix_pull": 5.0}, r"mix_pull is 5, but read_layers: last leaves one layer"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_trains(
    lm: LanguageModel, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(EunoeError, match=message):
        tune("elmo", lm, task(), **change)


def test_text_that_nothing_reads_and_folders_of_other_models_are_refused(
    lm: LanguageModel, text: str, tmp_path: Path
) -> None:
    with pytest.raises(EunoeError, match=r"the task's unlabelled text is not read.*Set tune_epochs"):
        tune("elmo", lm, replace(task(), unlabelled=("more",)), bilm_text=text)
    with pytest.raises(EunoeError, match=r"holds a model, but not a biLM"):
        tune("elmo", lm, task(), bilm=str(next(p for p in tmp_path.iterdir() if (p / "config.json").is_file())))
    train_bilm(text, tmp_path / "bilm", BiLMSettings(**SMALL))
    with pytest.raises(
        EunoeError, match=r"bilm_epochs is for a biLM that is trained here, and bilm gives one\. Leave it out\."
    ):
        tune("elmo", lm, task(), bilm=str(tmp_path / "bilm"), bilm_epochs=500, tune_epochs=1)
    with pytest.raises(EunoeError, match=r"bilm_words is for a biLM that is trained here, and bilm gives one\. Leave"):
        tune("elmo", lm, task(), bilm=str(tmp_path / "bilm"), bilm_words=9, tune_epochs=1)
    with pytest.raises(
        EunoeError, match=r"bilm_lr is .* gives one that is not tuned\. Leave it out, or set tune_epochs"
    ):
        tune("elmo", lm, task(), bilm=str(tmp_path / "bilm"), bilm_lr=0.1)
    (tmp_path / "bilm/vocabulary.txt").write_text("one\n")
    with pytest.raises(EunoeError, match=r"vocabulary\.txt in .* has 1 words, its softmax \d+"):
        load_bilm(str(tmp_path / "bilm"), "bilm")


def test_long_words_and_empty_texts(lm: LanguageModel) -> None:
    rows = (Example("", None, "good"), Example("x" * 500, None, "bad"), *task().train)
    given = Task("odd", "classification", ("bad", "good"), rows, rows, None)
    assert values(tune("elmo", lm, given, **{**SMALL, "epochs": 1}))["accuracy"] >= 0


def test_the_identity_of_a_bilm_is_that_of_its_weights() -> None:
    one, other = (new_bilm(BiLMSettings(**SMALL), ["<S>", "</S>", "<UNK>"], seed) for seed in (0, 1))
    assert weights_identity(one) != weights_identity(other)
    with torch.no_grad():
        for p, q in zip(other.parameters(), one.parameters(), strict=True):
            p.copy_(q)
    assert weights_identity(one) == weights_identity(other)
    assert np.isfinite([float(p.detach().sum()) for p in one.parameters()]).all()
