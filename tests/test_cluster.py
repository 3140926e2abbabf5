"""A run on a Ray cluster: the bytes of one process, also where a node is lost in the middle; stopped, and resumed without Ray.

The planning needs no Ray. The rest is skipped where it is not installed: pip install 'eunoe[ray]'.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from eunoe import cli, cluster, engine, progress, stop
from eunoe.cells import Board, Cell
from eunoe.errors import EunoeError, Interrupted
from eunoe.recipe import load_recipe
from tests.faults.process import command, until
from tests.tiny_run import count, state, tiny_recipe, tiny_settings

EXEMPT = ("times.jsonl", "environment.json", "report.html", "finished.json")
"""What says when, with which command and on which machine: the page prints the command too."""
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'eunoe[ray]'")


# -- without Ray ------------------------------------------------------------------------------------------------------
def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_a_cell_takes_its_threads_as_cpus_and_a_gpu_where_a_large_enough_node_has_one() -> None:
    assert cluster.placement([node(CPU=4), node(CPU=2)], 4) == {"num_cpus": 4, "num_gpus": 0}
    assert cluster.placement([node(CPU=1), node(CPU=8, GPU=2)], 2) == {"num_cpus": 2, "num_gpus": 1}
    assert cluster.placement([node(CPU=8), node(CPU=1, GPU=2)], 2) == {"num_cpus": 2, "num_gpus": 0}
    assert cluster.placement([node(CPU=8), node(False, CPU=8, GPU=1)], 8) == {"num_cpus": 8, "num_gpus": 0}


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node(CPU=2), node(CPU=3)], r"computes with 4 threads.*2 nodes has 3\. .*--threads 3"),
        ([node(GPU=1)], r"1 nodes has 0\. .*--threads 1"),
        ([node(False, CPU=8)], r"0 nodes has 0\."),
    ],
)
def test_a_cluster_without_a_node_that_is_large_enough_is_refused(nodes: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(EunoeError, match=said):
        cluster.placement(nodes, 4)


def test_what_a_cell_needs_is_what_its_task_waits_for_and_what_is_done_is_not_waited_for() -> None:
    cells = [Cell("head", (), None, "head"), Cell("a/0", ("head",), None, "a"), Cell("a/1", ("head", "a/0"), None, "a")]
    tasks = {"a/0": "task of a/0"}  # the head was trained before
    assert [cluster.dependencies(cell, tasks) for cell in cells] == [[], [], ["task of a/0"]]


def test_each_cell_of_a_run_comes_after_what_it_needs(tmp_path: Path) -> None:
    """Tasks are started in this order, and one that is not started yet cannot be waited for."""
    settings = load_recipe(tiny_recipe(tmp_path, seeds=[0], methods=["ncl", "cpt", "adapter"]))
    seen: set[str] = set()
    for cell in engine.plan_of(settings).cells(Board(tmp_path / "out", None)):
        assert seen.issuperset(cell.needs), cell
        seen.add(cell.key)
    assert len(seen) > 20


def test_the_desk_keeps_what_is_said_until_it_is_read_and_tells_to_stop() -> None:
    desk = cluster.Desk()
    assert desk.hear("a", [{"say": "one"}, {"say": "two"}]) == ""
    desk.stop("SIGINT")
    assert desk.hear("b", []) == "SIGINT"
    assert desk.read() == [("a", {"say": "one"}), ("a", {"say": "two"})]
    assert desk.read() == []


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        ("Cancelled", ("stopped", "")),
        ("Task", ("failed", r"cannot import .*No module named 'eunoe'.*on every node")),
        ("Lost", ("failed", r"a/0: its process was lost 6 times .*--num-cpus.*run the same command to resume")),
    ],
)
def test_how_a_task_ended_is_said_for_what_it_is(error: str, ended: tuple[str, str]) -> None:
    class LostError(Exception):
        pass

    class TaskError(LostError):
        cause = None

    class CancelledError(LostError):
        pass

    def get(_task: object) -> None:
        raise {
            "Cancelled": CancelledError(),
            "Task": TaskError("in a worker:\nModuleNotFoundError: No module named 'eunoe'"),
            "Lost": LostError("gone"),
        }[error]

    tasks = object.__new__(cluster._Tasks)
    exceptions = SimpleNamespace(TaskCancelledError=CancelledError, RayTaskError=TaskError, RayError=LostError)
    tasks.ray, tasks.bug = SimpleNamespace(get=get, exceptions=exceptions), None
    how, text = tasks.result("task", "a/0")
    assert how == ended[0]
    assert re.search(ended[1], text)
    assert tasks.bug is None  # nothing of ours


def test_within_telling_a_process_says_nothing_on_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[dict[str, Any]] = []
    with progress.telling(heard.append), progress.Bar("sport", 2) as bar:
        progress.say("a line")
        bar.advance(8)
    progress.tell({"say": "to stdout again"})
    assert [event.get("say", event.get("name")) for event in heard] == ["a line", "sport"]
    assert capfd.readouterr() == ('{"say": "to stdout again"}\n', "")


def test_a_process_that_is_asked_to_stop_by_another_stops_as_by_a_signal() -> None:
    stop.ask("SIGTERM")
    with pytest.raises(Interrupted, match="stopped by SIGTERM while learning"):
        stop.check("learning")
    stop.ask(None)
    stop.check("learning")


def test_without_ray_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    file = tiny_recipe(tmp_path, seeds=[0], methods=["ncl"])
    capsys.readouterr()
    assert cli.main(["run", str(file), "--out", str(tmp_path / "out"), "--ray", "auto"]) == 2
    assert capsys.readouterr().err == (
        "eunoe: --ray auto needs the package ray, which is not installed. Install it with: pip install 'eunoe[ray]'\n"
    )
    assert not (tmp_path / "out").exists()  # said before anything was read


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--jobs", "2"], "--jobs is 2, but with --ray"),
        ([], "address of a Ray client"),
        (["--jobs", "x"], "--jobs is 'x'"),
    ],
)
def test_what_does_not_go_with_ray_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EUNOE_JOBS", "3")  # what is always wished for does not count here
    file = tiny_recipe(tmp_path, seeds=[0], methods=["ncl"])
    assert cli.main(["run", str(file), "--out", str(tmp_path / "out"), "--ray", "ray://head:10001", *words]) == 2
    assert said in capsys.readouterr().err


def test_torchrun_and_ray_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    file = tiny_recipe(tmp_path, seeds=[0], methods=["ncl"])
    assert cli.main(["run", str(file), "--out", str(tmp_path / "out"), "--ray", "auto"]) == 2
    assert "Leave --ray out, or start without torchrun" in capsys.readouterr().err


# -- one cell of a run, as a node carries it out ------------------------------------------------------------------------
def carried_out(folder: Path, methods: list[str], steps: int) -> dict[str, str]:
    """A recipe, ``folder/tiny.yaml``, and its run by one process in ``folder/one/out``; returns the run's state."""
    tiny_recipe(
        folder, seeds=[0], methods=methods, evaluation={"blocks": 6, "batch": 8, "base": False, "matrix": "ends"},
        training={"block": 16, "batch": 4, "steps": steps, "lr": 0.005, "checkpoint_every": 2},
    )  # fmt: skip
    (folder / "one").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "one")
        engine.run(load_recipe("../tiny.yaml"), "out", "x")
    return state(folder / "one" / "out", EXEMPT)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder and the state of a short run."""
    folder = tmp_path_factory.mktemp("short")
    return folder, carried_out(folder, ["ncl"], 2)


def begun(home: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the run with no cell done, and its fingerprint."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("recipe.yaml", "texts.json"):
        (out / name).write_bytes((home / "one" / "out" / name).read_bytes())
    return out, engine.fingerprint(out)


def test_a_cell_that_another_process_keeps_locked_is_carried_out_once_it_ends_or_patience_does(
    one: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, whole = one
    monkeypatch.chdir(home / "one")
    out, run = begun(home, tmp_path)
    key = "sequences/ncl.given.seed0/domains/0-sport"
    monkeypatch.setattr(cluster, "PATIENCE", 0.2)
    with engine._locked(out, key) as locked:
        assert locked
        engine.join_cell(out, key, run)
    assert "is locked by a process that gives no sign" in capsys.readouterr().err
    made = state(out)
    assert {name for name in whole if name.startswith(key)} == {name for name in made if name.startswith(key)}
    assert all(whole[name] == made[name] for name in made if name.startswith(key))
    with pytest.raises(EunoeError, match=r"does not see in .* what .*publish needs"):
        engine.join_cell(out, "sequences/ncl.given.seed0/publish", run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("none", "does not see the run folder"),
        ("other", "sees another run in"),
        ("text", r"machine .*, which sees the run folder: what .* was begun with is no longer the same: sport"),
    ],
)
def test_a_node_that_sees_something_else_says_so(
    one: tuple[Path, dict[str, str]], change: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = one
    monkeypatch.chdir(home / "one")
    monkeypatch.setattr(engine, "SEEN", 0.1)
    out, run = begun(home, tmp_path)
    if change == "none":
        (out / "recipe.yaml").unlink()
    if change == "other":
        run = "0" * 32
    if change == "text":
        texts = (out / "texts.json").read_text()
        (out / "texts.json").write_text(re.sub(r'("sport[^"]*": ")\w\w', r"\1zz", texts))
        run = engine.fingerprint(out)
    with pytest.raises(EunoeError, match=said):
        engine.join_cell(out, "sequences/ncl.given.seed0/domains/0-sport", run)


# -- with Ray ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def whole(home: Path) -> dict[str, str]:
    """The state of a run that is long enough to lose a node in, by one process; its recipe is ``home/tiny.yaml``."""
    return carried_out(home, ["ncl", "cpt"], 30)


class Nodes:
    """A cluster of this machine: a head and a second node, of one CPU each."""

    def __init__(self, head_cpus: int = 1) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False})
        self.second = self.cluster.add_node(num_cpus=1)
        self.address = str(self.cluster.address)

    def cells_of_second(self) -> list[str]:
        """The cells that run on the second node: Ray names each process by its task."""
        [raylet] = self.second.all_processes["raylet"]
        names = []
        for child in psutil.Process(raylet.process.pid).children(recursive=True):
            try:
                names += [word for word in child.cmdline()[:1] if word.startswith(("ray::sequences", "ray::cells"))]
            except psutil.Error:
                continue
        return names

    def lose_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.cluster.shutdown()


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what stands on stderr, but for lines of progress."""
    _, err = process.communicate(timeout=240)
    return process.returncode, "".join(re.findall(r"^(?!.*: step \d+/\d+ ).*\n?", err, re.MULTILINE))


