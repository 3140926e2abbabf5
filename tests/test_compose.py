"""eunoe finetune and eunoe glue: studies from options, what they leave, and what annealing will do before anything trains."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from eunoe.cli import main
from eunoe.compose import finetune_study, glue_study
from eunoe.data.submission import FILES, validate_submission
from eunoe.errors import EunoeError
from eunoe.report.schema import read_rows
from eunoe.transfer import TRANSFERS
from eunoe.transfer.finetune import FinetuneSettings
from tests.data.glue_layout import TEST_ROWS, write_glue
from tests.tiny import tiny_folder
from tests.tiny_run import state, write_task, write_text


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
    printed = capsys.readouterr()
    assert "nothing is ever learnt" in " ".join((printed.err + printed.out).split())
    assert "plot: runs/finetune.lambda.html" in printed.out
    page = (here / "runs/finetune.lambda.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "6 steps" in page
    assert not (here / "runs/finetune").exists()


def test_plots_of_two_runs_in_a_folder_lie_side_by_side(here: Path, capsys: Any) -> None:
    for name, epochs in (("st/a", "2"), ("st/b", "4")):
        assert main(["finetune", *FILES_OF_TASK, "--optimizer", "recadam", "--epochs", epochs, "--batch", "8", "--plot-lambda",
                     "--out", name]) == 0  # fmt: skip
        assert f"plot: {name}.lambda.html" in capsys.readouterr().out
    assert "6 steps" in (here / "st/a.lambda.html").read_text(encoding="utf-8")
    assert "12 steps" in (here / "st/b.lambda.html").read_text(encoding="utf-8")


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
    loaded = json.loads((out / f"cells/rte/adamw.seed{best.seed}/predictions.json").read_text(encoding="utf-8"))
    assert sent == [f"{i}\t{answer}" for i, answer in enumerate(loaded["rte test"])]
    loaded = " ".join(capsys.readouterr().err.split())
    assert "has 4 test rows of rte, but GLUE has 3,000" in loaded
    assert "submission: RTE.tsv: 4 predictions, expected 3,000" in loaded
    assert "is missing" not in loaded
    assert main(["glue", "--check", str(out / "submission.zip")]) == 2
    assert "CoLA.tsv: 4 predictions, expected 1,063" in capsys.readouterr().out


def test_a_submission_of_some_tasks_is_filled_at_once_or_afterwards(here: Path, capsys: Any) -> None:
    words = ["glue", "--data", str(write_glue(here / "GLUE")), "--tasks", "rte", "--model", "bert", "--seeds", "0", "--epochs",
             "1", "--batch", "4", "--max-length", "16", "--submit"]  # fmt: skip
    assert main([*words, "--out", "some"]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "CoLA.tsv is missing; the server wants all 11 files" in printed
    assert "`eunoe glue --check some/submission.zip --fill`" in printed
    assert main([*words, "--out", "all", "--fill"]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "AX.tsv answered with a constant" in printed
    assert "missing" not in printed
    assert validate_submission(here / "all/submission.zip", {"RTE.tsv": TEST_ROWS}) == []
    (here / "again.zip").write_bytes((here / "some/submission.zip").read_bytes())
    assert main([*words, "--out", "some", "--fill"]) == 0  # finished: only the zip changes
    assert "Only submission.zip was changed" in " ".join(capsys.readouterr().err.split())
    assert main(["glue", "--check", "again.zip", "--fill"]) == 2  # RTE has 4 rows
    assert "CoLA.tsv" in capsys.readouterr().out
    for file in ("some/submission.zip", "again.zip"):
        assert (here / file).read_bytes() == (here / "all/submission.zip").read_bytes()
    assert main(["glue", "--fill"]) == 2
    assert "give it with --submit, or with --check ZIP" in capsys.readouterr().err


def test_an_override_of_a_system_that_is_not_there_names_the_option_that_adds_it(capsys: Any) -> None:
    assert main(["finetune", *FILES_OF_TASK, "--systems.recadam.optimizer.t0", "0.25"]) == 2
    assert "--optimizer adamw recadam" in capsys.readouterr().err


@dataclass(kw_only=True)
class Quick(FinetuneSettings):
    """Fine-tuning with an option of its own, and text that it reads."""

    extra: int = 0


@dataclass(kw_only=True)
class Bare:
    """A transfer without an optimizer or epochs."""

    batch: int = 4


def systems(*words: str) -> dict[str, Any]:
    from eunoe.arguments import parser

    args, rest = parser().parse_known_args([*words, "--model", "bert"])
    assert not rest
    return (finetune_study if words[0] == "finetune" else glue_study)(args, []).systems


def test_each_transfer_is_a_system_with_the_options_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"quick": replace(TRANSFERS["finetune"], settings=Quick, composed={"extra": 3}, unlabelled=True),
            "bare": replace(TRANSFERS["finetune"], settings=Bare, composed={})}  # fmt: skip
    for name, entry in made.items():
        monkeypatch.setitem(TRANSFERS, name, entry)
    words = ["finetune", *PAIRS, "--batch", "8"]
    plain = {"name": "finetune", "evaluate_every": 0.1, "batch": 8, "optimizer": {"name": "adamw"}}
    assert systems(*words) == {"adamw": plain}
    both = systems(*words, "--transfer", "finetune", "quick", "bare", "--lr", "0.1")
    assert both == {"adamw": {**plain, "lr": 0.1}, "quick": {"name": "quick", "extra": 3, "batch": 8, "lr": 0.1},
                    "bare": {"name": "bare", "batch": 8}}  # fmt: skip
    compared = systems(*words, "--transfer", "quick", "--optimizer", "adamw", "recadam")
    assert {label: system["optimizer"]["name"] for label, system in compared.items()} == {
        "quick-adamw": "adamw", "quick-recadam": "recadam",
    }  # fmt: skip
    glue = systems("glue", "--data", ".", "--transfer", "finetune", "quick")
    assert glue["adamw"]["epochs"] == 3
    assert "epochs" not in glue["quick"]
    for option in (["--lr", "0.1"], ["--optimizer", "adamw"]):
        with pytest.raises(EunoeError, match=f"{option[0]} is not an option of bare"):
            systems(*words, "--transfer", "bare", *option)


def test_unlabelled_text_is_read_by_a_transfer_that_asks_for_it_or_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen: list[tuple[str, ...]] = []

    def check(lm: Any, task: Any, settings: Any, where: str) -> None:
        seen.append(task.unlabelled)

    entry = replace(TRANSFERS["finetune"], check=check, unlabelled=True)
    monkeypatch.setitem(TRANSFERS, "quick", entry)
    words = [*FILES_OF_TASK, "--unlabelled", "general.txt", "--epochs", "1", "--batch", "8"]
    assert main(["finetune", *words]) == 2
    assert "no transfer of the recipe reads it. Transfers that do:" in " ".join(capsys.readouterr().err.split())
    (here / "empty.txt").write_text(" ", encoding="utf-8")
    assert main(["finetune", *FILES_OF_TASK, "--unlabelled", "empty.txt", "--transfer", "quick"]) == 2
    assert "empty.txt is empty" in capsys.readouterr().err
    assert main(["finetune", *words, "--transfer", "finetune", "quick"]) == 0
    paragraphs = (here / "general.txt").read_text(encoding="utf-8").strip().split("\n\n")
    assert seen == [tuple(paragraphs)]
    (here / "general.txt").write_text("changed", encoding="utf-8")
    shutil.rmtree(here / "runs/finetune/cells")
    (here / "runs/finetune/finished.json").unlink()  # a finished study reads nothing
    capsys.readouterr()
    assert main(["finetune", *words, "--transfer", "finetune", "quick"]) == 2
    assert "task (unlabelled)" in " ".join(capsys.readouterr().err.split())


def test_glue_refuses_what_is_no_task_and_a_folder_that_holds_none(here: Path, capsys: Any) -> None:
    assert main(["glue", "--data", ".", "--tasks", "cola2"]) == 2
    assert "cola" in capsys.readouterr().err
    assert main(["glue", "--data", str(here / "cache"), "--tasks", "cola", "--model", "bert"]) == 2
    assert "cache does not exist. Give the folder that holds CoLA" in capsys.readouterr().err
    assert main(["glue", "--data", ".", "--tasks", "cola", "--model", "bert"]) == 2
    assert "holds no folder 'CoLA'" in capsys.readouterr().err


# -- every option does something, or is refused -------------------------------------------------------------------
SLOW = ["--optimizer", "recadam", "--lr", "1e-4"]
PAIRS = ["--train", "pairs.csv", "--test", "pairs.csv"]
FORMS = ["--train", "forms.jsonl", "--test", "forms.jsonl", "--kind", "choice"]
OPTIONS: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "finetune": {
        "--train": (["--train", "rows.csv", "--test", "test.csv"], ["--train", "test.csv", "--test", "test.csv"]),
        "--test": (["--train", "rows.csv", "--test", "test.csv"], ["--train", "rows.csv", "--test", "rows.csv"]),
        "--test-share": (
            ["--train", "rows.csv", "--test-share", "0.2"],
            ["--train", "rows.csv", "--test-share", "0.5"],
        ),
        "--unlabelled": (PAIRS, [*PAIRS, "--unlabelled", "general.txt"]),
        "--text": (PAIRS, [*PAIRS, "--text", "second"]),
        "--pair": (PAIRS, [*PAIRS, "--pair", "second"]),
        "--label": (PAIRS, [*PAIRS, "--label", "class"]),
        "--kind": ([*PAIRS, "--label", "score"], [*PAIRS, "--label", "score", "--kind", "regression"]),
        "--choices": ([*FORMS, "--choices", "few"], [*FORMS, "--choices", "many"]),
        "--layout": (FORMS[:4], [*FORMS[:4], "--layout", "snli"]),
        "--glue": (["--data", "GLUE", "--glue", "rte"], ["--data", "GLUE", "--glue", "wnli"]),
        "--data": (["--glue", "rte", "--data", "GLUE"], ["--glue", "rte", "--data", "GLUE2"]),
        "--plot-lambda": ([*PAIRS, *SLOW], [*PAIRS, *SLOW, "--plot-lambda"]),
    },
    "glue": {
        "--data": (["--data", "GLUE"], ["--data", "GLUE2"]),
        "--tasks": (["--data", "GLUE", "--tasks", "rte"], ["--data", "GLUE", "--tasks", "wnli"]),
        "--submit": (["--data", "GLUE"], ["--data", "GLUE", "--submit"]),
        "--fill": (["--data", "GLUE", "--submit"], ["--data", "GLUE", "--submit", "--fill"]),
        "--check": (["--data", "GLUE"], ["--check", "rows.csv"]),
    },
}
BOTH = {
    "--model": ("bert", "other/bert"),
    "--optimizer": ("adamw", "bert_adam"),
    "--transfer": ("finetune", "finetone"),
    "--epochs": ("1", "2"),
    "--batch": ("4", "8"),
    "--lr": ("0.01", "0.02"),
    "--max-length": ("16", "4"),
    "--seeds": ("0", "1"),
    "--general": ("general.txt", "general2.txt"),
    "--out": ("out1", "out2"),
    "--jobs": ("1", "0"),  # more of them change no bit: seen here is that a number is asked for
}
for _words, _base in (("finetune", PAIRS), ("glue", ["--data", "GLUE"])):
    OPTIONS[_words] |= {name: ([*_base, name, one], [*_base, name, other]) for name, (one, other) in BOTH.items()}
    # a cluster changes no bit (test_cluster.py): seen here is that its address is looked at
    OPTIONS[_words]["--ray"] = (_base, [*_base, "--ray", "ray://head:10001"])


def left(folder: Path, command: str, words: list[str]) -> Any:
    """The exit status, and every file that the command leaves, but those that repeat the settings or tell of the machine."""
    small = {"--model": "bert", "--epochs": "1", "--batch": "8", "--max-length": "16", "--seeds": "0", "--lr": "0.01"}
    small |= {"--tasks": "rte"} if command == "glue" else {}
    more = [word for name, value in small.items() if name not in words for word in (name, value)]
    before = set(state(folder))
    status = main([command, *words, *([] if "--general" not in words else ["--evaluation.block", "16"]), *more])
    repeats = ("recipe.yaml", "environment.json", "times.jsonl", "finished.json", "report.html", ".lock", ".rows.lock")
    return status, {
        name: digest for name, digest in state(folder, repeats).items() if name not in before and "cache" not in name
    }


@pytest.mark.parametrize(("command", "option"), [(c, o) for c, options in OPTIONS.items() for o in options])
def test_every_option_changes_what_is_left(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eunoe.report.page.render", lambda *_, **__: "")
    monkeypatch.setattr("eunoe.cli._summary", lambda _: None)
    seen = []
    for i, words in enumerate(OPTIONS[command][option]):
        folder = tmp_path / f"side{i}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        tiny_folder(folder)
        tiny_folder(folder / "other", seed=1)
        rows = write_task(folder / "rows.csv", 1).read_text(encoding="utf-8").splitlines()[1:]
        write_task(folder / "test.csv", 2, n=16)
        pairs = [f"{row},second {i},{'ab'[i % 2]},{i}" for i, row in enumerate(rows)]
        (folder / "pairs.csv").write_text("\n".join(["text,label,second,class,score", *pairs]), encoding="utf-8")
        forms = [{"text": f"second {i}", "label": i % 2, "few": [row, "no"], "many": [row, "no", "or"], "sentence1": row,
                  "sentence2": "no", "gold_label": "ab"[i % 3 == 0]} for i, row in enumerate(rows)]  # fmt: skip
        (folder / "forms.jsonl").write_text("".join(f"{json.dumps(form)}\n" for form in forms), encoding="utf-8")
        for name, seed in (("general", 5), ("general2", 6)):
            write_text(folder / f"{name}.txt", seed=seed, n=20)
        write_glue(folder / "GLUE")
        write_glue(folder / "GLUE2", rows=8)
        seen.append(left(folder, command, words))
    assert seen[0][0] == 0
    assert seen[0] != seen[1]


@pytest.mark.parametrize("command", OPTIONS)
def test_no_option_lacks_an_entry(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage = capsys.readouterr().out.split("options:")[0]
    assert set(re.findall(r"--[a-z-]+", usage)) == set(OPTIONS[command])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--glue", "rte", "--data", "GLUE", "--test", "x.csv"], "--test: not read with --glue"),
        (["--glue", "rte", "--text", "a", "--test-share", "0.1"], "--test-share, --text: not read with --glue"),
        ([*PAIRS, "--data", "GLUE"], "--data GLUE: read only with --glue TASK"),
        ([*PAIRS, "--batch", "0"], "recipe.systems.adamw.batch: must be at least 1, received 0"),
    ],
)
def test_options_that_nothing_would_read_are_refused(words: list[str], message: str, capsys: Any) -> None:
    assert main(["finetune", *words, "--model", "bert"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
