"""Several jobs on one run folder: the bytes of one process, whoever is killed; no job outlives its starter; one message."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from eunoe import engine
from eunoe.errors import EunoeError
from eunoe.jobs import Jobs
from eunoe.plan import RunPlan
from eunoe.recipe import load_recipe
from tests.faults.process import end, gone, jobs_of, start, until
from tests.faults.test_kill import EXEMPT, forks
from tests.tiny_run import count, state, tiny_recipe, tiny_settings

__all__ = ["forks"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
KILLS = int(os.environ.get("EUNOE_KILLS", "3"))
WORDS = ["run", "../tiny.yaml", "--out", "out"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, tiny.yaml."""
    folder = tmp_path_factory.mktemp("jobs")
    tiny_recipe(
        folder, seeds=[0], evaluation={"blocks": 6, "batch": 8, "base": False},
        training={"block": 16, "batch": 4, "steps": 6, "lr": 0.005, "checkpoint_every": 1},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def whole(forks: ForkServerContext, home: Path) -> dict[str, str]:
    """The state of the run that one process carried out."""
    assert end(start(forks, WORDS, home / "one"), home / "one") == (0, "")
    return state(home / "one" / "out", EXEMPT)


def both(process: BaseProcess) -> list[psutil.Process]:
    """The two jobs of a command, once they have started; none where it has ended."""
    until(lambda: len(jobs_of(process)) == 2 or not process.is_alive())
    return jobs_of(process)


def test_two_jobs_give_the_bytes_of_one_and_leave_nothing_behind(
    forks: ForkServerContext, home: Path, whole: dict[str, str]
) -> None:
    folder = home / "two"
    folder.mkdir()
    (folder / "random.py").write_text("raise SystemExit('a file of the user is not a module of ours')\n")
    process = start(forks, WORDS, folder, jobs=2)
    jobs = both(process)
    assert len(jobs) == 2
    assert end(process, folder) == (0, "")
    assert state(folder / "out", EXEMPT) == whole
    assert gone(jobs)


def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    forks: ForkServerContext, home: Path, whole: dict[str, str]
) -> None:
    """In turn the starter, one of the jobs, and all of them; ``EUNOE_KILLS`` sets how many (50 is the full trial)."""
    chance, seen = random.Random(7), []
    cells = sum(name.endswith("/cell.json") for name in whole)
    folder, new = home / "killed", 0
    for kill in range(max(2, KILLS - 1)):
        process = start(forks, WORDS, folder, jobs=2)
        jobs = both(process)
        many = chance.randint(0, cells)  # at 0 the jobs are reading
        until(
            lambda out=folder / "out", jobs=jobs, many=many: gone(jobs) or count(out, "cell.json") >= many  # type: ignore[misc]
        )
        victims = [[process.pid], [job.pid for job in jobs[:1]], [process.pid, *(job.pid for job in jobs)]][kill % 3]
        seen.append(("alive " if process.is_alive() else "ended ") + ("starter", "one job", "all")[kill % 3])
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid or 0, signal.SIGKILL)
        process.join()
        until(lambda jobs=jobs: gone(jobs))  # type: ignore[misc]  # no orphans
        if process.exitcode == 0:  # it got to the end: the next one starts anew
            assert state(folder / "out", EXEMPT) == whole, f"after kill {kill}"
            new += 1
            folder = home / f"killed{new}"
    assert end(start(forks, WORDS, folder), folder)[0] == 0
    assert state(folder / "out", EXEMPT) == whole
    print("killed:", ", ".join(seen))
    assert any(word.startswith("alive") for word in seen)


def test_a_signal_to_the_starter_stops_all_jobs_in_one_line(
    forks: ForkServerContext, home: Path, whole: dict[str, str]
) -> None:
    folder = home / "stopped"
    process = start(forks, WORDS, folder, jobs=2)
    jobs = both(process)
    until(lambda: count(folder / "out", "manifest.json", "step-") > 0)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert end(process, folder) == (
        130, "eunoe: stopped by SIGINT; 2 jobs saved their places. Run the same command to resume.\n"
    )  # fmt: skip
    assert gone(jobs)
    assert any("/step-" in name for name in state(folder / "out"))
    assert end(start(forks, WORDS, folder), folder) == (0, "")
    assert state(folder / "out", EXEMPT) == whole


