"""Two processes joined by gloo, as ``torchrun`` joins them. What they meet at is this process's store, as it is torchrun's own:
a port that was looked for and let go could be another's by the time that they use it.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

_stores: list[TCPStore] = []
STUCK = 90
"""Seconds after which a process writes down where it stands; no test takes so long."""


def start_pair(forks: ForkServerContext, folder: Path, target: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """``target(rank, *args)`` in two processes; what they print, and where they were stuck, is in ``folder/rank-0`` and ``-1``."""
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _stores[:] = [store]  # it lives until the next pair needs one
    pair = [forks.Process(target=_in_pair, args=(rank, store.port, folder, target, args)) for rank in (0, 1)]
    for process in pair:
        process.start()
    return pair


def ended(pair: Sequence[BaseProcess], folder: Path, codes: Sequence[int] = (0, 0)) -> list[str]:
    """Wait for both; returns what each printed. None is left running."""
    end = time.monotonic() + STUCK + 5
    for process in pair:
        process.join(end - time.monotonic())
    found = [process.exitcode for process in pair]
    for process in pair:
        process.kill()
        process.join()
    said = [(folder / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert found == list(codes), "\n".join(said)
    return said


def _in_pair(rank: int, port: int, folder: Path, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch

    from eunoe import progress

    progress.console.quiet = True  # its half minute began when the server started, so a line could be due at once
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    with open(folder / f"rank-{rank}", "w") as file, redirect_stdout(file), redirect_stderr(file):
        faulthandler.dump_traceback_later(STUCK, file=file)
        target(rank, *args)
