"""ULMFiT on the paper's own model: the task's words, streams with a carried state, chunks, both directions, every option of LSTMs."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from eunoe import train
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods.base import Method
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.models.awd.tokenizer import AwdLstmTokenizer
from eunoe.models.depth import depth_groups
from eunoe.models.load import LanguageModel
from eunoe.models.pooled import PooledClassifier
from eunoe.recipe import build
from eunoe.transfer import ulmfit as module
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.lm_text import task_texts, text_ids
from eunoe.transfer.ulmfit import ClassifierLoss, UlmfitSettings, check, resolve, ulmfit
from eunoe.transfer.ulmfit_settings import for_model
from tests.transfer.test_ulmfit import same, task

KNOWN = ("good", "the", "of")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def awd(seed: int = 0, backward: bool = False) -> LanguageModel:
    torch.manual_seed(seed)
    words = AwdLstmTokenizer.build([" ".join(KNOWN)] * 3, least=1, backward=backward)
    size = {"hidden_size": 12, "cell_size": 16, "num_hidden_layers": 3}
    model = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=len(words), backward=backward, **size)).eval()
    return LanguageModel(model, words, "causal", "awd")


def settings(**change: Any) -> UlmfitSettings:
    lm = {"epochs": 1.0, "block": 8, "batch": 4, "least": 1, **change.pop("lm", {})}
    small = {"epochs": 7, "batch": 8, "unfreeze_every": 1.0, "max_length": 16, "chunk": 4, "lm": lm}
    return resolve(build(UlmfitSettings, {**small, **change}, "ulmfit"), "ulmfit")


def start(lm: LanguageModel | None = None, **change: Any) -> Start:
    lm = lm or awd()
    given: dict[str, Any] = {
        "task": task(),
        "domain": None,
        "seed": 3,
        "batch": 8,
        "method": Method(lm.model, None, []),
    }
    return Start(lm=lm, **{**given, **change})


@pytest.fixture(scope="module")
def whole() -> Tuned:
    return ulmfit(start(), settings())


def test_it_takes_the_words_of_the_task_and_leaves_the_model_alone(
    monkeypatch: pytest.MonkeyPatch, whole: Tuned
) -> None:
    seen: list[Any] = []
    real = module.phase

    def phase(model: Any, *args: Any, **kwargs: Any) -> Any:
        if not seen:
            seen.append(model.transformer.embeddings.weight.detach().clone())
        return real(model, *args, **kwargs)

    monkeypatch.setattr(module, "phase", phase)
    lm = awd()
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    tuned = ulmfit(start(lm), settings())
    assert same_scores(tuned, whole)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    old, rows = lm.tokenizer.get_vocab(), seen[0]
    words = AwdLstmTokenizer.build(module_texts(), least=1).get_vocab()
    assert len(rows) == len(words) > len(old)
    table = before["transformer.embeddings.weight"]
    for word, row in words.items():
        wanted = table[old[word]] if word in old else table.mean(0)
        torch.testing.assert_close(rows[row], wanted)
    assert tuned.trunk is None  # its embedding has the task's words
    kept = ulmfit(start(), settings(lm={"vocabulary": "kept"}))
    assert kept.trunk is not None
    assert not same_scores(kept, whole) or kept.curve_csv() != whole.curve_csv()


def module_texts() -> list[str]:
    from eunoe.transfer.lm_text import task_texts

    return task_texts(task())


def same_scores(a: Tuned, b: Tuned) -> bool:
    return a.scores == b.scores and a.curve_csv() == b.curve_csv()


def test_the_language_model_trains_in_the_scripts_four_groups_and_the_classifier_in_five() -> None:
    lm = awd()
    assert [g.name for g in depth_groups(lm.model, tied="head")] == ["layers.0", "layers.1", "layers.2", "head"]
    tuned = ulmfit(start(lm), settings(preset="scripts"))
    assert list(tuned.phases) == ["lm", "classifier-1", "classifier-2", "classifier-3"]
    paper = ulmfit(start(lm), settings(preset="paper"))
    assert list(paper.phases) == ["lm", *(f"classifier-{i}" for i in range(1, 6))]


@pytest.mark.parametrize("vocabulary", ["kept", "task"])
def test_stopped_in_each_phase_and_at_each_boundary_it_ends_in_the_same_bits(
    vocabulary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first, second and last step of each phase; with its own vocabulary the weights are compared too."""
    chosen, real = settings(lm={"vocabulary": vocabulary}), train._step
    whole = ulmfit(start(), chosen)
    ends = list(accumulate(phase.steps for phase in whole.phases.values()))
    stops = sorted({n for first, last in pairwise([0, *ends]) for n in (first + 1, first + 2, last) if n <= last})
    assert len(ends) == 6
    for stop_at in stops:
        taken = [0]

        def step(*args: Any, taken: list[int] = taken, stop_at: int = stop_at) -> float:
            taken[0] += 1
            if taken[0] == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return real(*args)

        begun = start(folder=tmp_path / str(stop_at), identity={"run": "r", "cell": "c"})
        monkeypatch.setattr(train, "_step", step)
        with pytest.raises(Interrupted):
            ulmfit(begun, chosen)
        monkeypatch.setattr(train, "_step", real)
        resumed = ulmfit(begun, chosen)
        assert same(resumed, whole) if vocabulary == "kept" else same_scores(resumed, whole), stop_at