@needs_ray
def test_a_node_is_lost_in_mid_grid_and_the_grid_completes_to_the_same_bytes(
    home: Path, whole: dict[str, str], nodes: Nodes
) -> None:
    folder = home / "lost"
    folder.mkdir()
    (folder / "random.py").write_text("raise SystemExit('a file of the user is not a module of ours')\n")
    # as the command is installed: without the current folder in its search path
    own = "import sys\nsys.path[:] = filter(None, sys.path)"
    process = command(["run", "../tiny.yaml", "--out", "out", "--ray", nodes.address], folder, own)
    learning: list[str] = []

    def in_the_middle() -> bool:
        learning[:] = [name for name in nodes.cells_of_second() if "/domains/" in name]
        key = learning[0].removeprefix("ray::") if learning else "none"
        return process.poll() is not None or any((folder / "out" / key / "steps").glob("step-*"))

    until(in_the_middle)
    nodes.lose_second()
    code, err = said(process)
    assert code == 0, err
    assert learning, err
    key = learning[0].removeprefix("ray::")
    assert f"{key} is resumed on" in err, err
    assert state(folder / "out", EXEMPT) == whole


@needs_ray
def test_stopped_on_ray_it_saves_its_places_and_resumes_with_and_without_ray(
    home: Path, whole: dict[str, str], nodes: Nodes
) -> None:
    folder, words = home / "stopped", ["run", "../tiny.yaml", "--out", "out"]
    folder.mkdir()
    for which in (signal.SIGINT, signal.SIGTERM):
        before = count(folder / "out", "cell.json")
        process = command([*words, "--ray", nodes.address], folder)
        until(
            lambda before=before, process=process: (
                count(folder / "out", "cell.json") > before + 1 or process.poll() is not None
            )
        )  # type: ignore[misc]
        began = time.monotonic()
        process.send_signal(which)
        assert said(process) == (
            130,
            f"eunoe: stopped by {which.name}; the cells on Ray saved their places. Run the same command to resume, with or without "
            "--ray.\n",
        )
        assert time.monotonic() - began < 30
        assert not list((folder / "out").rglob("*.partial"))
        until(lambda: not nodes.cells_of_second())
    assert said(command(words, folder)) == (0, "")
    assert state(folder / "out", EXEMPT) == whole
    # nothing is left to do: no cluster is asked for
    assert "is finished" in said(command([*words, "--ray", "127.0.0.1:1"], folder))[1]


