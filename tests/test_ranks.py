"""Two processes on one run, joined by gloo as ``torchrun`` joins them: one result, proved, and the same again after a kill."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch.distributed as dist
from transformers import AutoModelForMaskedLM

import eunoe
from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.verify import verify
from tests.faults.test_kill import EXEMPT, forks
from tests.tiny_run import state, tiny_recipe

__all__ = ["forks"]
pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch with gloo")


def one_of_two(rank: int, port: int, recipe: str, out: str) -> None:
    """``eunoe run`` with the surroundings that ``torchrun --nproc-per-node 2`` gives."""
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        EUNOE_CACHE=str(Path(recipe).parent / "cache"), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    os.chdir(Path(out).parent)
    with open(os.devnull, "w") as silent, redirect_stdout(silent), redirect_stderr(silent):
        code = main(["run", recipe, "--out", Path(out).name])
    sys.exit(code)


def start(forks: ForkServerContext, recipe: Path, out: Path) -> list[BaseProcess]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [forks.Process(target=one_of_two, args=(rank, port, str(recipe), str(out))) for rank in (0, 1)]
    for process in processes:
        process.start()
    return processes


def finish(forks: ForkServerContext, recipe: Path, out: Path) -> None:
    processes = start(forks, recipe, out)
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0, 0]


def recipe_without_chance(folder: Path) -> Path:
    """No dropout, which each process draws for itself: what is left is the order of sums."""
    made = tiny_recipe(
        folder, seeds=[0], evaluation={"blocks": 6, "batch": 8, "base": False},
        training={"block": 16, "batch": 8, "micro_batch": 4, "steps": 6, "lr": 0.005, "checkpoint_every": 2},
    )  # fmt: skip
    made.write_text(made.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    return made


@pytest.mark.slow
def test_two_processes_end_where_one_does_are_proved_and_survive_a_kill(
    forks: ForkServerContext, tmp_path: Path
) -> None:
    recipe = recipe_without_chance(tmp_path)
    one, two, killed = tmp_path / "one" / "out", tmp_path / "two" / "out", tmp_path / "killed" / "out"
    run(load_recipe(str(recipe)), one)
    began = time.monotonic()
    finish(forks, recipe, two)
    seconds = time.monotonic() - began
    alone, shared = read_rows(one / "rows.jsonl"), read_rows(two / "rows.jsonl")
    assert [(row.method, row.learnt, row.task, row.metric) for row in alone] == [
        (row.method, row.learnt, row.task, row.metric) for row in shared
    ]
    for a, b in zip(alone, shared, strict=True):
        if a.metric == "lm_loss":
            assert a.value == pytest.approx(b.value, abs=2e-3)
    findings = verify(two)
    assert {f.promised for f in findings} == {True, False}
    assert not any(f.broken for f in findings)
    model = AutoModelForMaskedLM.from_pretrained(next(tmp_path.glob("*/config.json")).parent)
    eunoe.load_plugins(model, two / "sequences" / "cpt.given.seed0" / "plugins")

    processes = start(forks, recipe, killed)
    time.sleep(seconds / 2)
    processes[1].kill()
    time.sleep(0.2)
    processes[0].kill()  # torchrun ends the others when one is gone
    for process in processes:
        process.join()
    finish(forks, recipe, killed)
    assert state(killed, EXEMPT) == state(two, EXEMPT)


def test_more_processes_than_blocks_in_a_micro_batch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(recipe_without_chance(tmp_path)))
    for name, value in {"WORLD_SIZE": "5", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EunoeError, match=r"5 processes.*smallest holds 4 blocks"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