OPTIONS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.3},
    "alpha": {"alpha": 20.0},
    "beta": {"beta": 20.0},
    "lm.vocabulary": {"lm": {"vocabulary": "kept"}},
    "lm.largest": {"lm": {"largest": 14}},
    "lm.least": {"lm": {"least": 3}},
    "chunk": {"chunk": 2},
    "pooling": {"pooling": "last", "chunk": None},
    "start": {"start": "random"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_an_lstm_changes_what_is_learnt(option: str, whole: Tuned) -> None:
    assert ulmfit(start(), settings(**OPTIONS[option])).curve_csv() != whole.curve_csv()


def test_the_language_model_reads_the_first_tokens_of_a_row_in_both_directions() -> None:
    rows, texts = task(), task_texts(task())
    for lm in (awd(), awd(backward=True)):
        turn = -1 if lm.tokenizer.backward else 1
        first = [lm.tokenizer(text)["input_ids"][:3][::turn] for text in texts]
        assert text_ids(lm, rows, 3).tolist() == [i for row in first for i in row]
        assert max(map(len, lm.tokenizer(texts)["input_ids"])) > 3


def test_forward_and_backward_read_the_same_rows_turned_round(tmp_path: Path) -> None:
    back = awd(1, backward=True)
    back.model.save_pretrained(tmp_path / "back")
    back.tokenizer.save_pretrained(tmp_path / "back")
    chosen = settings(backward=str(tmp_path / "back"))
    check(awd(), task(), chosen, "x")
    tuned = ulmfit(start(), chosen)
    assert {"accuracy@forward", "accuracy@backward"} <= {s.metric for s in tuned.scores}
    assert "backward-lm" in tuned.phases


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 1.5}, "x.lm.epochs is 1.5, but an AWD-LSTM reads its text in whole passes"),
        ({"steps": 3, "epochs": None}, "x.lm.steps is 3, but an AWD-LSTM reads its text in whole passes"),
        ({"batch": 200}, "too short for 200 rows"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    lm = {k: v for k, v in {"epochs": 1.0, "block": 8, "batch": 4, "least": 1, **change}.items() if v is not None}
    chosen = resolve(build(UlmfitSettings, {"epochs": 7, "batch": 8, "chunk": 4, "max_length": 16, "lm": lm}, "x"), "x")
    with pytest.raises(EunoeError) as caught:
        check(awd(), task(), chosen, "x")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 2.5}, "dropout is 2.5, which makes a dropout rate of 1 or more. Set it below 2"),
        ({"lm": {"vocabulary": "kept", "largest": 100}}, "lm.largest is not read with vocabulary: kept"),
        ({"lm": {"least": 1000}}, "no word of 'made' stands in its text 1000 times or more"),
        ({"start": "random", "lm": {"least": 1000}}, "no word of 'made' stands in its text 1000 times or more"),
        ({"lm": {"mask_rate": 0.3}}, "lm.mask_rate is not read with a model that learns by the next token"),
    ],
)
def test_what_an_lstm_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EunoeError) as caught:
        check(awd(), task(), settings(**change), "x")
    assert message in str(caught.value)


