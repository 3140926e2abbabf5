"""The run folder: whose it is, what made it, what is done in it, when it is finished. Runs over domains and studies share it.

recipe.yaml (as resolved) says whose folder it is, texts.json what model and text it reads, environment.json what its numbers may
depend on, times.jsonl how long things took (it differs from run to run), finished.json that nothing is owed any more.

Work is cut into cells, each with a folder of its own. ``cell.json`` is written last and means done: it names the run, the cell,
the SHA-256 of the cell's files, and the marks of the cells it needed. So a file that was damaged, or put in place from another
run, is noticed, and so is all that was computed from something that is no longer there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from eunoe import stop
from eunoe.atomic import write_text
from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.methods import METHODS
from eunoe.progress import say, say_once
from eunoe.recipe import Recipe, Study, read_yaml, same_run, to_yaml

_FIRST = (".lock", ".locks", "recipe.yaml.partial")
"""What a kill in a run's first moment leaves behind."""
FORMAT = 2
"""Of texts.json and cell.json; folders of before 0.2 have neither."""


# -- whose it is ----------------------------------------------------------------------------------------------------
def refuse_other(recipe: Any, out: Path, resolve: Callable[[Any], Any]) -> None:
    """Raises if the folder holds the run of another recipe (saying what differs), or things that are not a run.

    ``resolve``: see ``recipe.same_run``.
    """
    if (out / "recipe.yaml").is_file():
        differing = same_run(out, recipe, resolve)
        if differing:
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise EunoeError(f"{out} belongs to another recipe: {'; '.join(differing[:5])}{more}. Choose another --out, or "
                             "give the settings it was begun with.")  # fmt: skip
    elif out.exists() and (not out.is_dir() or any(p.name not in _FIRST for p in out.iterdir())):
        raise EunoeError(f"{out} exists and is not a run folder. Choose another --out, or empty it.")


