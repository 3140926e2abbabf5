"""What sharing the work brings: the demo's recipe by ``--jobs auto`` (a process a core, one thread each) against one process with a
thread a core.

Both ways are the whole command, from starting Python to the report, in turn, each in a folder and with a cache of its own; a round takes
about four minutes. The limit is the number of cores: work that is divided without loss, against a process to which more threads bring
nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.measure import ratio
from eunoe.engine import cores

RECIPE = ("demo",)
ROUNDS = 3
AIM = 1.3


def seconds(*words: str) -> float:
    """How long ``eunoe run WORDS`` takes, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        surroundings = {**os.environ, "EUNOE_CACHE": str(Path(folder) / "cache"), "EUNOE_QUIET": "1"}
        for name in ("EUNOE_JOBS", "OMP_NUM_THREADS"):  # they would decide for both
            surroundings.pop(name, None)
        command = [sys.executable, "-m", "eunoe.cli", "run", *words, "--out", str(Path(folder) / "out")]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=surroundings)
        return time.perf_counter() - began


def main() -> None:
    ways = ((*RECIPE, "--jobs", "1", "--threads", str(cores())), (*RECIPE, "--jobs", "auto"))
    rounds = []
    for _ in range(ROUNDS):
        rounds.append([seconds(*way) for way in ways])
        print("a round: {:.0f} s by one process, {:.0f} s by jobs".format(*rounds[-1]), flush=True)
    alone, shared = zip(*rounds, strict=True)
    print(f"the demo, {cores()} cores: one process with {cores()} threads {median(alone):.0f} s, "
          f"--jobs auto {median(shared):.0f} s: {ratio(list(alone), list(shared))}, aim {AIM} x, limit {cores()} x; load of the machine "
          f"before and during it {os.getloadavg()[2]:.1f} over 15 minutes, of which about {cores()} is ours")  # fmt: skip