def test_a_model_that_knows_no_word_of_the_task_is_refused_and_how_many_it_knows_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr("eunoe.transfer.lm_text.say_once", said.append)
    check(awd(), task(), settings(), "x")
    assert [line.split(" words")[0].startswith("awd knows 3 of the ") for line in said] == [True]
    words = AwdLstmTokenizer.build(["maison rouge verte"] * 3, least=1)
    model = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=len(words), hidden_size=12, cell_size=16, num_hidden_layers=3))
    other = LanguageModel(model, words, "causal", "maison")
    with pytest.raises(EunoeError, match=r"x\.lm: 'maison' knows none of the \d+ words of 'made'"):
        check(other, task(), settings(), "x")
    check(other, task(), settings(start="random"), "x")  # nothing of it is kept
    fewer = replace(awd(), tokenizer=AwdLstmTokenizer.build(["good"] * 3, least=1))
    with pytest.raises(EunoeError, match=r"has \d+ tokens and its weights \d+ rows"):
        check(fewer, task(), settings(lm={"vocabulary": "kept", "least": 2}), "x")


def test_without_a_length_a_row_is_read_to_its_end() -> None:
    given = task()
    long = replace(given.train[0], text=" ".join(["the of good"] * 700))  # 2,100 words
    longer = replace(given, train=(long, *given.train[1:]))
    read = {
        n: max(map(len, (r["input_ids"] for r in module._rows(awd(), longer, settings(max_length=n)).inputs)))
        for n in (None, 1400)
    }
    assert read[1400] == 1400
    assert read[None] > 2100
    assert for_model(resolve(UlmfitSettings(preset="paper"), "x"), awd()).max_length is None
    assert for_model(resolve(UlmfitSettings(preset="paper", pooling="mean"), "x"), awd()).max_length == 1400


def test_ar_and_tar_do_not_depend_on_padding_nor_on_the_rows_beside_a_row() -> None:
    torch.manual_seed(0)
    model = PooledClassifier(awd().model, 2).eval()
    loss = ClassifierLoss(2.0, 1.0)
    plain = ClassifierLoss(0.0, 0.0)

    def extra(rows: list[list[int]], pad: int) -> float:
        length = max(map(len, rows)) + pad
        ids = torch.tensor([[*row, *([1] * (length - len(row)))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(len(rows), dtype=torch.long)}
        with torch.no_grad():
            return float(loss(model, batch).total - plain(model, batch).total)

    short, long = [2, 9, 10], [2, 11, 9, 10, 9, 11, 10]
    alone = extra([short], 0) + extra([long], 0)
    assert alone > 0
    for pad in (0, 6, 60):
        assert extra([short, long], pad) == pytest.approx(alone, rel=1e-5)


def test_weights_of_another_vocabulary_are_refused() -> None:
    lm = awd()
    wrong = replace(lm, tokenizer=AwdLstmTokenizer.build([" ".join(KNOWN), "many more words than rows"] * 3, least=1))
    with pytest.raises(EunoeError, match="but the weights have"):
        ulmfit(start(wrong), settings())


def test_same_bits_a_second_time(whole: Tuned) -> None:
    again = ulmfit(start(), settings(lm={"vocabulary": "kept"}))
    assert same(again, ulmfit(start(), settings(lm={"vocabulary": "kept"})))
