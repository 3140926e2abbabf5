"""Several processes of this machine on one run folder: ``eunoe run R --jobs N``.

Each job is a process of its own that resumes the folder's recipe and takes cells until none is left (engine.py). The process
that started them shows one line of progress a job, hands on Ctrl-C and SIGTERM, and gathers the rows at the end. A job ends with
the process that started it, also where that is killed: it reads a pipe that closes then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from eunoe import stop
from eunoe.errors import EunoeError, Interrupted
from eunoe.progress import Lines, say

_NUMBER = "EUNOE_JOB"


def number() -> int:
    """Which job this process is, from 0."""
    return max(0, int(os.environ.get(_NUMBER, "0") or 0) - 1)


def alone() -> bool:
    """Is this process not one of several jobs that another one started?"""
    return not os.environ.get(_NUMBER)


def share(out: Path, count: int) -> None:
    """Start ``count`` jobs on the run folder ``out`` and wait for them.

    Raises ``Interrupted`` when asked to stop (every job saved its place), ``EunoeError`` with the first job's message where one
    fails; the others are then stopped, with their places saved. Jobs that were killed leave their cells to the others.
    """
    running = [_start(out, k + 1) for k in range(count)]
    lines = Lines(count)
    readers = [
        threading.Thread(target=_read, args=(job.stdout, lines, k), daemon=True) for k, job in enumerate(running)
    ]
    for reader in readers:
        reader.start()
    told, failed = False, False
    with lines:
        while any(job.poll() is None for job in running):
            failed = failed or any((job.poll() or 0) > 0 and job.returncode != 130 for job in running)
            if (stop.asked() or failed) and not told:
                told = True
                for job in running:
                    if job.poll() is None:
                        job.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        for reader in readers:
            reader.join(timeout=5)
    errors = [
        lines.errors[k] for k, job in enumerate(running) if job.returncode not in (0, 130) and lines.errors.get(k)
    ]
    if stop.asked():
        raise Interrupted(
            f"stopped by {stop.asked()}; {count} jobs saved their places. Run the same command to resume."
        )
    if errors:
        raise EunoeError(errors[0])
    for k, job in enumerate(running):
        if job.returncode:
            say(f"job {k + 1} ended with {_ending(job.returncode)}; what it was at is done by the others, or now")


def _start(out: Path, k: int) -> subprocess.Popen[bytes]:
    surroundings = {**os.environ, _NUMBER: str(k), "EUNOE_PROGRESS": "json"}
    code = "import sys; from eunoe.worker import main; sys.exit(main(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(out.resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings,
        start_new_session=True,  # Ctrl-C reaches the starting process alone, which hands it on once
    )  # fmt: skip


def _read(pipe: IO[bytes] | None, lines: Lines, k: int) -> None:
    for line in pipe or ():
        try:
            lines.take(k, json.loads(line))
        except ValueError:
            continue  # something printed it that knows nothing of jobs


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


__all__ = ["alone", "number", "share"]
