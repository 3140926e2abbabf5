"""The cells of a run on a Ray cluster: ``eunoe run R --ray ADDRESS`` (https://docs.ray.io).

A cell becomes one Ray task, with the CPUs that it computes with and the tasks of the cells it needs as dependencies. Ray decides
where and when it runs, and gives it to another process where its process or node is lost; it then resumes from its checkpoints in
the run folder, which all nodes must see. Only the command that started the tasks decides which cells are owed, so this works on
file systems without locks too. Processes on the nodes say how far they are to an actor on this machine (``Desk``), and hear from it
whether to stop: a cell that is stopped saves its place, as in one process.

What travels through Ray's own pickling are strings and numbers: the run folder, the cell's key, the run's fingerprint. Model, text and
results are read from and written to the run folder and the files that the recipe names, by the same code as in one process.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eunoe import stop, trackers
from eunoe.errors import EunoeError, Interrupted
from eunoe.foreign import first_line
from eunoe.progress import Lines, say, say_once, telling

if TYPE_CHECKING:  # torch: the actor, which imports this file, needs none
    from eunoe.cells import Board, Cell, Plan

RETRIES = 5
"""How often Ray starts a cell again whose process or node was lost; each time it resumes from its last checkpoint."""
PATIENCE = 60.0
"""Seconds until what one node wrote must be seen by another (NFS keeps what it knows of a folder for up to a minute), and until a
cell that was asked to stop must have saved its place."""
PASSED_ON = ("EUNOE_CACHE", "EUNOE_SHARED", "HF_HOME", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Variables of this process that hold on the nodes too. No token: what a task is started with stands in Ray's records."""
_SAME = ("eunoe", "torch", "transformers", "tokenizers")
"""Packages whose version must be the same on all nodes, as numbers may depend on it."""
Ended = tuple[str, str]
"""How a task ended: ``done``, ``stopped``, ``failed`` or ``skipped`` (what it needs did not end well); and what is to be said of it."""


# -- connecting -------------------------------------------------------------------------------------------------------
@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The package ``ray``, connected to the cluster at ``address``; ``auto``: the one that was started on this machine.

    A connection that this process already has is used, and stays. Raises ``EunoeError`` where Ray is not installed, where no
    cluster is there, or where this machine is not a node of it.
    """
    if address.startswith("ray://"):
        raise EunoeError(f"--ray is {address!r}, the address of a Ray client, which shares no run folder with the cluster. Give the "
                         "command on a node of the cluster, with --ray auto.")  # fmt: skip
    try:
        import ray
    except ImportError:
        raise EunoeError(
            f"--ray {address} needs the package ray, which is not installed. Install it with: pip install 'eunoe[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _refuse_silent(address)
        # the current folder would come first in the search path of each worker: a file of the user's is not a module of ours
        with chdir(os.sep):
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise EunoeError(f"--ray is {address!r}, but no Ray cluster can be reached there from this machine ({first_line(error)}). Start "
                         "one with `ray start --head`, add machines with `ray start --address HEAD:6379`, and give the command "
                         "on one of them with --ray auto.") from None  # fmt: skip
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in ours.items():  # Ray sets one that ends the process
                signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _refuse_silent(address: str) -> None:
    """Raise ``OSError`` or ``ValueError`` where nothing listens: Ray itself would ask again for minutes, and print each time."""
    if address == "auto":
        last = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes it
        address = os.environ.get("RAY_ADDRESS") or (last.read_text().strip() if last.is_file() else "")
        if address in ("", "auto"):
            return  # Ray looks for its processes
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address!r} is not HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers at {address}: {error.strerror or error}") from None


# -- what a cell takes ------------------------------------------------------------------------------------------------
def placement(nodes: Sequence[Mapping[str, Any]], cpus: int) -> dict[str, int]:
    """``num_cpus`` and ``num_gpus`` of a cell that computes with ``cpus`` threads, by the cluster's ``nodes`` (``ray.nodes()``).

    A GPU where a node with enough CPUs has one: all cells then compute on GPUs, none on CPUs, as bits differ between the two.
    Raises ``EunoeError`` where no node has enough CPUs.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    large = [node for node in resources if node.get("CPU", 0) >= cpus]
    if not large:
        largest = max((node.get("CPU", 0) for node in resources), default=0)
        raise EunoeError(f"a cell computes with {cpus} threads (threads of the recipe) and takes as many CPUs of one node, but the largest "
                         f"of the cluster's {len(resources)} nodes has {largest:g}. Add a node, start them with --num-cpus, or begin "
                         f"another run with --threads {max(1, int(largest))}.")  # fmt: skip
    return {"num_cpus": cpus, "num_gpus": int(any(node.get("GPU", 0) >= 1 for node in large))}


