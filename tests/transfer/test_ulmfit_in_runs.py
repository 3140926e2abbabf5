"""ULMFiT from the command line and as the transfer of a run over domains, whose own weights stay as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eunoe.cli import main
from eunoe.report.schema import read_rows
from eunoe.transfer import ulmfit
from tests.tiny import tiny_folder
from tests.tiny_run import state, tiny_recipe, write_task, write_text

SMALL: dict[str, Any] = {"epochs": 5, "batch": 8, "max_length": 32}
LM: dict[str, Any] = {"epochs": 1, "block": 16, "batch": 4}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("eunoe.report.page.render", lambda *_, **__: "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_compares_it_with_fine_tuning(here: Path) -> None:
    tiny_folder(here)
    write_task(here / "rows.csv", 1)
    write_task(here / "test.csv", 2)
    write_text(here / "more.txt", seed=5, n=20)
    words = ["finetune", "--train", "rows.csv", "--test", "test.csv", "--model", "bert", "--unlabelled", "more.txt"]
    words += ["--general", "more.txt", "--transfer", "finetune", "ulmfit", "--epochs", "5", "--batch", "8"]
    words += ["--max-length", "32", "--evaluation.block", "16", "--jobs", "1"]
    own = [f"--systems.ulmfit.lm.{key}={value}" for key, value in LM.items()]
    assert main([*words, *own]) == 0
    rows = read_rows(here / "runs/finetune/rows.jsonl")
    assert {row.transfer for row in rows} == {"adamw", "ulmfit"}
    assert {"accuracy", "macro_f1", "lm_loss@general", "anchor_distance"} <= {
        r.metric for r in rows if r.transfer == "ulmfit"
    }
    cell = next((here / "runs/finetune/cells/task").glob("ulmfit*"))
    steps = (cell / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert len(steps) - 1 == next(r.steps for r in rows if r.transfer == "ulmfit")
    assert (
        main([*words, *own, "--systems.ulmfit.epochs", "1"]) == 2
    )  # too few for the phases: refused, nothing is written


def test_a_run_over_domains_keeps_its_weights(here: Path) -> None:
    weights = []
    for transfer in ({"name": "finetune", **SMALL}, {"name": "ulmfit", **SMALL, "lm": LM}):
        name = str(transfer["name"])
        (here / name).mkdir()
        recipe = tiny_recipe(
            here / name, transfer=transfer, seeds=[0], evaluation={"blocks": 6, "batch": 8, "retention": True}
        )
        assert main(["run", str(recipe), "--out", f"out-{name}", "--jobs", "1"]) == 0
        files = state(here / f"out-{name}")
        weights.append({file: digest for file, digest in files.items() if "/final/weights" in file})
        rows = read_rows(here / f"out-{name}/rows.jsonl")
        ends = [row for row in rows if row.transfer is not None]
        assert {row.transfer for row in ends} == {name}
        assert {row.method for row in ends} == {"base", "ncl", "cpt"}
    assert weights[0] == weights[1] != {}


def test_systems_of_a_study_tune_a_language_model_once_where_they_do_it_alike(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of four systems are those of each alone; two LM trainings a seed, not four, and one more where it was damaged."""
    tiny_folder(here)
    write_task(here / "rows.csv", 1)
    write_task(here / "test.csv", 2)
    trained: list[str] = []
    real = ulmfit.phase

    def counted(*args: Any, **options: Any) -> Any:
        trained.append(options["name"])
        if options["name"].endswith("seed 1 · lm"):  # seed 0's was made: of one file a byte is changed
            for file in (here / "all/shared").glob("lm-*/model.safetensors"):
                file.write_bytes(file.read_bytes()[:-1] + b"x")
        return real(*args, **options)

    monkeypatch.setattr(ulmfit, "phase", counted)
    systems = {
        "gradual": {},
        "whole": {"unfreeze": "none"},
        "last": {"unfreeze": "last"},
        "faster": {"lm": {**LM, "lr": 0.01}},
    }

    def study(names: list[str], out: str, seeds: list[int]) -> dict[Any, float]:
        recipe = {
            "name": "study", "model": {"name": "bert"}, "seeds": seeds,
            "tasks": [{"name": "task", "train": "rows.csv", "test": "test.csv"}],
            "systems": {name: {"name": "ulmfit", **SMALL, "lm": LM, **systems[name]} for name in names},
        }  # fmt: skip
        Path(f"{out}.yaml").write_text(json.dumps(recipe))
        assert main(["run", f"{out}.yaml", "--out", out, "--jobs", "1"]) == 0
        assert not (here / out / "shared").exists()
        return {(r.transfer, r.seed, r.metric): r.value for r in read_rows(here / out / "rows.jsonl")}

    together = study(list(systems), "all", [0, 1])
    lms = [name.split(" · ")[1:3] for name in trained if name.endswith("· lm")]
    assert [system for system, seed in lms if seed == "seed 1"] == ["gradual", "faster"]
    assert [system for system, seed in lms if seed == "seed 0"] == ["gradual", "whole", "faster"], "whole's was damaged"
    alone = {key: value for name in systems for key, value in study([name], name, [0, 1]).items()}
    assert together == alone
