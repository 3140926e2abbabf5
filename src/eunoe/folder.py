"""The run folder: whose it is, what made it, when it is finished. Domains' runs and fine-tuning studies share it.

recipe.yaml (as resolved) says whose folder it is, environment.json what its numbers may depend on, times.jsonl how long
things took (it differs from run to run), finished.json that nothing is owed any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from eunoe.atomic import write_text
from eunoe.errors import EunoeError
from eunoe.recipe import same_run, to_yaml

_FIRST = (".lock", "recipe.yaml.partial")
"""What a kill in a run's first moment leaves behind."""


def refuse_other(recipe: Any, out: Path, resolve: Callable[[Any], Any]) -> None:
    """Raises if the folder holds the run of another recipe (saying what differs), or things that are no run.

    ``resolve``: see ``recipe.same_run``.
    """
    if (out / "recipe.yaml").is_file():
        found = same_run(out, recipe, resolve)
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise EunoeError(f"{out} belongs to another recipe: {'; '.join(found[:5])}{more}. Choose another --out, or "
                             "give the settings it was begun with.")  # fmt: skip
    elif out.exists() and (not out.is_dir() or any(p.name not in _FIRST for p in out.iterdir())):
        raise EunoeError(f"{out} exists and is no run folder. Choose another --out, or empty it.")


def finished(out: Path) -> bool:
    """Everything the recipe owes is there and the report was made from these rows."""
    mark = out / "finished.json"
    if not mark.is_file() or not (out / "report.html").is_file():
        return False
    return bool(json.loads(mark.read_text(encoding="utf-8"))["rows_sha256"] == rows_hash(out))


def mark_finished(out: Path) -> None:
    write_text(out / "finished.json", json.dumps({"rows_sha256": rows_hash(out)}) + "\n")


def rows_hash(out: Path) -> str:
    file = out / "rows.jsonl"
    return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()


@contextmanager
def claimed(recipe: Any, out: Path, command: str, shared: bool = False) -> Iterator[None]:
    """The folder with its recipe and environment: for this process alone, or ``shared`` with others of the same recipe.

    Raises ``EunoeError`` if it cannot be written, or another process has it for itself.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "a")  # noqa: SIM115 - held for the whole run
    except OSError as error:
        raise EunoeError(f"{out} cannot be written: {error.strerror or error}. Choose another --out.") from None
    with lock:
        first = _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not first and not shared:
            raise EunoeError(f"another process is at work in {out}. Wait for it, or choose another --out.")
        if first:
            write_text(out / "recipe.yaml", to_yaml(recipe))
            if not (out / "environment.json").is_file():
                write_text(out / "environment.json", json.dumps(environment(command), indent=1) + "\n")
        if shared:
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits for the one that writes the recipe
        yield


def _lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind)
    except OSError:
        return False
    return True


def environment(command: str) -> dict[str, Any]:
    """Versions and machine facts that the numbers may depend on, and the command."""
    packages = (
        "eunoe",
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "tokenizers",
        "safetensors",
        "scikit-learn",
        "numpy",
    )
    return {
        "command": command, "python": platform.python_version(), **{name: version(name) for name in packages},
        "machine": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }  # fmt: skip


def note_time(out: Path, what: str, seconds: float, tokens: int) -> None:
    """One line in times.jsonl: for people, and for no number that is reported as a result."""
    line = json.dumps({"what": what, "seconds": round(seconds, 3), "tokens": tokens})
    with open(out / "times.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")


def derived_seed(seed: int, *parts: str) -> int:
    """A seed for one part of a run, from the run's seed and the part's name: independent of what ran before."""
    return int.from_bytes(hashlib.sha256("/".join([str(seed), *parts]).encode()).digest()[:6], "big")
