"""SIGKILL in the middle of each method's last stage, while it writes a checkpoint: resumed, it ends in the bits of one never killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eunoe.contract.over_methods import *  # noqa: F403
from eunoe.contract.over_methods import learning
from eunoe.contract.way import Way, digest, undisturbed, walked
from eunoe.methods import METHODS, Entry
from eunoe.train import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
MOMENTS = 8
"""What writing a checkpoint does to files, at least: in one of these the process is killed, another one for each method."""


def kill_in(steps: Path, moment: int) -> None:
    """Once the first checkpoint in ``steps`` is whole: SIGKILL at that thing (from 0) that is done to the folder's files."""
    seen = -1

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(str(steps)):
            seen += seen >= 0 or (steps / f"step-{2:08d}" / "manifest.json").is_file()
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def learn(way: Way, steps: Path) -> tuple[str, int]:
    """Learn the last stage, from a checkpoint in ``steps`` if there is one: the digest, and the first step that was done."""
    done: list[int] = []

    def look(step: int) -> Mapping[str, float]:
        done.append(step)
        return {}

    method = way.before(way.last)
    job = way.job(method, way.last, steps, micro_batch=2)
    job.observe = look
    train(job)
    method.activate(None)
    return digest(method), done[0]


def killed_and_resumed(folder: Path, table: dict[str, Entry]) -> None:
    """Of each method a file: how the process that learnt first ended, from which step the next resumed, whose bits it ended in."""
    import torch

    torch.set_num_threads(1)
    METHODS.update(table)  # this process is its own
    for name in table:
        way, whole, steps = walked(name), undisturbed(name)[0], folder / f"{name}.steps"
        victim = os.fork()
        if victim == 0:
            try:
                kill_in(steps, zlib.crc32(name.encode()) % MOMENTS)
                learn(way, steps)
            finally:
                os._exit(0)  # it came through, which it should not
        code = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
        bits, first = learn(way, steps)
        (folder / f"{name}.ended").write_text(f"{code}, from step {first}, {'same' if bits == whole else 'other'} bits")


def test_killed_while_it_writes_a_checkpoint_it_ends_in_the_bits_of_one_never_killed(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    table = learning(request.module)
    context = multiprocessing.get_context("forkserver")  # a process that has no threads, as it will be forked
    process = context.Process(target=killed_and_resumed, args=(tmp_path, table))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    ended = {name: (tmp_path / f"{name}.ended").read_text() for name in table}
    # the kill comes while the second checkpoint is written, or in the moment that it is whole
    wanted = [f"{-signal.SIGKILL}, from step {first}, same bits" for first in (3, 5)]
    assert not {name: how for name, how in ended.items() if how not in wanted}
