"""Several processes of this machine on one run folder: ``eunoe run R --jobs N``.

Each job is a process of its own that resumes the folder's recipe and takes cells until none is left (engine.py). The process
that started them shows one line of progress a job, hands on Ctrl-C and SIGTERM, and gathers the rows at the end. A job ends with
the process that started it, also where that is killed: it reads a pipe that closes then.

Importing torch takes seconds, so jobs may be started while the recipe is still being read (``Jobs.start``): they import what they
need and wait, until ``share`` sends them to work.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from eunoe import stop, trackers
from eunoe.errors import EunoeError, Interrupted
from eunoe.progress import Lines, say

_NUMBER = "EUNOE_JOB"


def number() -> int:
    """Which job this process is, from 0."""
    return max(0, int(os.environ.get(_NUMBER, "0") or 0) - 1)


def alone() -> bool:
    """Is this process not one of several jobs that another one started?"""
    return not os.environ.get(_NUMBER)


class Jobs:
    """The jobs of one run folder. A context manager: however the block ends, no job is left running.

    ``tracked``: they send their curves and scores, which go to the trackers of this process.
    """

    def __init__(self, out: Path, tracked: bool = False) -> None:
        self.out, self.tracked = out, tracked
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.keep(0)

    def start(self, count: int) -> None:
        """Have ``count`` jobs that import what they need and wait."""
        while len(self.running) < count:
            self.running.append(_start(self.out, len(self.running) + 1, self.tracked))

    def keep(self, count: int) -> None:
        """End all but the first ``count``."""
        for job in self.running[count:]:
            job.kill()
        for job in self.running[count:]:
            job.wait()
            for pipe in (job.stdin, job.stdout):
                if pipe is not None:
                    pipe.close()
        del self.running[count:]

    def share(self, count: int) -> None:
        """Let ``count`` jobs do the work, and wait for them.

        Raises ``Interrupted`` when asked to stop (every job saved its place), ``EunoeError`` with the first job's message where
        one fails; the others are then stopped, with their places saved. Jobs that were killed leave their cells to the others,
        and to the caller where none is left.
        """
        self.keep(count)
        self.start(count)
        with Lines(trackers.take, count) as lines:
            readers = [
                threading.Thread(target=_read, args=(job.stdout, lines, k), daemon=True)
                for k, job in enumerate(self.running)
            ]
            for job, reader in zip(self.running, readers, strict=True):
                reader.start()
                _send_to_work(job)
            stopping = False
            while any(job.poll() is None for job in self.running):
                if not stopping and (stop.asked() or any(map(_failed, self.running))):
                    stopping = True
                    for job in self.running:
                        job.send_signal(signal.SIGTERM)  # to one that has ended it does nothing
                time.sleep(0.05)
            for reader in readers:
                reader.join(timeout=5)
        if asked := stop.asked():
            raise Interrupted(f"stopped by {asked}; {count} jobs saved their places. Run the same command to resume.")
        for k, job in enumerate(self.running):
            if _failed(job):
                raise EunoeError(lines.errors.get(k) or f"job {k + 1} ended with exit code {job.returncode}; why stands above. The others "
                                 "saved their places. Where it was memory, run the same command with --jobs 1.")  # fmt: skip
        for k, job in enumerate(self.running):
            if job.returncode:
                say(f"job {k + 1} ended with {_ending(job.returncode)}: its work is left to the others, or done now")


def _send_to_work(job: subprocess.Popen[bytes]) -> None:
    assert job.stdin is not None
    with suppress(BrokenPipeError):  # it was killed: seen, and said, once the others are done
        job.stdin.write(b"go\n")
        job.stdin.flush()


def _failed(job: subprocess.Popen[bytes]) -> bool:
    """Did it end by an error? One that was killed, or asked to stop (130), did not: its work can be done by the others."""
    return job.poll() is not None and job.returncode > 0 and job.returncode != Interrupted.code


def _start(out: Path, k: int, tracked: bool) -> subprocess.Popen[bytes]:
    """Job ``k``, which finds modules where this process finds them, and in no other place: ``-c`` would add the user's folder."""
    surroundings = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, _NUMBER: str(k), "EUNOE_PROGRESS": "json"}
    surroundings |= {trackers.SENDS: "1"} if tracked else {}
    code = f"import sys; sys.path[:] = {sys.path!r}; from eunoe.worker import main; sys.exit(main(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(out.resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings,
        start_new_session=True,  # Ctrl-C reaches the starting process alone, which hands it on once
    )  # fmt: skip


def _read(pipe: IO[bytes], lines: Lines, k: int) -> None:
    for line in pipe:
        try:
            event = json.loads(line)
            if isinstance(event, dict):
                lines.take(k, event)
        except (ValueError, KeyError, TypeError):
            continue  # something printed it that knows nothing of jobs


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


__all__ = ["Jobs", "alone", "number"]
