"""The command ``eunoe`` as a process of its own, for tests that send it signals or look at what it leaves running.

``start`` forks it from a server that has done the slow imports; ``command`` starts Python anew, as a user does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from eunoe import progress
from eunoe.cli import main
from tests.faults.moments import counted, signal_at

LIMIT = 120.0
COMMAND = "import sys; from eunoe.cli import main; sys.exit(main())"


def command(words: Sequence[object], folder: Path, before: str = "", **surroundings: str) -> subprocess.Popen[str]:
    """Start ``eunoe WORDS`` in ``folder``. ``before``: Python to carry out first, in the same process."""
    text = f"{before}\n{COMMAND}"
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, words)], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "EUNOE_CACHE": str(folder / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
             "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **surroundings},
    )  # fmt: skip


def life(words: list[str], folder: str, before: str, jobs: int) -> None:
    """The process that gets signals: the command as a program, in ``folder``; ``before`` is carried out first."""
    import torch

    torch.set_num_threads(1)
    progress._spoke = time.monotonic()  # the log begins with this process, not with the one it was forked from
    os.environ.update(
        EUNOE_CACHE=str(Path(folder).parent / "cache"),
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        EUNOE_JOBS=str(jobs),
    )
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["eunoe", *words]
    exec(before, {"counted": counted, "signal_at": signal_at})
    sys.exit(main())


def start(forks: ForkServerContext, words: list[str], folder: Path, before: str = "", jobs: int = 1) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    process = forks.Process(target=life, args=(words, str(folder), before, jobs))
    process.start()
    return process


def end(process: BaseProcess, folder: Path) -> tuple[int | None, str]:
    """The exit code and what stands on stderr."""
    process.join(LIMIT)
    return process.exitcode, (folder / "stderr").read_text()


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def jobs_of(process: BaseProcess) -> list[psutil.Process]:
    """The jobs that a command started."""
    try:
        return [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "eunoe.worker" in " ".join(child.cmdline())
        ]
    except psutil.Error:
        return []


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Has every one of them ended?"""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
