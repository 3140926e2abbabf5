"""A language model from nothing: it learns, resumes to the bit in both passes, and what it leaves is a model like any other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from eunoe import pretrain as module
from eunoe import run_recipe
from eunoe.errors import EunoeError, Interrupted
from eunoe.models.load import load_lm
from eunoe.pretrain import lines, mean_loss, pretrain
from eunoe.recipe import ModelSettings, load_recipe, shipped_recipes
from eunoe.recipe.pretraining import load_pretraining, pretraining_of
from eunoe.report.schema import read_rows
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_recipe

SENTENCES = (
    "The cat sat on the mat .",
    "A dog ran to the sea .",
    "The sea was big and the mat was small .",
    "Run , dog !",
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(
        "\n\n".join(SENTENCES[i % 4] + " " + SENTENCES[(i * 3 + 1) % 4] + f" {i} ." for i in range(60)), "utf-8"
    )
    return file


def recipe(text: Path, **change: Any) -> Any:
    data: dict[str, Any] = {
        "name": "tiny", "corpora": [{"source": str(text), "valid_share": 0.1}],
        "network": {"hidden_size": 8, "cell_size": 12, "layers": 2, "input_dropout": 0.1, "output_dropout": 0.1},
        "batch": 4, "bptt": 10, "epochs": 3, "lr": 2.0, "checkpoint_every": 7, "precision": "float32", "score_batch": 2,
    }  # fmt: skip
    return pretraining_of({**data, **change})


def stopping(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The training is stopped after ``step`` steps of the phase that runs."""
    real, count = module.AwdLoss.__call__, [0]

    def counted(self: Any, model: Any, batch: Any) -> Any:
        count[0] += 1
        if count[0] > step:
            raise Interrupted("stopped in a test")
        return real(self, model, batch)

    monkeypatch.setattr(module.AwdLoss, "__call__", counted)


def test_it_learns_and_the_model_is_like_any_other(text: Path, tmp_path: Path) -> None:
    made = recipe(
        text, epochs=6, directions=["forward", "backward"], pointer={"window": 20, "theta": 0.5, "share": 0.2}
    )
    scores = pretrain(made, tmp_path / "out")
    assert set(scores) == {"forward", "backward"}
    assert set(scores["forward"]) == {f"valid{more}{word}" for more in ("", "+pointer") for word in ("", " by word")}
    words = json.loads((tmp_path / "out/forward/model/vocab.json").read_text("utf-8"))
    for direction in scores:
        assert scores[direction]["valid"] < math.log(len(words)) - 0.3
        lm = load_lm(ModelSettings(name=str(tmp_path / f"out/{direction}/model")))
        assert lm.objective == "causal"
        assert lm.tokenizer.backward == lm.model.config.backward == (direction == "backward")
    forward, backward = ((tmp_path / f"out/{d}/model/model.safetensors").read_bytes() for d in scores)
    assert forward != backward
    assert not (tmp_path / "out/forward/steps").exists()
    before = (tmp_path / "out/forward/scores.json").stat().st_mtime_ns
    assert pretrain(made, tmp_path / "out") == scores
    assert (tmp_path / "out/forward/scores.json").stat().st_mtime_ns == before
    assert {line.score: line.perplexity for line in lines(made, scores) if line.direction == "forward"} == {
        name: math.exp(value) for name, value in scores["forward"].items()
    }


@pytest.mark.parametrize("stops", [(3,), (70, 9), (88, 4), (115, 20)])
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """Before averaging, within it, and in the second pass; NT-ASGD's mean, the carried state and the best weights come back."""
    made = recipe(text, epochs=4, lr=60.0, finetune_epochs=2, patience=1, sampled=8)
    began: list[int] = []
    real = module.NtAsgd.start_averaging
    with monkeypatch.context() as patch:
        patch.setattr(module.NtAsgd, "start_averaging", lambda self: (began.append(1), real(self)))
        whole = pretrain(made, tmp_path / "whole")
    assert began
    first, second = (
        len((tmp_path / "whole/forward" / name).read_text().splitlines()) - 1
        for name in ("curve.csv", "curve_second_pass.csv")
    )
    assert 88 < first < 115, first
    assert first + second > 115 + 4, (first, second)
    for steps in stops:
        with monkeypatch.context() as patch:
            stopping(patch, steps)
            with pytest.raises(Interrupted):
                pretrain(made, tmp_path / "cut")
    assert pretrain(made, tmp_path / "cut") == whole
    for name in ("model/model.safetensors", "curve.csv", "curve_second_pass.csv", "scores.json"):
        assert (tmp_path / "cut/forward" / name).read_bytes() == (tmp_path / "whole/forward" / name).read_bytes()