def dependencies(cell: Cell, tasks: Mapping[str, Any]) -> list[Any]:
    """The tasks that must end before that of ``cell`` starts; what it needs and what has no task is done."""
    return [tasks[need] for need in cell.needs if need in tasks]


# -- the process that starts the tasks --------------------------------------------------------------------------------
class Desk:
    """An actor: what the running cells' processes say waits here until the command reads it, and they hear whether to stop."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.reason = ""

    def hear(self, key: str, events: list[dict[str, Any]]) -> str:
        """Take what the process of a cell says; returns why it is to stop, or nothing."""
        self.said += [(key, event) for event in events]
        return self.reason

    def read(self) -> list[tuple[str, dict[str, Any]]]:
        """What was said since this was last asked: the cell's key and an event, see ``progress.Lines``."""
        said, self.said = self.said, []
        return said

    def stop(self, reason: str) -> None:
        """Ask every cell to save its place and end."""
        self.reason = reason


def share(ray: Any, plan: Plan, board: Board, carry_out: Callable[[Path, str, str], None]) -> None:
    """Have every cell that is owed carried out by the cluster; ``carry_out(out, key, run)`` does so on a node.

    Raises ``Interrupted`` when asked to stop (every running cell saved its place), ``EunoeError`` with the first message where a
    cell fails (the others saved their places) or where a node does not see the run folder. However it ends, no task is left.
    """
    tasks = _Tasks(ray, plan, board, carry_out)
    try:
        with Lines(trackers.take) as lines:
            tasks.work(lines)
    except ray.exceptions.RayError as error:
        raise EunoeError(f"the Ray cluster was lost ({first_line(error)}). What is done is kept; run the same command to resume, with "
                         "or without --ray.") from error  # fmt: skip
    finally:
        tasks.end()
    if tasks.bug is not None:
        raise tasks.bug
    if asked := stop.asked():
        raise Interrupted(f"stopped by {asked}; the cells on Ray saved their places. Run the same command to resume, with or without "
                          "--ray.")  # fmt: skip
    if tasks.failures:
        raise EunoeError(tasks.failures[0])


class _Tasks:
    """The tasks of one command. ``running``: task -> the cell's key, for all that have not ended, waiting ones among them."""

    def __init__(self, ray: Any, plan: Plan, board: Board, carry_out: Callable[[Path, str, str], None]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.plan, self.board = ray, plan, board
        options = placement(ray.nodes(), plan.recipe.threads)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # before torch is loaded: see cli.py
        variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        self.made = ray.remote(**options, max_retries=RETRIES, runtime_env={"env_vars": variables})(on_node)
        self.common = (carry_out, self.desk, str(board.out.resolve()), board.run, str(Path.cwd()), versions())
        self.started: dict[str, Any] = {}
        self.running: dict[Any, str] = {}
        self.at_node: dict[str, str] = {}
        """Cells that a process began -> its node."""
        self.failures: list[str] = []
        self.bug: Exception | None = None
        self.stopping = False

    def work(self, lines: Lines) -> None:
        """Until every cell is done, or all that were running have stopped."""
        news = time.monotonic()  # when something last ended, or a cell last began
        look = True
        while True:
            if look and not self.stopping:
                owed = [cell for cell in self.plan.cells(self.board) if not self.board.done(cell)]
                for cell in owed:
                    if cell.key not in self.started:
                        self.start(cell)
                if not owed:
                    return
            if not self.running:
                if self.stopping:
                    return
                if time.monotonic() - news > PATIENCE:
                    raise EunoeError(f"{owed[0].key} was carried out on a node, but {self.board.out} here does not show it. Is it the same "
                                     "folder on all nodes? Put it on a file system that they share.")  # fmt: skip
                time.sleep(0.2)
                continue  # its mark is on the way to this machine
            ended, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0.2)
            for task in ended:
                self.note(task, lines)
            began = self.listen(lines)
            look = bool(ended)
            if ended or began:
                news = time.monotonic()
            if not self.stopping and (stop.asked() or self.failures or self.bug is not None):
                self.ask_to_stop()
                news = time.monotonic()
            if time.monotonic() - news > PATIENCE:
                if self.stopping:
                    return  # on a node that gives no sign: its checkpoints are there
                self.warn_where_no_node_is_large_enough()

    def start(self, cell: Cell) -> None:
        needs = dependencies(cell, self.started)
        task = self.made.options(name=cell.key).remote(*self.common, cell.key, *needs)
        self.started[cell.key], self.running[task] = task, cell.key

    def note(self, task: Any, lines: Lines) -> None:
        """What came of a task that has ended."""
        key = self.running.pop(task)
        lines.drop(key)
        how, text = self.result(task, key)
        if how == "failed":
            self.failures.append(text)

    def result(self, task: Any, key: str) -> Ended:
        exceptions = self.ray.exceptions
        try:
            ended: Ended = self.ray.get(task)
        except exceptions.TaskCancelledError:
            return "stopped", ""
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, ModuleNotFoundError) or "No module named" in str(error):
                lacking = next(line for line in reversed(str(error).splitlines()) if "No module named" in line)
                return "failed", (f"a node of the cluster cannot import what a cell needs ({lacking.strip()}). Install the same eunoe, "
                                  "with the same extras, on every node.")  # fmt: skip
            self.bug = self.bug or error
            return "failed", str(error)
        except exceptions.RayError as error:
            return "failed", (f"{key}: its process was lost {RETRIES + 1} times ({first_line(error)}). Where it was memory, give a cell "
                              "more of a node: a larger --threads in another run, or nodes started with fewer --num-cpus. What is done is "
                              "kept; run the same command to resume.")  # fmt: skip
        return ended

    def listen(self, lines: Lines) -> bool:
        """Show what the processes said; did one begin a cell?"""
        began = False
        for key, event in self.ray.get(self.desk.read.remote()):
            if "began" not in event:
                if key in self.running.values():
                    lines.take(key, event)
                continue
            began = True
            if key in self.at_node and not self.stopping:
                say(f"{key} is resumed on {event['began']}: its process on {self.at_node[key]} was lost")
            self.at_node[key] = event["began"]
        return began

    def ask_to_stop(self) -> None:
        """Those that run save their places; those that wait are taken back."""
        self.stopping = True
        self.ray.get(self.desk.stop.remote(stop.asked() or "an error in another cell"))
        for task, key in self.running.items():
            if key not in self.at_node:
                self.ray.cancel(task)

    def warn_where_no_node_is_large_enough(self) -> None:
        try:
            placement(self.ray.nodes(), self.plan.recipe.threads)
        except EunoeError as error:
            say_once(f"waiting for a node: {error}")

    def end(self) -> None:
        """Leave no task behind, whatever ended the work."""
        for task in self.running:
            with suppress(self.ray.exceptions.RayError):
                self.ray.cancel(task, force=True)
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(self.desk)


