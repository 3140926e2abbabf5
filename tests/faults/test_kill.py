"""SIGKILL at any moment: the same command, given again, ends in the bytes of a run that was never disturbed.

Runs are processes of their own, forked from one that has done the slow imports. ``EUNOE_KILLS`` sets the number of
kills (3; 20 is the full trial).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from eunoe.cli import main
from tests.faults.moments import counted, signal_at
from tests.faults.process import LIMIT
from tests.tiny_run import state, tiny_recipe

KILLS = int(os.environ.get("EUNOE_KILLS", "3"))
EXEMPT = ("times.jsonl",)
"""What differs from run to run."""


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


def eunoe_run(recipe: str, out: str, moment: int) -> None:
    """``eunoe run``, its words thrown away; killed at that moment, or (0) never: then it says how many there were."""
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        EUNOE_CACHE=str(Path(recipe).parent / "cache"), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    os.chdir(Path(out).parent)  # the command, which the report prints, is the same in each folder
    count = nullcontext() if moment else counted(Path("moments"))
    with open(os.devnull, "w") as silent, redirect_stdout(silent), redirect_stderr(silent), count:
        if moment:
            signal_at(moment, signal.SIGKILL)
        code = main(["run", recipe, "--out", Path(out).name])
    sys.exit(code)


def life(forks: ForkServerContext, recipe: Path, out: Path, moment: int = 0) -> int | None:
    """A process's life, to its end; returns the exit code."""
    out.parent.mkdir(parents=True, exist_ok=True)
    process = forks.Process(target=eunoe_run, args=(str(recipe), str(out), moment))
    process.start()
    process.join(LIMIT)
    return process.exitcode


def phase(out: Path) -> str:
    """What the run was at."""
    training = any(not (steps.parent / "final").exists() for steps in out.rglob("steps"))
    return "training" if training else "rows" if any(out.rglob("rows.jsonl")) else "early"


def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(forks: ForkServerContext, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, seeds=[0], evaluation={"blocks": 6, "batch": 8, "base": False},
        training={"block": 16, "batch": 8, "micro_batch": 4, "steps": 12, "lr": 0.005, "checkpoint_every": 2},
    )  # fmt: skip
    assert life(forks, recipe, tmp_path / "whole" / "out") == 0
    whole = state(tmp_path / "whole" / "out", EXEMPT)
    moments = int((tmp_path / "whole" / "moments").read_text())
    assert sum("/final/" in name for name in whole) == 4 * 4 + 2  # four domains learnt; cpt has tensors of its own
    assert {"rows.jsonl", "matrix.csv", "report.html", "environment.json"} <= set(whole)
    seen: list[str] = []
    for kill in range(KILLS):
        out = tmp_path / f"kill{kill}" / "out"
        moment = 1 + int(moments * (kill + random.Random(f"kill {kill}").random()) / KILLS)
        assert life(forks, recipe, out, moment) == -signal.SIGKILL
        seen.append(f"{moment} ({phase(out)})")
        assert life(forks, recipe, out) == 0
        assert state(out, EXEMPT) == whole, f"killed at {seen[-1]} of {moments} moments"
    print(f"{moments} moments; killed at", ", ".join(seen))


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(forks: ForkServerContext, tmp_path: Path) -> None:
    """Each life gets a little further; what one life left is what the next one finds."""
    recipe = tiny_recipe(
        tmp_path, seeds=[0], methods=["cpt"], training={"block": 16, "batch": 4, "steps": 8, "lr": 0.005, "checkpoint_every": 1}
    )  # fmt: skip
    assert life(forks, recipe, tmp_path / "whole" / "out") == 0
    moments = int((tmp_path / "whole" / "moments").read_text())
    chance, lives, out = random.Random(1), 0, tmp_path / "lives" / "out"
    while (code := life(forks, recipe, out, round(chance.uniform(0.3, 0.6) * moments))) == -signal.SIGKILL:
        lives += 1
        assert lives < 30, "no life got further than the one before"
    assert code == 0
    assert lives > 1
    assert state(out, EXEMPT) == state(tmp_path / "whole" / "out", EXEMPT)
