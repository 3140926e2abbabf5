"""SIGKILL at any moment: the same command, given again, ends in the bytes of a run that was never disturbed.

Runs are processes of their own, forked from one that has done the slow imports. ``EUNOE_KILLS`` sets the number of
kills (3; 20 is the full trial).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from eunoe.cli import main
from tests.tiny_run import state, tiny_recipe

KILLS = int(os.environ.get("EUNOE_KILLS", "3"))
EXEMPT = ("times.jsonl",)


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """A server that imports what a run imports, once, and forks each run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["eunoe.engine", "eunoe.verify", "matplotlib.backends.backend_svg", "tests.faults.test_kill"]
    )
    ready = context.Process(target=os.getpid)
    ready.start()
    ready.join()
    return context


def eunoe_run(recipe: str, out: str) -> None:
    """The process that is killed: ``eunoe run``, its words thrown away."""
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        EUNOE_CACHE=str(Path(recipe).parent / "cache"), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    os.chdir(Path(out).parent)  # the command, which the report prints, is the same in each folder
    with open(os.devnull, "w") as silent, redirect_stdout(silent), redirect_stderr(silent):
        code = main(["run", recipe, "--out", Path(out).name])
    sys.exit(code)


def start(forks: ForkServerContext, recipe: Path, out: Path) -> BaseProcess:
    out.parent.mkdir(parents=True, exist_ok=True)
    process = forks.Process(target=eunoe_run, args=(str(recipe), str(out)))
    process.start()
    return process


def finish(forks: ForkServerContext, recipe: Path, out: Path) -> float:
    """Run to the end; returns the seconds it took."""
    began = time.monotonic()
    process = start(forks, recipe, out)
    process.join(120)
    assert process.exitcode == 0
    return time.monotonic() - began


def phases(out: Path, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """When the undisturbed run was training and when evaluating: (from, to) in seconds, counted back from its end."""
    events = [json.loads(line) for line in (out / "times.jsonl").read_text().splitlines()]
    at = seconds - sum(event["seconds"] for event in events) - 1.2  # the report takes about a second
    collected: dict[str, list[tuple[float, float]]] = {"training": [], "evaluating": []}
    for event in events:
        collected["evaluating" if ":" in event["what"] else "training"].append((at, at + event["seconds"]))
        at += event["seconds"]
    return collected


def draw(kill: int, phase: dict[str, list[tuple[float, float]]], seconds: float) -> float:
    """In turn a moment of training, of evaluation, of the whole run; as near as another run repeats the first."""
    chance = random.Random(f"kill {kill}")
    kind = ("training", "evaluating", None)[kill % 3]
    return chance.uniform(*chance.choice(phase[kind])) if kind else chance.uniform(0, seconds)


def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(forks: ForkServerContext, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, seeds=[0], evaluation={"blocks": 6, "batch": 8, "base": False},
        training={"block": 16, "batch": 8, "micro_batch": 4, "steps": 12, "lr": 0.005, "checkpoint_every": 2},
    )  # fmt: skip
    seconds = finish(forks, recipe, tmp_path / "whole" / "out")
    whole = state(tmp_path / "whole" / "out", EXEMPT)
    assert sum("/final/" in name for name in whole) == 4 * 4 + 2  # four domains learnt; cpt has tensors of its own
    assert {"rows.jsonl", "matrix.csv", "report.html", "environment.json"} <= set(whole)
    seen: list[str] = []
    for kill in range(KILLS):
        out = tmp_path / f"kill{kill}" / "out"
        moment = draw(kill, phases(tmp_path / "whole" / "out", seconds), seconds)
        process = start(forks, recipe, out)
        time.sleep(max(moment, 0.0))
        process.kill()
        process.join()
        steps = list(out.rglob("steps"))
        training = any(not (p.parent / "final").exists() for p in steps)
        done = (out / "finished.json").exists()
        seen.append(
            "done" if done else "training" if training else "rows" if (out / "rows.jsonl").exists() else "early"
        )
        finish(forks, recipe, out)
        assert state(out, EXEMPT) == whole, f"kill {kill} after {moment:.3f} s ({seen[-1]}) of {seconds:.3f} s"
    print(f"undisturbed: {seconds:.1f} s; killed while:", ", ".join(seen))
    assert set(seen) & {"training", "rows"}, f"no kill fell into the run: {seen}"


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(forks: ForkServerContext, tmp_path: Path) -> None:
    """Each life gets a little further; what one life left is what the next one finds."""
    recipe = tiny_recipe(
        tmp_path, seeds=[0], methods=["cpt"], training={"block": 16, "batch": 4, "steps": 8, "lr": 0.005, "checkpoint_every": 1}
    )  # fmt: skip
    seconds = finish(forks, recipe, tmp_path / "whole" / "out")
    chance, lives = random.Random(1), 0
    while not (tmp_path / "lives" / "out" / "finished.json").exists():
        process = start(forks, recipe, tmp_path / "lives" / "out")
        process.join(chance.uniform(0.4, 0.8) * seconds)
        process.kill()
        process.join()
        lives += 1
        assert lives < 30, "no life got further than the one before"
    assert lives > 1
    assert state(tmp_path / "lives" / "out", EXEMPT) == state(tmp_path / "whole" / "out", EXEMPT)