# -- on a node --------------------------------------------------------------------------------------------------------
def on_node(
    carry_out: Callable[[Path, str, str], None], desk: Any, out: str, run: str, folder: str, same: str, key: str, *needs: Ended
) -> Ended:  # fmt: skip
    """The task: carry out one cell of the run folder ``out`` in a process of Ray's. ``needs``: how the tasks it depends on ended."""
    if any(how != "done" for how, _ in needs):
        return "skipped", ""
    import ray

    node = ray.util.get_node_ip_address()
    with _at_desk(ray, desk, key, node):
        try:
            stop.check("beginning")
            try:
                os.chdir(folder)  # from where the recipe's relative paths count
            except OSError as error:
                raise EunoeError(f"node {node} does not see the folder {folder}, where the command was given ({error.strerror}). Give "
                                 "it in a folder that all nodes see.") from None  # fmt: skip
            if same != versions():
                raise EunoeError(f"node {node} has {versions()}, but the command runs with {same}: numbers may depend on it. Install "
                                 "the same versions on every node.")  # fmt: skip
            carry_out(Path(out), key, run)
        except Interrupted:
            return "stopped", ""
        except KeyboardInterrupt:  # taken back in the moment it began
            return "stopped", ""
        except EunoeError as error:
            return "failed", str(error)
    return "done", ""


def versions() -> str:
    """The packages that numbers depend on, as this process has them."""
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, " + ", ".join(
        f"{name} {version(name)}" for name in _SAME
    )


@contextmanager
def _at_desk(ray: Any, desk: Any, key: str, node: str) -> Iterator[None]:
    """Within the block what this process says goes to the desk twice a second, and a wish to stop comes from there."""
    said: deque[dict[str, Any]] = deque([{"began": node}])
    over = threading.Event()

    def exchange() -> None:
        reason = ray.get(desk.hear.remote(key, [said.popleft() for _ in range(len(said))]))
        if reason:
            stop.ask(reason)

    def keep_exchanging() -> None:
        while not over.wait(0.5):
            exchange()

    exchange()
    thread = threading.Thread(target=keep_exchanging, daemon=True)
    thread.start()
    try:
        with telling(said.append):
            yield
    finally:
        over.set()
        thread.join()
        exchange()
        stop.ask(None)


__all__ = ["Desk", "connected", "dependencies", "on_node", "placement", "share", "versions"]