def test_an_error_in_one_job_stops_the_others_and_is_the_one_message(forks: ForkServerContext, home: Path) -> None:
    settings = yaml.safe_load((home / "tiny.yaml").read_text())
    settings["methods"] = ["cpt", {"name": "ncl", "training": {"lr": 1e30, "clip": None}}]
    settings["training"]["steps"] = 20_000  # without the stop, cpt alone would take very long
    (home / "bad.yaml").write_text(yaml.safe_dump(settings))
    folder = home / "bad"
    code, err = end(start(forks, ["run", "../bad.yaml", "--out", "out"], folder, jobs=2), folder)
    lines = err.splitlines()
    assert code == 2
    assert len(lines) == 1, err
    assert lines[0].startswith("eunoe: the loss is ")
    assert "Lower the learning rate" in lines[0]
    assert not list((folder / "out").rglob("final"))


def test_a_study_is_shared_and_relative_paths_count_from_the_users_folder(
    forks: ForkServerContext, tmp_path: Path
) -> None:
    settings = tiny_settings(tmp_path)
    tasks = [
        {"name": d["name"], **{k: f"../{Path(d['task'][k]).name}" for k in ("train", "test")}}
        for d in settings["domains"]
    ]
    study = {
        "name": "study", "model": {"name": f"../{Path(settings['model']['name']).name}"}, "tasks": tasks, "seeds": [0],
        "systems": {"adamw": {"name": "finetune", "epochs": 2, "batch": 8, "lr": 0.002, "max_length": 32}},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    states = []
    for jobs in (1, 2):
        folder = tmp_path / f"jobs{jobs}"
        assert end(start(forks, ["run", "../study.yaml", "--out", "out"], folder, jobs=jobs), folder) == (0, "")
        states.append(state(folder / "out", EXEMPT))
    assert states[0] == states[1]


def test_the_starter_holds_no_model_while_jobs_run_and_does_itself_what_they_left(
    home: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sorted(p.numel() for p in load_plan_model(home).parameters())[-1]

    def share(jobs: Jobs, count: int) -> None:
        """Jobs that were killed in their first moment."""
        gc.collect()
        assert count == 2
        assert not [t for t in gc.get_objects() if isinstance(t, torch.nn.Parameter) and t.numel() == weights]

    monkeypatch.chdir(home)
    monkeypatch.setattr(Jobs, "share", share)
    gc.collect()
    engine.run(load_recipe("tiny.yaml"), tmp_path / "out", jobs=2)
    assert state(tmp_path / "out", EXEMPT)["rows.jsonl"] == whole["rows.jsonl"]


def test_jobs_start_while_the_recipe_is_read_and_end_where_that_fails(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[psutil.Process] = []

    def prepare(plan: RunPlan, out: Path) -> dict[str, str]:
        seen.extend(child for child in psutil.Process().children() if "eunoe.worker" in " ".join(child.cmdline()))
        raise EunoeError("a text that cannot be read")

    monkeypatch.chdir(home)
    monkeypatch.setattr(RunPlan, "prepare", prepare)
    with pytest.raises(EunoeError, match="cannot be read"):
        engine.run(load_recipe("tiny.yaml"), tmp_path / "out", jobs=2)
    assert len(seen) == min(2, engine.cores() if engine.cores() > 1 else 0)
    assert not any(map(psutil.Process.is_running, seen))


def load_plan_model(home: Path) -> torch.nn.Module:
    from transformers import AutoModelForMaskedLM

    model: torch.nn.Module = AutoModelForMaskedLM.from_pretrained(next(home.glob("*/config.json")).parent)
    return model
