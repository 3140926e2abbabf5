"""SIGINT and SIGTERM at any moment of the command: exit code 130, one line, and the same command ends in the same bytes."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.faults.process import LIMIT, command, end, start
from tests.faults.test_kill import EXEMPT, forks
from tests.tiny_run import state, tiny_recipe

__all__ = ["forks"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
MOMENTS = int(os.environ.get("EUNOE_SIGNALS", "4"))
ARRIVES = """
import importlib, os, signal
def at(module, name, count=1, which=signal.SIGTERM):
    'Send the process a signal when it calls a function for the ``count``-th time.'
    home = importlib.import_module(module)
    real, seen = getattr(home, name), []
    def watched(*args, **kwargs):
        seen.append(1)
        if len(seen) == count:
            os.kill(os.getpid(), which)
        return real(*args, **kwargs)
    setattr(home, name, watched)
"""
COUNTED = """
from multiprocessing.util import Finalize
from pathlib import Path
count = counted(Path("moments"))
count.__enter__()
Finalize(None, count.__exit__, (None, None, None), exitpriority=1)
"""
PLACES = {
    "reading the model": "at('eunoe.models.load', 'load_lm')",
    "reading text": "at('eunoe.material', 'load_blocks', 2)",
    "tokenising labelled rows": "at('eunoe.material', 'load_task')",
    "learning": "at('eunoe.train', '_step', 3)",
    "scoring held-out text": "at('eunoe.plan', 'lm_score')",
    "fine-tuning": "at('eunoe.transfer.phase', 'train')",
    "saving": "at('eunoe.checkpoint', 'save', 2)",
    "writing a cell": "at('eunoe.cells', 'write_mark', 3)",
    "gathering rows": "at('eunoe.engine', '_gather', 2)",
    "writing the report": "at('eunoe.report.page', 'write_report')",
    "marking the end": "at('eunoe.engine', 'mark_finished')",
}  # fmt: skip


IMPORTING = """
import builtins, os, signal
real = builtins.__import__
def seen(name, *rest):
    if name == "eunoe.engine":
        builtins.__import__ = real
        os.kill(os.getpid(), signal.SIGTERM)
    return real(name, *rest)
builtins.__import__ = seen
class Torch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print("torch was imported")
import sys
sys.meta_path.insert(0, Torch())
"""


@dataclass(frozen=True)
class Tiny:
    """A recipe, the words that run it, the folder and the state of its run that nothing disturbed, and how many moments that had."""

    words: list[str]
    folder: Path
    whole: dict[str, str]
    moments: int


@pytest.fixture(scope="module")
def tiny(forks: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("signals")
    recipe = tiny_recipe(
        folder, methods=["cpt"], seeds=[0], evaluation={"blocks": 6, "batch": 8, "base": False},
        training={"block": 16, "batch": 4, "steps": 4, "lr": 0.005, "checkpoint_every": 1},
    )  # fmt: skip
    words = ["run", str(recipe), "--out", "out"]
    ended = end(start(forks, words, folder / "whole", COUNTED), folder / "whole")
    assert ended == (0, "")
    moments = int((folder / "whole" / "moments").read_text())
    return Tiny(words, folder, state(folder / "whole" / "out", EXEMPT), moments)


def assert_stopped(code: int | None, err: str, name: str = "SIGTERM") -> None:
    lines = err.splitlines()
    assert code == 130, err
    assert len(lines) == 1, err
    assert lines[0].startswith(f"eunoe: stopped by {name}")


def test_stopped_at_one_place_after_the_other_it_ends_in_the_same_bytes(forks: ForkServerContext, tiny: Tiny) -> None:
    folder = tiny.folder / "places"
    for place, before in PLACES.items():
        code, err = end(start(forks, tiny.words, folder, f"{ARRIVES}\n{before}"), folder)
        assert_stopped(code, err)
        assert ("already done" in err) == (place == "marking the end"), (place, err)
    assert end(start(forks, tiny.words, folder), folder)[0] == 0
    assert state(folder / "out", EXEMPT) == tiny.whole


def test_a_signal_while_python_imports_the_engine(tiny: Tiny) -> None:
    folder = tiny.folder / "importing"
    folder.mkdir()
    process = command(tiny.words, folder, IMPORTING)
    out, err = process.communicate(timeout=LIMIT)
    assert_stopped(process.returncode, err)
    assert "before it had anything to save" in err
    assert out == ""  # at once: the seconds of the imports were not waited for
    assert not (folder / "out").exists()


def test_signals_at_random_moments_are_never_lost(forks: ForkServerContext, tiny: Tiny) -> None:
    """``EUNOE_SIGNALS`` sets how many (20 is the full trial)."""
    chance = random.Random(5)
    for k in range(MOMENTS):
        folder, which = tiny.folder / f"at{k}", chance.choice([signal.SIGINT, signal.SIGTERM])
        moment = 1 + int(tiny.moments * (k + chance.random()) / MOMENTS)
        before = f"signal_at({moment}, {int(which)})"
        code, err = end(start(forks, tiny.words, folder, before), folder)
        assert_stopped(code, err, which.name)
        assert end(start(forks, tiny.words, folder), folder)[0] == 0  # it may say that the run was finished
        assert state(folder / "out", EXEMPT) == tiny.whole


def test_a_second_signal_ends_it_at_once_and_nothing_is_torn(forks: ForkServerContext, tiny: Tiny) -> None:
    folder = tiny.folder / "twice"
    for place in ("reading text", "learning", "saving"):
        twice = f"{ARRIVES}\ndef both(*args):\n    at(*args, which=2)\n    at(*args, which=2)\n" + PLACES[
            place
        ].replace("at(", "both(")
        code, err = end(start(forks, tiny.words, folder, twice), folder)
        assert (code, err.strip()) == (
            130,
            "eunoe: stopped at once by a second signal. Run the same command to resume.",
        )
    assert end(start(forks, tiny.words, folder), folder) == (0, "")
    assert state(folder / "out", EXEMPT) == tiny.whole


def test_one_that_comes_when_the_program_is_leaving_changes_nothing(tmp_path: Path) -> None:
    late = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
    later = "class Last:\n    def __del__(self, kill=os.kill, own=os.getpid()):\n        kill(own, 2)\nkept = Last()\n"
    process = command(["list", "recipes"], tmp_path, late + later)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (0, "")
    assert "demo" in out


@pytest.mark.parametrize(("words", "place"), [
    (["verify", "out"], "at('eunoe.verify', '_own')"), (["route", "out"], "at('eunoe.route', '_read')"),
    (["report", "out", "--out", "page.html"], "at('eunoe.report.page', 'read_runs')"),
])  # fmt: skip
def test_other_commands_stop_too(words: list[str], place: str, forks: ForkServerContext, tiny: Tiny) -> None:
    folder = tiny.folder / "whole"
    code, err = end(start(forks, words, folder, f"{ARRIVES}\n{place}"), folder)
    assert_stopped(code, err)
    assert "already done" not in err
    assert not (folder / "page.html").exists()
    assert state(folder / "out", EXEMPT) == tiny.whole
