"""The contract in two processes joined by gloo: the gradient of one process, and the same bits after a stop."""

from __future__ import annotations

import multiprocessing
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from eunoe import ranks
from eunoe.contract.over_methods import *  # noqa: F403
from eunoe.contract.over_methods import learning
from eunoe.contract.way import CALM, Way, digest, gradients, stopping
from eunoe.errors import Interrupted
from eunoe.methods import METHODS, Entry
from eunoe.train import train

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch with gloo")


def before_the_last(name: str, rank: int = 0, world: int = 1) -> Way:
    """In float64 and without dropout, the way up to its last stage."""
    way = Way(name, double=True, rank=rank, world=world, **CALM)
    return way.walked(way.last, steps=3, micro_batch=3)


def gradients_of(way: Way) -> dict[str, Tensor]:
    """Of each step of the last stage."""
    steps = gradients(way, way.last, 3)
    return {f"{i}/{weight}": grad for i, step in enumerate(steps) for weight, grad in step.items()}


def resumed(way: Way, folder: Path) -> tuple[str, str]:
    """Digests of a method never stopped, and of one stopped in its last stage by a signal to one process alone."""
    whole, killed = way.before(way.last), way.job(way.before(way.last), way.last, folder, steps=4)
    train(way.job(whole, way.last, steps=4))
    killed.observe = stopping(2) if way.rank else None
    try:
        train(killed)
    except Interrupted:
        ranks.wait()  # the first one writes, and both are started again only when both have ended
        again = way.before(way.last)
        train(way.job(again, way.last, folder, steps=4))
        return digest(whole), digest(again)
    return "never", "stopped"


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """A server that does the slow imports once and forks each process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eunoe.engine", "eunoe.contract.test_two_processes"])
    return context


def one_of_two(rank: int, port: int, folder: str, table: dict[str, Entry]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    METHODS.update(table)  # this process is its own
    with open(os.devnull, "w") as silent, redirect_stdout(silent), redirect_stderr(silent):
        for name in table:
            way = before_the_last(name, rank, 2)
            save_file(gradients_of(way), f"{folder}/{name}.{rank}.safetensors")
            whole, again = resumed(way, Path(folder) / f"{name}.steps")
            if whole != again:
                Path(folder, f"{name}.{rank}.differs").write_text(f"{whole} {again}")
    sys.exit(0)


def test_two_processes_have_the_gradient_of_one_and_resume_to_the_same_bits(
    forks: ForkServerContext, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    table = learning(request.module)
    # they meet at a store of this process, as at torchrun's: a port that was looked for and let go could be another's by then
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    pair = [forks.Process(target=one_of_two, args=(rank, store.port, str(tmp_path), table)) for rank in (0, 1)]
    for process in pair:
        process.start()
    alone = {name: gradients_of(before_the_last(name)) for name in table}
    for process in pair:
        process.join(240)
    assert [process.exitcode for process in pair] == [0, 0]
    assert not [file.name for file in tmp_path.glob("*.differs")]
    for name in table:
        for rank in (0, 1):
            shares = load_file(tmp_path / f"{name}.{rank}.safetensors")
            assert shares.keys() == alone[name].keys()
            for weight, grad in alone[name].items():
                gap = float((shares[weight] - grad).abs().max() / (1 + grad.abs().max()))
                assert gap < 1e-12, f"{name}: {weight} differs by {gap:g}"
