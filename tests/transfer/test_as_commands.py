"""Transfers over features as commands: eunoe finetune, tags from column files, and as the transfer of a run over domains."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.transfer.elmo import BiLMSettings, train_bilm
from tests.tiny import WORDS, tiny_folder
from tests.tiny_run import state, tiny_recipe, write_task
from tests.transfer.test_elmo import SMALL, TEXT

QUICK = {"epochs": 2, "batch": 8, "max_length": 16, "lstm_cells": 8}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    tiny_folder(tmp_path)
    write_task(tmp_path / "rows.csv", 1)
    write_task(tmp_path / "test.csv", 2)
    (tmp_path / "glove.txt").write_text(
        "".join(f"{word} {i} 1 -{i}\n" for i, word in enumerate((*WORDS, "good", "bad")))
    )
    (tmp_path / "town.txt").write_text(TEXT)
    return tmp_path


def overrides(system: str, options: dict[str, Any]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--systems.{system}.{key}", json.dumps(value))]


def test_finetune_compares_them_in_one_study(here: Path) -> None:
    words = ["finetune", "--train", "rows.csv", "--test", "test.csv", "--model", "bert", "--unlabelled", "town.txt", "--epochs", "1",
             "--transfer", "finetune", "features", "elmo", "vectors", "--max-length", "16", "--batch", "8",
             *overrides("elmo", SMALL), "--systems.vectors.word_vectors", "glove.txt"]  # fmt: skip
    assert main(words) == 0
    rows = read_rows(here / "runs/finetune/rows.jsonl")
    assert {r.transfer for r in rows} == {"adamw", "features", "elmo", "vectors"}
    cell = here / "runs/finetune/cells/task/elmo.seed0"
    curve = (cell / "curve.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in curve[1:]] == list(range(1, len(curve))), (
        "the biLM's steps and the task's"
    )
    before = state(here / "runs/finetune", but=("times.jsonl",))
    assert main(words) == 0
    assert state(here / "runs/finetune", but=("times.jsonl",)) == before


def test_tags_from_a_column_file_are_scored_by_their_spans(here: Path, capsys: Any) -> None:
    lines = [f"{('good', 'bad')[i % 2]} {('B-X', 'O')[i % 2]}\n{WORDS[i]} O\n\n" for i in range(16)]
    (here / "train.conll").write_text("".join(lines))
    words = ["finetune", "--train", "train.conll", "--test", "train.conll", "--layout", "conll", "--model", "bert",
             "--transfer", "features", "--max-length", "16", "--epochs", "15", "--lr", "0.02",
             "--systems.features.crf", "true", "--systems.features.dropout", "0.0"]  # fmt: skip
    assert main(words) == 0
    scores = {r.metric: r.value for r in read_rows(here / "runs/finetune/rows.jsonl")}
    assert list(scores)[:1] == ["span_f1"]
    assert scores["span_f1"] > 0.9
    assert "Span F1" in capsys.readouterr().out
    plain = words[: words.index("--transfer")]
    assert main([*plain, "--max-length", "16", "--out", "runs/other"]) == 2
    assert "is of kind tagging, and this transfer is for classification" in " ".join(capsys.readouterr().err.split())


def test_as_the_transfer_of_a_run_over_domains_the_runs_weights_are_the_same(here: Path) -> None:
    weights, scores = {}, {}
    transfers = {
        "finetune": {"epochs": 1, "batch": 8, "max_length": 16},
        "features": {**QUICK, "keep_features": False},
        "vectors": {**QUICK, "word_vectors": "glove.txt"},
        "elmo": {**QUICK, **SMALL, "bilm_epochs": 1},
    }
    for name, options in transfers.items():
        file = tiny_recipe(here, methods=["ncl", "cpt"], seeds=[0], transfer={"name": name, **options})
        out = here / "runs" / name
        run(load_recipe(file), out)
        weights[name] = {
            k: v for k, v in state(out / "sequences").items() if k.endswith(".safetensors") and "/scores/" not in k
        }
        scores[name] = {
            (r.method, r.learnt, r.task): r.value for r in read_rows(out / "rows.jsonl") if r.metric == "accuracy"
        }
    assert weights["finetune"]
    for name in transfers:
        assert weights[name] == weights["finetune"]
        assert scores[name].keys() == scores["finetune"].keys()
    by_task: dict[Any, set[float]] = {}
    for (_, _, task), value in scores["vectors"].items():
        by_task.setdefault(task, set()).add(value)
    assert all(len(values) == 1 for values in by_task.values()), "word vectors read nothing of the model"


@pytest.mark.parametrize(
    ("name", "options", "file", "what"),
    [
        ("vectors", {"word_vectors": "glove.txt"}, "glove.txt", "word vectors"),
        ("features", {"word_vectors": "glove.txt"}, "glove.txt", "word vectors"),
        ("elmo", {**SMALL, "bilm_text": "town.txt"}, "town.txt", "biLM's text"),
        ("elmo", {"bilm": "bilm"}, "bilm/vocabulary.txt", "biLM"),
    ],
)
def test_a_run_is_not_resumed_with_other_files_of_its_transfer(
    here: Path, name: str, options: dict[str, Any], file: str, what: str
) -> None:
    """A study and a run over domains of which scores are missing: refused; with the old file back both go on."""
    if "bilm" in options:
        train_bilm("town.txt", here / "bilm", BiLMSettings(**SMALL))
    study = ["finetune", "--train", "rows.csv", "--test", "test.csv", "--model", "bert", "--transfer", name, "--epochs", "1",
             "--max-length", "16", "--batch", "8", *overrides(name, options), "--out", "study"]  # fmt: skip
    recipe = tiny_recipe(here, methods=["none"], seeds=[0], transfer={"name": name, **QUICK, **options})
    assert main(study) == 0
    run(load_recipe(recipe), here / "run")
    for scores in [*(here / "run/sequences").glob("*/scores/*/*.task"), here / "study/cells"]:
        shutil.rmtree(scores)
    (here / "study/rows.jsonl").unlink()

    old, time = (here / file).read_text(), (here / file).stat().st_mtime_ns
    (here / file).write_text(old.replace("rain", "snow").replace(" 1 ", " 2 ") + ("" if "bilm" in file else "\n"))
    with pytest.raises(EunoeError, match=rf"is no longer the same: {what} \(transfer\)"):
        run(load_recipe(recipe), here / "run")
    assert main(study) == 2

    (here / file).write_text(old)
    os.utime(here / file, ns=(time, time))
    run(load_recipe(recipe), here / "run")
    assert main(study) == 0


def test_killed_between_cells_and_resumed_a_study_ends_in_the_same_bytes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["finetune", "--train", "rows.csv", "--test", "test.csv", "--model", "bert", "--transfer", "features", "vectors",
             "--epochs", "1", "--max-length", "16", "--systems.vectors.word_vectors", "glove.txt"]  # fmt: skip
    assert main([*words, "--out", "whole"]) == 0
    from eunoe.data import features

    write, seen = features._write, 0

    def stopping(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise KeyboardInterrupt
        return write(*args)

    (here / "cache").rename(here / "old")
    monkeypatch.setattr(features, "_write", stopping)
    assert main([*words, "--out", "cut"]) == 130
    monkeypatch.setattr(features, "_write", write)
    assert main([*words, "--out", "cut"]) == 0
    assert (here / "cut/rows.jsonl").read_bytes() == (here / "whole/rows.jsonl").read_bytes()