@contextmanager
def claimed(
    recipe: Any, out: Path, command: str, reads: Mapping[str, str], resolve: Callable[[Any], Any], shared: bool
) -> Iterator[str]:
    """The folder with its recipe, environment and what it reads: ``shared`` with others of the same recipe, or alone.

    ``reads``: name -> SHA-256 of what the run reads. Everything is compared under the lock, so of two starts that meet one
    is refused. Yields the run's fingerprint, which stands in every checkpoint and cell. Raises ``EunoeError`` if the folder
    cannot be written, belongs to another recipe, read other text or weights, or another process has it for itself.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "a")  # noqa: SIM115 - held for the whole run
    except OSError as error:
        raise EunoeError(f"{out} cannot be written: {error.strerror or error}. Choose another --out.") from None
    with lock:
        # whoever is alone writes the folder's own files; those that share it find them there
        alone = try_lock(lock)
        if not alone and (not shared or not _wait_for_share(lock)):
            raise EunoeError(f"another process is running in {out}. Wait for it, or choose another --out.")
        refuse_other(recipe, out, resolve)
        if alone:
            if not (out / "recipe.yaml").is_file():
                write_text(out / "recipe.yaml", to_yaml(recipe))
            if not (out / "environment.json").is_file():
                write_text(out / "environment.json", json.dumps(environment(command, recipe), indent=1) + "\n")
            _say_other_packages(out, recipe)
        if alone:
            _note_reads(out, reads)
        refuse_other_reads(out, reads)
        if alone and shared:
            with suppress(OSError):  # no locks here: ``try_lock`` said so
                fcntl.flock(lock, fcntl.LOCK_SH)
        yield fingerprint(out)
        if try_lock(lock):  # the last one here
            shutil.rmtree(out / ".locks", ignore_errors=True)


def _note_reads(out: Path, reads: Mapping[str, str]) -> None:
    """texts.json, where there is none or a damaged one."""
    kept, file = begun_with(out), out / "texts.json"
    if kept is None:
        if file.exists():
            say(f"{file} is damaged: it is made again")
        begun = any((out / name).exists() for name in ("sequences", "cells", "head", "rows.jsonl"))
        kept = {"format": "1"} if begun and not has_marks(out) else {"format": str(FORMAT), **reads}
        write_text(file, json.dumps(kept, indent=1) + "\n")


def refuse_other_reads(out: Path, reads: Mapping[str, str]) -> None:
    """Raises if a run would read something else than texts.json says that it began with."""
    kept = begun_with(out)
    if kept is None:
        return
    if kept.get("format") != str(FORMAT):
        say(f"{out} was begun by an earlier version of eunoe, which names texts and weights in another way: whether they are still "
            "the same cannot be checked.")  # fmt: skip
        return
    changed = [name for name, digest in reads.items() if kept.get(name, digest) != digest]
    if changed:
        raise EunoeError(f"what {out} was begun with is no longer the same: {', '.join(map(visible, changed))}. The files have changed "
                         "since. Put the old ones back, or choose another --out.")  # fmt: skip


def begun_with(out: Path) -> dict[str, str] | None:
    """What texts.json says that the run began with: its ``format``, and name -> SHA-256; None where it is missing or damaged."""
    try:
        kept = json.loads((out / "texts.json").read_text(encoding="utf-8"))
        return {str(name): str(sha) for name, sha in kept.items()} or None
    except Exception:  # a damaged file can raise anything
        return None


def has_marks(out: Path) -> bool:
    """Does anything in the folder say whose it is (a cell's mark, a checkpoint with an identity)?"""
    return any(out.rglob("cell.json")) or any(b'"identity"' in file.read_bytes() for file in out.rglob("manifest.json"))


def says_whose(out: Path) -> bool:
    """Must the folder's checkpoints and cells say whose they are? Not where a version before 0.2 began the run.

    Raises ``EunoeError`` if texts.json, which says that, was damaged.
    """
    kept = begun_with(out)
    if kept is None and has_marks(out):
        raise EunoeError(f"{out / 'texts.json'} is missing or damaged, so it cannot be checked whose the files of {out} are. Run the same "
                         f"command again, which makes it again: eunoe run {out / 'recipe.yaml'} --out {out}")  # fmt: skip
    return kept is not None and kept.get("format") == str(FORMAT)


def fingerprint(out: Path) -> str:
    """What names a run in its checkpoints and cells: its recipe, as it was begun with, and what it reads.

    Raises ``EunoeError`` where recipe.yaml cannot be read.
    """
    recipe = read_yaml(out / "recipe.yaml")
    if isinstance(recipe, dict):
        recipe.pop("trackers", None)  # who watches a run does not make it another
    began = {"recipe": recipe, "reads": begun_with(out)}
    return hashlib.sha256(json.dumps(began, sort_keys=True, default=str).encode()).hexdigest()[:32]


def try_lock(lock: TextIO) -> bool:
    """Take a file's lock for this process alone, if it is free. A file system that has no locks lets everyone pass, and says so."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        say_once(
            f"the file system of {lock.name} has no locks ({error.strerror}): take care that no other process runs there."
        )
    return True


def has_locks(out: Path) -> bool:
    """Does the folder's file system have locks? Without them processes cannot share the work."""
    try:
        with open(out / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _wait_for_share(lock: TextIO, seconds: float = 10) -> bool:
    """Share the lock; who writes the recipe has it alone for a moment, who runs alone for long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            stop.check("waiting for another process")
            time.sleep(0.05)
        else:
            return True
    return False


# -- cells ----------------------------------------------------------------------------------------------------------
def write_mark(out: Path, run: str, key: str, needs: Mapping[str, str], files: Sequence[str]) -> None:
    """``cell.json``: the cell is done. ``needs``: key -> SHA-256 of the mark of a cell it was computed from.

    ``files``: what the cell left, as paths from the run's folder ``out``.
    """
    hashes = {name: file_hash(out / name) for name in files}
    mark = {"format": FORMAT, "run": run, "cell": key, "needs": dict(needs), "sha256": hashes}
    write_text(out / key / "cell.json", json.dumps(mark, indent=1, sort_keys=True) + "\n")


def read_mark(out: Path, run: str | None, key: str) -> tuple[str, dict[str, str]] | None:
    """The SHA-256 of a cell's mark, and of the marks it was computed from; None where it is not done, or its files were damaged.

    Raises ``EunoeError`` where the mark is of another run (``run`` None: any) or cell.
    """
    file = out / key / "cell.json"
    try:
        data = file.read_bytes()
        mark = json.loads(data)
        own, cell, needs, hashes = str(mark["run"]), str(mark["cell"]), dict(mark["needs"]), dict(mark["sha256"])
        safe = not any(Path(name).is_absolute() or ".." in Path(name).parts for name in hashes)
    except FileNotFoundError:
        return None
    except Exception:  # damaged: the cell is made again
        safe = False
    if not safe:
        say_once(f"{file} is damaged: that piece of work counts as not done.")
        return None
    if cell != key or own != (run or own):
        raise EunoeError(f"{out / key} belongs to another run or place (run {visible(own)}, cell {visible(cell)}; here it is run {run}, "
                         f"cell {key}). Put back what was there, or delete the folder: the same command makes it again.")  # fmt: skip
    # looked at every time: a file may be lost or edited after its mark was written
    for name, expected in hashes.items():
        if file_hash(out / name) != expected:
            say_once(f"{out / name} is missing or was changed: that piece of work counts as not done.")
            return None
    return hashlib.sha256(data).hexdigest(), {str(k): str(v) for k, v in needs.items()}


def recorded(out: Path, key: str) -> dict[str, str]:
    """The SHA-256 of a cell's files as its mark says, by path from the run's folder; {} where no mark can be read."""
    try:
        return {
            str(name): str(sha) for name, sha in json.loads((out / key / "cell.json").read_bytes())["sha256"].items()
        }
    except Exception:  # not there, or damaged
        return {}


def file_hash(file: Path) -> str:
    """SHA-256 of a file; of one that cannot be read a word that is no hash."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except (OSError, ValueError):  # a name that no file can have
        return "missing"


# -- when it is finished --------------------------------------------------------------------------------------------
def finished(out: Path) -> bool:
    """Everything the recipe owes is there, and what was made from the rows is as it was made."""
    kept = _finished(out)
    if kept is None:
        return False
    if kept["rows_sha256"] != rows_hash(out) or not (out / "report.html").is_file():
        return False
    return all(file_hash(out / name) == sha for name, sha in kept["sha256"].items())


def was_finished(out: Path) -> bool:
    """Was everything there once? (Something may have been damaged since.)"""
    return _finished(out) is not None


def _finished(out: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads((out / "finished.json").read_text(encoding="utf-8"))
        return {
            "rows_sha256": str(kept["rows_sha256"]),
            "sha256": {str(k): str(v) for k, v in kept.get("sha256", {}).items()},
        }
    except Exception:  # not there, or damaged: it is looked at again what is owed
        return None


def mark_finished(out: Path, files: Sequence[str]) -> None:
    """``files``: what was made from the rows."""
    hashes = {name: file_hash(out / name) for name in files if (out / name).is_file()}
    write_text(out / "finished.json", json.dumps({"rows_sha256": rows_hash(out), "sha256": hashes}) + "\n")


def rows_hash(out: Path) -> str:
    file = out / "rows.jsonl"
    return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()


# -- beside it ------------------------------------------------------------------------------------------------------
def environment(command: str, recipe: Recipe | Study) -> dict[str, Any]:
    """Versions and machine facts that the numbers may depend on, and the command; of a method that a package brings, whose it is."""
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
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", **_packages(recipe),
    }  # fmt: skip


def _packages(recipe: Recipe | Study) -> dict[str, str]:
    """``method NAME`` -> the installed package and version that bring it, for the recipe's methods that are not eunoe's own."""
    chosen = [method["name"] for method in recipe.methods] if isinstance(recipe, Recipe) else []
    names = [name for one in chosen for name in ([one] if isinstance(one, str) else one)]
    return {f"method {name}": METHODS[name].package for name in names if METHODS[name].package}


def _say_other_packages(out: Path, recipe: Recipe | Study) -> None:
    """A warning where a resumed run takes a method from another version of a package than it began with."""
    now = _packages(recipe)
    if not now:
        return
    with reading(out / "environment.json", "Restore it from a copy, or delete it."):
        was = dict(json.loads((out / "environment.json").read_text(encoding="utf-8")))
    for method, package in now.items():
        if was.get(method) not in (None, package):
            say(f"warning: {out} was begun with the {method} of {visible(was[method])}; it is now of {package}, which may learn in "
                "another way.")  # fmt: skip


def note_time(out: Path, what: str, seconds: float, tokens: int) -> None:
    """One line in times.jsonl: for people, and for no number that is reported as a result."""
    line = json.dumps({"what": what, "seconds": round(seconds, 3), "tokens": tokens})
    with open(out / "times.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")


def derived_seed(seed: int, *parts: str) -> int:
    """A seed for one part of a run, from the run's seed and the part's name: independent of what ran before."""
    return int.from_bytes(hashlib.sha256("/".join([str(seed), *parts]).encode()).digest()[:6], "big")