def test_a_second_pass_that_makes_nothing_better_leaves_the_first_ones_weights(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second pass and resumed too: a learning rate that spoils everything, and so better never comes."""
    change: dict[str, Any] = {"epochs": 2, "lr": 2.0, "patience": 1, "clip": 10.0}
    one = pretrain(recipe(text, **change), tmp_path / "one")
    real = module.NtAsgd.__init__

    def spoiling(self: Any, params: Any, lr: float, decay: float, averaging: bool = False) -> None:
        real(self, params, 500.0 if averaging else lr, decay, averaging=averaging)

    monkeypatch.setattr(module.NtAsgd, "__init__", spoiling)
    made = recipe(text, finetune_epochs=1, **change)
    with monkeypatch.context() as patch:
        stopping(patch, 70)
        with pytest.raises(Interrupted):
            pretrain(made, tmp_path / "two")
    assert pretrain(made, tmp_path / "two")["forward"]["valid"] == one["forward"]["valid"]
    weights = [(tmp_path / name / "forward/model/model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_averaging_starts_when_validation_stops_improving(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8])
    began: list[int] = []
    monkeypatch.setattr(module, "mean_loss", lambda *a: next(losses, 2.0))
    real = module.NtAsgd.start_averaging
    monkeypatch.setattr(module.NtAsgd, "start_averaging", lambda self: (began.append(1), real(self)))
    pretrain(recipe(text, epochs=5, patience=2), tmp_path / "out")
    assert began == [1]  # after the fifth epoch, whose loss is worse than that of the second


def test_a_finished_folder_is_scored_again_with_another_cache_or_test_text(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"epochs": 1, "directions": ["forward", "backward"]}
    first = pretrain(recipe(text, **both), tmp_path / "out")
    weights = (tmp_path / "out/forward/model/model.safetensors").read_bytes()
    monkeypatch.setattr(module, "phase", None)  # nothing is trained
    told = []
    monkeypatch.setattr(module, "encode", lambda *a, real=module.encode: (told.append(a[2]), real(*a))[1])
    change = {"test": {"source": str(text)}, "pointer": {"window": 20, "theta": 0.5, "share": 0.2}}
    one = pretrain(recipe(text, **{**both, "directions": ["forward"]}, **change), tmp_path / "out")
    assert not any("train" in line for line in told), "scoring reads no training text"
    more = recipe(text, **both, **change)
    again = pretrain(more, tmp_path / "out")
    assert again["forward"] == one["forward"]
    assert set(again["backward"]) == set(again["forward"])
    assert again["forward"]["valid"] == pytest.approx(first["forward"]["valid"], abs=1e-6)
    assert {"test", "test+pointer", "valid+pointer by word"} <= set(again["forward"])
    assert (tmp_path / "out/forward/model/model.safetensors").read_bytes() == weights
    monkeypatch.setattr(module, "_scores", None)  # and nothing scored a third time
    assert pretrain(more, tmp_path / "out") == again


def test_the_perplexity_by_word_has_the_same_nats_in_all(text: Path, tmp_path: Path) -> None:
    made = recipe(text, epochs=1, published={"valid": 60.0})
    scores = pretrain(made, tmp_path / "out")["forward"]
    held_out = [document for source in module._sources(made, "valid") for document in source]
    tokenizer = load_lm(ModelSettings(name=str(tmp_path / "out/forward/model"))).tokenizer
    tokens = sum(len(tokenizer(document)["input_ids"]) for document in held_out)
    words = sum(len(line.split()) + 1 for document in held_out for line in document.split("\n"))
    assert scores["valid by word"] * words == pytest.approx(scores["valid"] * tokens)
    assert {line.score: line.published for line in lines(made, {"forward": scores})} == {
        "valid": None,
        "valid by word": 60.0,
    }


def test_scoring_carries_the_state_and_leaves_the_mode(text: Path, tmp_path: Path) -> None:
    pretrain(recipe(text, epochs=1), tmp_path / "out")
    lm = load_lm(ModelSettings(name=str(tmp_path / "out/forward/model")))
    ids = torch.randint(9, 20, (41,)).numpy()
    lm.model.train()
    whole, cut = (mean_loss(lm.model, ids, 1, bptt) for bptt in (40, 7))
    assert lm.model.training
    assert cut == pytest.approx(whole, abs=1e-6)
    lm.model.eval()
    rows = torch.from_numpy(ids)[None]
    assert whole == pytest.approx(float(lm.model(rows, labels=rows).loss), abs=1e-6)


def test_what_cannot_be_is_refused(text: Path, tmp_path: Path) -> None:
    made = recipe(text)
    pretrain(recipe(text, epochs=1), tmp_path / "out")
    with pytest.raises(EunoeError, match=r"is the folder of another training: epochs: 1 there, 3 now"):
        pretrain(made, tmp_path / "out")
    with pytest.raises(EunoeError, match="hold no text to validate with"):
        pretrain(recipe(text, corpora=[{"source": str(text), "valid_share": 0.0}]), tmp_path / "none")
    with pytest.raises(EunoeError, match="unknown schedule in recipe 'slanted'"):
        pretrain(recipe(text, schedule="slanted"), tmp_path / "none")
    with pytest.raises(EunoeError, match=r"weight_decay is 0\.5, which only nt_asgd reads"):
        recipe(text, optimizer="adamw", weight_decay=0.5)
    with pytest.raises(EunoeError, match="patience is 3, which only nt_asgd reads"):
        recipe(text, optimizer="adamw", patience=3)
    with pytest.raises(EunoeError, match=r"vocabulary\.least is of a vocabulary of words"):
        recipe(text, vocabulary={"tokenizer": "x", "least": 3})
    with pytest.raises(EunoeError, match="finetune_epochs is 2, a pass of averaged SGD"):
        recipe(text, finetune_epochs=2, optimizer="adamw")
    with pytest.raises(EunoeError, match="unknown optimizer 'adam'"):
        pretrain(recipe(text, optimizer="adam"), tmp_path / "other")
    with pytest.raises(EunoeError, match=r"sampled is 5,000, but the vocabulary has"):
        pretrain(recipe(text, sampled=5000), tmp_path / "none")
    assert not (tmp_path / "none").exists(), (
        "what was refused has written nothing that the corrected command stumbles over"
    )
    with pytest.raises(
        EunoeError, match=r"unknown recipe of a language model 'awd_lstm_smal'\. Did you mean awd_lstm_small"
    ):
        load_pretraining("awd_lstm_smal")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_run_post_trains_it_on_domains(text: Path, tmp_path: Path, direction: str) -> None:
    """From raw text to scores of end tasks: what pretrain left is a recipe's model like any other."""
    model = {"name": str(tmp_path / "lm" / direction / "model")}
    tiny_recipe(tmp_path)  # writes the text of the domains
    corpora = [{"source": str(tmp_path / f"{name}.txt"), "valid_share": 0.2} for name in ("sport", "money")]
    pretrain(recipe(text, epochs=1, corpora=corpora, directions=[direction]), tmp_path / "lm")
    file = tiny_recipe(tmp_path, model=model, methods=["ncl", "ewc"], seeds=[0])
    run_recipe(load_recipe(file), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "rows.jsonl")
    assert {row.method for row in rows} >= {"ncl", "ewc"}
    assert all(math.isfinite(row.value) for row in rows if row.value is not None)
    refused = tiny_recipe(tmp_path, model=model, methods=["cpt"], seeds=[0])
    with pytest.raises(EunoeError, match="recurrent layer"):
        run_recipe(load_recipe(refused), tmp_path / "none")


def test_a_vocabulary_of_sub_words(text: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "gpt2")
    scores = pretrain(
        recipe(text, epochs=1, vocabulary={"tokenizer": str(folder)}, directions=["backward"]), tmp_path / "out"
    )
    assert scores["backward"]["valid"] < 6
    lm = load_lm(ModelSettings(name=str(tmp_path / "out/backward/model")))
    assert lm.tokenizer.backward
    assert lm.tokenizer.is_fast
    assert lm.model.config.vocab_size == len(lm.tokenizer)
    with pytest.raises(EunoeError, match="the tokenizer 'nowhere/at-all'"):
        pretrain(recipe(text, vocabulary={"tokenizer": "nowhere/at-all"}), tmp_path / "none")


@pytest.mark.parametrize("name", sorted(shipped_recipes("pretrain")))
def test_shipped_recipes_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_pretraining(name)
    assert made.name == name
    for scale in made.scales:
        load_pretraining(name, scale=scale)
