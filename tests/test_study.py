"""A fine-tuning study: every cell owed gives its rows, a search decides who is reported, processes share the work."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.recipe import Study, load_recipe
from eunoe.report.schema import Row, read_rows
from eunoe.study import resolve_study
from tests.tiny import tiny_folder
from tests.tiny_run import count, write_task, write_text


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def tiny_study(folder: Path, **change: Any) -> Path:
    """The file of a study of two tasks, AdamW and RecAdam with a grid of two rates, a search and two seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for i, name in enumerate(("mood", "tone")):
        train, test = write_task(folder / f"{name}.csv", 20 + i), write_task(folder / f"{name}_test.csv", 30 + i, n=16)
        tasks.append({"name": name, "train": str(train), "test": str(test)})
    common = {"name": "finetune", "batch": 8, "epochs": 2, "max_length": 16, "evaluate_every": 2, "observe_every": 3}
    data = {
        "name": "tiny_study",
        "model": {"name": str(tiny_folder(folder)), "dropout": 0.1},
        "tasks": tasks,
        "systems": {
            "adamw": {**common, "lr": 0.002},
            "recadam": {
                **common,
                "optimizer": {"name": "recadam", "gamma": 100, "t0": 2},
                "grid": {"lr": [0.001, 0.004]},
            },
        },
        "search": {"seed": 7},
        "seeds": [0, 1],
        "retention": {"general": {"source": str(write_text(folder / "general.txt", seed=99, n=20))}},
        "evaluation": {"batch": 8, "block": 16, "blocks": 4},
        **change,
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


def study(file: Path, *overrides: tuple[str, str]) -> Study:
    loaded = load_recipe(file, overrides)
    assert isinstance(loaded, Study)
    return loaded


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUNOE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr("eunoe.progress.console.quiet", True)
        file = tiny_study(folder)
        run(load_recipe(file), folder / "out")
    return file, folder / "out"


def rows_of(out: Path, **match: Any) -> list[Row]:
    return [r for r in read_rows(out / "rows.jsonl") if all(getattr(r, k) == v for k, v in match.items())]


def kept(out: Path) -> dict[str, bytes]:
    """Every byte of a study that must not depend on who did the work."""
    files = [out / "rows.jsonl", out / "recipe.yaml", *sorted(out.glob("cells/*/*/*.csv"))]
    return {str(f.relative_to(out)): f.read_bytes() for f in files}


# -- what a study leaves ---------------------------------------------------------------------------------------------
def test_a_study_leaves_scores_and_retention_of_every_cell_it_owes(made: tuple[Path, Path]) -> None:
    rows = read_rows(made[1] / "rows.jsonl")
    assert len({row.key for row in rows}) == len(rows)
    for task in ("mood", "tone"):
        cells = {(r.transfer, r.seed) for r in rows if r.task == task}
        tried = {("recadam[lr=0.001]", 7), ("recadam[lr=0.004]", 7)}
        assert tried | {("adamw", 0), ("adamw", 1)} < cells
        won = {label for label, seed in cells - tried if str(label).startswith("recadam")}
        assert len(won) == 1  # one point went on
        assert len(cells) == 6
        for transfer, seed in cells:
            own_rows = [r for r in rows if (r.task, r.transfer, r.seed) == (task, transfer, seed)]
            last = [r.metric for r in own_rows if r.at == "last"]
            assert last == ["accuracy", "macro_f1", "lm_loss@general", "cka@general", "anchor_distance"]
            assert [r.metric for r in own_rows if r.at == "best"] == ["accuracy", "macro_f1"]
            assert {r.steps for r in own_rows if r.at == "last"} == {6}


def test_the_search_takes_the_point_with_the_best_last_score_of_its_seed(made: tuple[Path, Path]) -> None:
    for task in ("mood", "tone"):
        tried = {r.transfer: r.value for r in rows_of(made[1], task=task, seed=7, metric="accuracy", at="last")}
        won = {r.transfer for r in rows_of(made[1], task=task, seed=0) if str(r.transfer).startswith("recadam")}
        assert [tried[label] for label in won] == [max(tried.values())]


def test_the_best_is_the_best_of_the_evaluations_made_on_the_way(made: tuple[Path, Path]) -> None:
    for row in rows_of(made[1], metric="accuracy", at="best", transfer="adamw"):
        file = made[1] / "cells" / row.task / f"adamw.seed{row.seed}" / "observed.csv"
        with open(file, newline="", encoding="utf-8") as handle:
            seen = {int(r["step"]): float(r["value"]) for r in csv.DictReader(handle) if r["metric"] == "accuracy"}
        assert sorted(seen) == [2, 4, 6]
        assert row.value == max(seen.values())
        assert row.steps == min(step for step, value in seen.items() if value == row.value)
        last = rows_of(made[1], metric="accuracy", at="last", transfer="adamw", task=row.task, seed=row.seed)
        assert last[0].value == seen[6]


def test_the_distance_to_the_pretrained_weights_is_seen_on_the_way_and_ends_as_the_row_says(
    made: tuple[Path, Path],
) -> None:
    with open(made[1] / "cells/mood/adamw.seed0/observed.csv", newline="", encoding="utf-8") as handle:
        seen = {int(r["step"]): float(r["value"]) for r in csv.DictReader(handle) if r["metric"] == "anchor_distance"}
    assert sorted(seen) == [1, 3, 6]
    row = rows_of(made[1], metric="anchor_distance", transfer="adamw", task="mood", seed=0)[0]
    assert seen[6] == pytest.approx(row.value)
    assert 0 < seen[1] < seen[6]


# -- going on, sharing, refusing -------------------------------------------------------------------------------------
def test_the_same_command_again_changes_nothing(made: tuple[Path, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in made[1].rglob("*") if p.is_file()}
    run(load_recipe(made[0]), made[1])
    assert {p: p.stat().st_mtime_ns for p in made[1].rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_end_in_the_bytes_of_one(made: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "eunoe.cli", "run", str(made[0]), "--out", str(out)]
    first, second = (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ})
        for _ in range(2)
    )
    while count(out, "cell.json") < 2 and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "it was killed in the middle of the work"
    assert second.wait(timeout=120) == 0, second.stderr.read() if second.stderr else ""
    assert kept(out) == kept(made[1])


def test_another_study_in_the_folder_is_refused_by_the_key_that_differs(made: tuple[Path, Path]) -> None:
    with pytest.raises(EunoeError, match=r"belongs to another recipe: seeds"):
        run(load_recipe(made[0], [("seeds", "[0, 2]")]), made[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": [0, 7]}, r"search.seed is 7, which is among the seeds"),
        ({"systems": {"adamw": {"name": "finetun"}}}, r"unknown transfer 'finetun'"),
        ({"systems": {"adamw": {"name": "finetune", "grid": {"lr": 1}}}}, r"grid: expected keys with lists"),
        ({"systems": {"adamw": {"name": "finetune", "grid": {"lrr": [1]}}}}, r"lrr"),
        ({"systems": {}}, r"systems: must have at least one entry"),
        ({"published": {"adamw": {"moood": 3}}}, r"moood"),
        ({"tasks": [{"name": "a", "glue": "cola"}]}, r"glue and folder belong together"),
        ({"tasks": [{"name": "a", "glue": "coola", "folder": "x"}]}, r"coola"),
        ({"search": {"seed": 9, "by": "best"}, "systems": {"adamw": "finetune"}}, r"evaluate_every is not set"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tiny_study(tmp_path, **change)
    with pytest.raises(EunoeError, match=said):
        run(study(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_of_a_task_go_over_those_of_the_systems_and_the_grid_over_both(tmp_path: Path) -> None:
    file = tiny_study(tmp_path)
    plan = resolve_study(study(file, ("tasks.0.transfer", "{epochs: 5, lr: 0.3}"), ("systems.adamw.epochs", "3")))
    adamw, recadam = plan.points["mood", "adamw"], plan.points["mood", "recadam"]
    assert [(c.settings.epochs, c.settings.lr) for c in adamw] == [(5, 0.3)]
    assert [(c.settings.epochs, c.settings.lr) for c in recadam] == [(5, 0.001), (5, 0.004)]
    assert plan.points["tone", "adamw"][0].settings.epochs == 3


def test_a_random_start_is_pulled_to_the_pretrained_weights_and_the_classifier_is_not(tmp_path: Path) -> None:
    """RecAdam's own script starts at random: after t0 steps without task loss the trunk is the pretrained one."""
    system = {
        "name": "finetune", "start": "random", "batch": 8, "steps": 30, "max_length": 16, "lr": 0.01, "schedule": "constant",
        "warmup": 0.0, "observe_every": 1, "optimizer": {"name": "recadam", "gamma": 50, "t0": 25, "k": 5},
    }  # fmt: skip
    file = tiny_study(tmp_path, systems={"random": system}, search=None, seeds=[0], retention={})
    run(study(file), tmp_path / "out")
    with open(tmp_path / "out/cells/mood/random.seed0/observed.csv", newline="", encoding="utf-8") as handle:
        seen = {int(r["step"]): float(r["value"]) for r in csv.DictReader(handle) if r["metric"] == "anchor_distance"}
    assert seen[1] > 1
    assert seen[2] == pytest.approx(seen[1] * 0.5, rel=1e-3)  # lr * gamma = 0.5 of the distance a step
    assert seen[22] < 1e-4 * seen[1]
    assert seen[30] > 100 * seen[22]  # and then it trains on


def test_a_system_may_have_a_model_of_its_own_and_the_transfer_refuses_one_that_it_cannot_use(tmp_path: Path) -> None:
    """A decoder with GPT-1's fine-tuning beside an encoder; measured against its own pretrained weights; shared and resumed alike."""
    decoder = str(tiny_folder(tmp_path / "models", "gpt2"))
    common = {"batch": 8, "epochs": 1, "max_length": 16}
    systems = {"adamw": {"name": "finetune", **common}, "gpt": {"name": "gpt", **common, "model": decoder, "lr": 1e-9}}
    file = tiny_study(tmp_path, systems=systems, search=None, seeds=[0])
    run(study(file), tmp_path / "out")
    assert {(r.task, r.transfer) for r in rows_of(tmp_path / "out", metric="accuracy")} == {
        (task, label) for task in ("mood", "tone") for label in systems
    }
    lost = {r.transfer: (r.detail or {}).get("before") for r in rows_of(tmp_path / "out", metric="lm_loss@general")}
    assert lost["gpt"] != lost["adamw"], "each against the model that it started from"
    (far,) = {round(r.value, 3) for r in rows_of(tmp_path / "out", metric="anchor_distance", transfer="gpt")}
    assert far == 0
    before = kept(tmp_path / "out")
    run(study(file), tmp_path / "out")
    assert kept(tmp_path / "out") == before
    with pytest.raises(EunoeError, match=r"recipe\.systems\.gpt: .* needs a causal LM; .*bert' is a masked one"):
        run(study(file, ("systems.gpt.model", str(tmp_path / "bert"))), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(EunoeError, match=r"systems\.gpt\.model"):
        resolve_study(study(file, ("systems.gpt.model", "{nam: x}")))
