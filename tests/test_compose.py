"""eunoe finetune and eunoe glue: studies from options, what they leave, and what annealing will do before anything trains."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from eunoe.cli import main
from eunoe.data.submission import FILES, validate_submission
from eunoe.report.schema import read_rows
from tests.data.glue_layout import TEST_ROWS, write_glue
from tests.tiny import tiny_folder
from tests.tiny_run import write_task, write_text


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path)
    write_task(tmp_path / "rows.csv", 1)
    write_task(tmp_path / "test.csv", 2)
    write_text(tmp_path / "general.txt", seed=5, n=20)
    return tmp_path


FILES_OF_TASK = ["--train", "rows.csv", "--test", "test.csv", "--model", "bert", "--max-length", "16"]


def test_finetune_compares_optimizers_and_measures_what_is_left(here: Path, capsys: Any) -> None:
    words = ["finetune", *FILES_OF_TASK, "--optimizer", "adamw", "recadam", "--epochs", "1", "--batch", "8", "--seeds", "0", "1",
             "--general", "general.txt", "--evaluation.block", "16", "--systems.recadam.optimizer.t0", "0.5"]  # fmt: skip
    assert main(words) == 0
    rows = read_rows(here / "runs/finetune/rows.jsonl")
    assert {(r.transfer, r.seed) for r in rows} == {(s, seed) for s in ("adamw", "recadam") for seed in (0, 1)}
    assert {"accuracy", "macro_f1", "lm_loss@general", "cka@general", "anchor_distance"} == {r.metric for r in rows}
    assert "adamw" in capsys.readouterr().out
    assert (here / "runs/finetune/report.html").is_file()
    assert main(words) == 0  # finished: nothing to do
    for command in ("verify", "route"):
        assert main([command, "runs/finetune"]) == 2
        assert "is a fine-tuning study" in capsys.readouterr().err


def test_plot_lambda_trains_nothing_and_warns_of_what_is_never_learnt(here: Path, capsys: Any) -> None:
    assert (
        main(["finetune", *FILES_OF_TASK, "--optimizer", "recadam", "--epochs", "2", "--batch", "8", "--plot-lambda"])
        == 0
    )
    told = capsys.readouterr()
    assert "nothing is ever learnt" in " ".join((told.err + told.out).split())
    page = (here / "runs/lambda.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "6 steps" in page
    assert not (here / "runs/finetune").exists()


def test_plot_lambda_without_recadam_and_finetune_without_rows_say_what_to_add(capsys: Any) -> None:
    assert main(["finetune", *FILES_OF_TASK, "--plot-lambda"]) == 2
    assert "Add --optimizer recadam" in capsys.readouterr().err
    assert main(["finetune", "--model", "bert"]) == 2
    assert "--train FILE" in capsys.readouterr().err
    assert main(["finetune", *FILES_OF_TASK, "--optimizer", "recadm"]) == 2
    assert "recadam" in capsys.readouterr().err


def test_glue_scores_every_task_and_hands_in_what_the_validator_accepts(here: Path, capsys: Any) -> None:
    root = write_glue(here / "GLUE")
    assert main(["glue", "--data", str(root), "--model", "bert", "--seeds", "0", "1", "--epochs", "1", "--batch", "4",
                 "--max-length", "16", "--submit"]) == 0  # fmt: skip
    out = here / "runs/glue"
    rows = read_rows(out / "rows.jsonl")
    first = {r.task: r.metric for r in reversed(rows) if r.at == "last"}
    assert first == {"cola": "matthews", "sst2": "accuracy", "mrpc": "accuracy", "stsb": "pearson", "qqp": "accuracy",
                     "mnli": "accuracy", "qnli": "accuracy", "rte": "accuracy", "wnli": "accuracy"}  # fmt: skip
    for task, metrics in {"mrpc": {"accuracy", "f1", "macro_f1"}, "stsb": {"pearson", "spearman"},
                          "mnli": {"accuracy", "macro_f1", "accuracy_mm"}}.items():  # fmt: skip
        assert {r.metric for r in rows if r.task == task and r.at == "last"} == metrics
    assert validate_submission(out / "submission.zip", dict.fromkeys(FILES, TEST_ROWS)) == []
    with zipfile.ZipFile(out / "submission.zip") as archive:
        sent = archive.read("RTE.tsv").decode().splitlines()[1:]
    best = max((r for r in rows if (r.task, r.metric, r.at) == ("rte", "accuracy", "last")), key=lambda r: r.value)
    told = json.loads((out / f"cells/rte/adamw.seed{best.seed}/predictions.json").read_text(encoding="utf-8"))
    assert sent == [f"{i}\t{answer}" for i, answer in enumerate(told["rte test"])]
    capsys.readouterr()
    assert main(["glue", "--check", str(out / "submission.zip")]) == 2
    assert "CoLA.tsv: 4 predictions, expected 1,063" in capsys.readouterr().out


def test_an_override_of_a_system_that_is_not_there_names_the_option_that_adds_it(capsys: Any) -> None:
    assert main(["finetune", *FILES_OF_TASK, "--systems.recadam.optimizer.t0", "0.25"]) == 2
    assert "--optimizer adamw recadam" in capsys.readouterr().err


def test_glue_refuses_what_is_no_task_and_a_folder_that_holds_none(here: Path, capsys: Any) -> None:
    assert main(["glue", "--data", ".", "--tasks", "cola2"]) == 2
    assert "cola" in capsys.readouterr().err
    assert main(["glue", "--data", str(here / "cache"), "--tasks", "cola", "--model", "bert"]) == 2
    assert "holds no folder 'CoLA'" in capsys.readouterr().err
