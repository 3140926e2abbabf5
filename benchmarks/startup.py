"""How soon the command answers: ``import eunoe`` and ``eunoe --help``, whole processes less a bare interpreter's start.

The peer is ``import transformers`` (which imports lazily too); the limit is the bare interpreter.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median


def _seconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    cases = {
        "bare interpreter": ("-c", "pass"),
        "import eunoe": ("-c", "import eunoe"),
        "eunoe --help": ("-m", "eunoe.cli", "--help"),
        "import transformers": ("-c", "import transformers"),
    }
    seconds = {name: median(_seconds(*words) for _ in range(9)) for name, words in cases.items()}
    bare = seconds["bare interpreter"]
    for name, value in seconds.items():
        print(f"{name}: {value * 1000:.0f} ms, {1000 * (value - bare):.0f} ms above a bare interpreter")