@needs_ray
def test_a_study_with_a_search_and_an_error_in_one_cell(tmp_path: Path, nodes: Nodes) -> None:
    settings = tiny_settings(tmp_path)
    tasks = [
        {"name": d["name"], **{k: f"../{Path(d['task'][k]).name}" for k in ("train", "test")}}
        for d in settings["domains"]
    ]
    system = {"name": "finetune", "epochs": 2, "batch": 8, "max_length": 32, "grid": {"lr": [0.0001, 0.002]}}
    study = {
        "name": "study", "model": {"name": f"../{Path(settings['model']['name']).name}"}, "tasks": tasks, "seeds": [0, 1],
        "search": {"seed": 7}, "systems": {"adamw": system},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    states = []
    for name, more in (("one", []), ("ray", ["--ray", nodes.address])):
        folder = tmp_path / name
        folder.mkdir()
        assert said(command(["run", "../study.yaml", "--out", "out", *more], folder)) == (0, "")
        states.append(state(folder / "out", EXEMPT))
    assert states[0] == states[1]
    assert sum(name.endswith("cell.json") for name in states[0]) == 2 * (2 + 2)

    study["systems"] = {"adamw": {**system, "grid": {"lr": [0.002, 1e30]}, "clip": None}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    folder = tmp_path / "bad"
    folder.mkdir()
    code, err = said(command(["run", "../study.yaml", "--out", "out", "--ray", nodes.address], folder))
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert err.startswith("eunoe: the loss is ")


@needs_ray
def test_what_the_cluster_lacks_is_said_in_one_line(
    one: tuple[Path, dict[str, str]], tmp_path: Path, nodes: Nodes
) -> None:
    words = ["run", str(one[0] / "tiny.yaml"), "--out", str(tmp_path / "out")]
    code, err = said(command([*words, "--ray", "127.0.0.1:1"], tmp_path))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "no Ray cluster can be reached there" in err
    code, err = said(command([*words, "--ray", nodes.address, "--threads", "2"], tmp_path))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "computes with 2 threads" in err
    assert "2 nodes has 1" in err
