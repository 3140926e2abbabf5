"""The most memory of a process that learns the four domains of ``methods_small`` with each method, in MB, as lines ``method,MB``.

A process of its own for each (one thread of work, bfloat16, six steps a domain, no end tasks): what Linux calls its resident set, the
embedded model, torch and mapped files included. Needs ``EUNOE_SHARED``; takes about a minute a method.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError
from eunoe.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "methods_small.yaml"
SHORT = {"seeds": [2021], "training.steps": 6, "domains.*.task": None, "evaluation.blocks": 8}


def peak(method: Any, out: Path) -> int:
    """MB of a run with this method alone."""
    given = [word for key, value in (SHORT | {"methods": [method]}).items() for word in (f"--{key}", json.dumps(value))]
    words = [sys.executable, "-m", "eunoe.cli", "run", str(RECIPE), *given, "--jobs", "1", "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise EunoeError(f"{method}: {said.strip()}")
    return used.ru_maxrss // 1024


def main() -> None:
    recipe: Any = load_recipe(RECIPE)
    for method in recipe.methods:
        options = {"name": method} if isinstance(method, str) else dict(method)
        label = options.get("label", options["name"])
        if label not in ("none", "adapter"):  # they learn nothing
            with tempfile.TemporaryDirectory() as folder:
                print(f"{label},{peak(options, Path(folder) / 'run')}", flush=True)
