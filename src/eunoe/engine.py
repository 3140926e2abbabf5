"""Carries out cells: whose turn it is, what is done, what they left. Runs over domains and fine-tuning studies go the same way.

Processes that work on one folder share its cells by locks that die with their owner; each takes the next cell that is ready
and that nobody is at. rows.jsonl is gathered from the cells in the plan's order, so it is the same bytes whoever did what, and
however often one was killed. How many threads a cell computes with is a key of the recipe, so jobs change no bit.

``--ray`` gives the cells to a cluster (cluster.py): whose turn it is Ray decides, the rest is the same.

Under ``torchrun`` the batches of post-training are divided between the processes (ranks.py); they walk through the cells together.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from eunoe import checkpoint, cluster, ranks, stop, trackers
from eunoe.atomic import write_text
from eunoe.cells import Board, Cell, Plan
from eunoe.errors import EunoeError, Interrupted
from eunoe.folder import (
    begun_with,
    claimed,
    fingerprint,
    finished,
    has_locks,
    has_marks,
    mark_finished,
    refuse_other,
    refuse_other_reads,
    try_lock,
)
from eunoe.jobs import Jobs, alone, number
from eunoe.models.load import clear_shelf
from eunoe.plan import resolve
from eunoe.precision import written_out
from eunoe.progress import say
from eunoe.recipe import Recipe, Study, as_path, load_recipe, recipe_of_run, refuse_inside
from eunoe.study import fill_constant, resolve_study

T = TypeVar("T")
_ROWS = "rows.jsonl"
"""Whose lock is that of the rows and of what is made from them."""
SMALL = 100_000_000
"""Models below this many weights compute with one thread a cell: two such processes do more than one with two threads."""


def plan_of(recipe: Recipe | Study, out: Path | None = None) -> Plan:
    """A recipe made ready, whichever kind it is; raises ``EunoeError`` for what the recipe alone gets wrong.

    ``precision: auto`` is written out: as the run folder ``out`` has it, if it was begun, else as this machine does. Of several
    processes of a launcher the first one says it for all: two precisions in one step would be neither.
    """
    plan = _made_ready(recipe)
    plan.refuse_ranks()
    written = ranks.decide(lambda: _precision_written_out(plan.recipe, out))
    return plan if written == plan.recipe else _made_ready(written)


def _precision_written_out(resolved: Any, out: Path | None) -> Any:
    begun = out is not None and (out / "recipe.yaml").is_file()
    return written_out(resolved, _made_ready(recipe_of_run(out)).recipe if out is not None and begun else None)


def load_plan(out: Path) -> Plan:
    """The plan of a run folder, from its recipe.yaml; raises ``EunoeError`` if there is none, or if it is damaged."""
    return plan_of(recipe_of_run(out), out)


def _made_ready(recipe: Recipe | Study) -> Plan:
    return resolve_study(recipe) if isinstance(recipe, Study) else resolve(recipe)


def _as_begun(recipe: Recipe | Study) -> Any:
    """The resolved recipe of a folder; one of an earlier version may hold ``precision: auto``."""
    resolved = _made_ready(recipe).recipe
    return written_out(resolved, resolved)


def run(
    recipe: Recipe | Study | str | Path, out: Path | str | None = None, command: str = "", *,
    jobs: int | Literal["auto"] = 1, ray: str | None = None, relearn: bool = False, fill: bool = False,
) -> Path:  # fmt: skip
    """Carry out ``recipe`` in the folder ``out`` (default ``runs/NAME``; made if needed), or resume it; returns the path of its report.

    ``jobs``: processes on this machine that share the work; ``auto``: one a core for models below 100M weights, else one.
    ``ray``: the address of a Ray cluster that does the work, or ``auto`` for the one started on this machine (cluster.py).
    ``relearn``: states of stages that are damaged are deleted and learnt again. ``fill``: where test rows are answered,
    submission.zip also answers the tasks that the study lacks, with a constant.
    Raises ``EunoeError`` for anything the user can fix, ``Interrupted`` when asked to stop (place saved).
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    out = Path("runs") / recipe.name if out is None else as_path(out, "out")
    with stop.watching(), _same_threads_after(), _one_line_where_a_process_is_lost(), ExitStack() as contexts:
        stop.check("starting")  # torch and transformers are imported by now, which takes seconds
        for line in ranks.check():
            say(line)
        if ranks.world() > 1 and jobs not in (1, "auto"):
            raise EunoeError(f"--jobs is {jobs}, but torchrun started {ranks.world()} processes: these share each batch, jobs would share "
                             "the cells. Leave --jobs out, or start without torchrun.")  # fmt: skip
        if ray is not None:
            _refuse_beside_ray(jobs)
            jobs = 1
        plan = plan_of(recipe, out)
        trackers.refuse_missing(plan.recipe.trackers)
        # before model and text are loaded: a finished run is known without them
        threads, is_finished = ranks.decide(lambda: _begun(plan, out, relearn))
        plan.recipe = replace(plan.recipe, threads=threads)
        if is_finished:
            added = fill_constant(out) if fill else []
            say(
                f"{out} is finished: every score of the recipe is there. {'Only submission.zip' if added else 'Nothing'} was changed."
            )
            return out / "report.html"
        refuse_inside(out, plan.sources())
        on_ray = None if ray is None else contexts.enter_context(cluster.connected(ray))
        helpers = contexts.enter_context(Jobs(out, tracked=bool(plan.recipe.trackers)))
        helpers.start(_started_early(jobs, plan, out))
        reads = plan.prepare(out)
        plan.recipe = settled(plan)
        shared = ranks.world() == 1 and on_ray is None  # what is owed on a cluster one process alone decides
        claim = claimed(plan.recipe, out, command, reads, resolve=_as_begun, shared=shared)
        board = Board(out, ranks.decide(lambda: contexts.enter_context(claim)))
        torch.set_num_threads(plan.recipe.threads)
        ranks.decide(lambda: _begin(plan, board, relearn))
        if ranks.first():
            contexts.enter_context(trackers.tracking(plan.recipe.trackers, plan.recipe.name, out, asdict(plan.recipe)))
        count = count_jobs(jobs, plan, board) if has_locks(out) else 1  # else two could take the same cell
        helpers.keep(count if count > 1 else 0)
        if count > 1 or on_ray is not None:
            plan = plan_of(plan.recipe)  # one that holds neither model nor text, while others do the work
            clear_shelf()
            if on_ray is not None:
                cluster.share(on_ray, plan, Board(out, board.run), join_cell)
            else:
                helpers.share(count)
            board = Board(out, board.run)
            plan.begin(board)
            if any(not board.done(cell) for cell in plan.cells(board)):  # some were killed
                plan.prepare(out)
        work(plan, board)
        return _finish(plan, board, fill) if ranks.first() else out / "report.html"


@contextmanager
def _one_line_where_a_process_is_lost() -> Iterator[None]:
    """What torch raises where another process of the launcher ended, or gives no sign, as an ``EunoeError``."""
    try:
        yield
    except RuntimeError as error:
        if not ranks.lost(error):
            raise
        stop.check(
            "working through the recipe", "what is done is kept"
        )  # all were asked to stop, and it was the first to
        raise EunoeError(
            f"process {ranks.rank()} of {ranks.world()} stops, as another one ended or gives no sign. What that one "
            "said last gives the reason. What is done is kept; run the same command to resume."
        ) from error


def _begun(plan: Plan, out: Path, relearn: bool) -> tuple[Any, bool]:
    """The threads that the run computes with (those it was begun with), and whether nothing is left to do.

    Raises ``EunoeError`` for the folder of another recipe.
    """
    plan.recipe = _with_threads_of(plan.recipe, out)
    refuse_other(plan.recipe, out, _as_begun)
    return plan.recipe.threads, not relearn and _finished(plan, out)


def _begin(plan: Plan, board: Board, relearn: bool) -> None:
    plan.begin(board)
    if relearn:
        plan.drop_damaged(board)


@contextmanager
def _same_threads_after() -> Iterator[None]:
    """A run computes with the recipe's threads; who called it gets torch back as it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finished(plan: Plan, out: Path) -> bool:
    """Is everything that the recipe owes there, and as it was made? Runs that a version before 0.2 finished have no marks to look at."""
    if not finished(out):
        return False
    if not has_marks(out):
        return True
    if begun_with(out) is None:
        return False  # texts.json is made again first
    board = Board(out, fingerprint(out))
    cells = plan.cells(board)
    broken = [out / cell.key / "final" for cell in cells if board.done(cell) and not _state_intact(out, cell)]
    if broken:
        listed = f"{', '.join(map(str, broken[:3]))}{' and more' * (len(broken) > 3)}"
        raise EunoeError(
            f"{out} is finished, but {listed} was damaged since. Its rows are whole. To learn that stage again, to the same bits: "
            "give the same command with --relearn."
        )
    return all(board.done(cell) for cell in cells)


def _state_intact(out: Path, cell: Cell) -> bool:
    """Does the state that a cell left, if it left one, have the hashes of its manifest?"""
    final = out / cell.key / "final"
    return not final.is_dir() or checkpoint.intact(final)


def work(plan: Plan, board: Board) -> None:
    """Do every cell that is owed, sharing with other processes; returns when all are done."""
    torch.set_num_threads(plan.recipe.threads)
    if ranks.world() > 1:
        _work_in_step(plan, board)
        return
    group = ""
    while True:
        stop.check("working through the recipe", "what is done is kept")
        owed = [cell for cell in plan.cells(board) if not board.done(cell)]
        if not owed:
            return
        ready = [cell for cell in owed if board.ready(cell)]
        # the lock decides, not the list: between looking and taking another process may have been quicker
        taken = next((cell for cell in _in_turn(ready, group) if _take(plan, board, cell)), None)
        if taken is None:
            time.sleep(0.1)  # others are at all that is ready
        else:
            group = taken.group
            if alone():
                _gather(plan, board)


def _work_in_step(plan: Plan, board: Board) -> None:
    """Every cell that is owed, by all processes of a launcher together; which is next the first one says, as it writes the marks."""
    cells = {cell.key: cell for cell in plan.cells(board)}
    while True:
        stop.check("working through the recipe", "what is done is kept")
        key = ranks.decide(lambda: next((key for key, cell in cells.items() if not board.done(cell)), None))
        if key is None:
            return
        _carry_out(plan, board, cells[key])


def join(out: Path) -> None:
    """Help to carry out the run of a folder, as one of several jobs: its recipe is there, and others gather the rows."""
    plan = load_plan(out)
    plan.recipe = _with_threads_of(plan.recipe, out)
    reads = plan.prepare(out)
    plan.recipe = settled(plan)
    with (
        claimed(plan.recipe, out, "", reads, resolve=_as_begun, shared=True) as run,
        trackers.sending(out, bool(os.environ.get(trackers.SENDS))),
    ):
        work(plan, Board(out, run))


SEEN = 5.0
"""Seconds until a machine must see the run folder."""
_joined: dict[tuple[Path, str], Plan] = {}
"""The plan that this process of a cluster made ready for its last cell: the next one is most likely of the same run."""


def join_cell(out: Path, key: str, run: str) -> None:
    """Carry out one cell of a run that another process began, on whatever machine: what it needs is done, and no other is given it.

    ``run``: the run's fingerprint. Raises ``EunoeError`` where this machine does not see the same folder, texts and model.
    """
    plan = _joined.pop((out, run), None)  # kept only if this cell ends well: an error leaves a model in between
    if plan is None:
        _joined.clear()
        clear_shelf()
        plan = _plan_on_node(out, run)
    torch.set_num_threads(plan.recipe.threads)
    board = Board(out, run)
    cell = _wait_for(
        lambda: next((c for c in plan.cells(board) if c.key == key and board.ready(c)), None), cluster.PATIENCE
    )
    if cell is None:
        raise EunoeError(f"machine {platform.node()} does not see in {out} what {key} needs, which others have written there. Put the run "
                         "folder on a file system that all machines share.")  # fmt: skip
    # Who was given it before may still be ending, or be gone with a machine whose locks live on for a while (NFS: a minute and a
    # half, or for ever). Two writers at once could tear a file, so this one waits; but not for ever, as no one else is given it.
    with trackers.sending(out, bool(plan.recipe.trackers)):
        if not _wait_for(lambda: board.done(cell) or _take(plan, board, cell), 2 * cluster.PATIENCE):
            say(f"{key} is locked by a process that gives no sign: it is carried out all the same")
            _carry_out(plan, board, cell)
    _joined[out, run] = plan


def _plan_on_node(out: Path, run: str) -> Plan:
    """The plan of a run that another machine began, made ready here; raises ``EunoeError`` where this one does not see the same."""
    here = f"machine {platform.node()}"
    if not _wait_for(lambda: (out / "recipe.yaml").is_file() and (out / "texts.json").is_file(), SEEN):
        raise EunoeError(
            f"{here} does not see the run folder {out}. Put it on a file system that all machines share: --out FOLDER."
        )
    if not _wait_for(lambda: fingerprint(out) == run, SEEN):
        raise EunoeError(f"{here} sees another run in {out}. Put the run on a file system that all machines share.")
    plan = load_plan(out)
    try:
        reads = plan.prepare(out)
        refuse_other_reads(out, reads)
    except Interrupted:
        raise
    except EunoeError as error:
        raise EunoeError(f"{here}, which sees the run folder: {error}") from error
    return plan


def _wait_for(look: Callable[[], T], seconds: float) -> T:
    """What ``look`` returns, once it is something or the time is over: what one machine writes another may see a little later."""
    end = time.monotonic() + seconds
    while not (seen := look()) and time.monotonic() < end:
        stop.check("waiting for what another process writes")
        time.sleep(0.1)
    return seen


def _refuse_beside_ray(jobs: int | Literal["auto"]) -> None:
    if ranks.world() > 1:
        raise EunoeError(f"--ray gives the cells to a cluster, but torchrun started {ranks.world()} processes, which share each batch. "
                         "Leave "
                         "--ray out, or start without torchrun.")  # fmt: skip
    if jobs not in (1, "auto"):
        raise EunoeError(
            f"--jobs is {jobs}, but with --ray the cluster's CPUs say how many cells run at once. Leave --jobs out."
        )


def _in_turn(ready: Sequence[Cell], group: str) -> list[Cell]:
    """The cells of the group this process is at, then those of the others, each process beginning with another group."""
    groups = list(dict.fromkeys(cell.group for cell in ready))
    first = number() % max(1, len(groups))
    turn = {name: (name != group, (k - first) % len(groups)) for k, name in enumerate(groups)}
    return sorted(ready, key=lambda cell: turn[cell.group])


def _take(plan: Plan, board: Board, cell: Cell) -> bool:
    """Carry out a cell unless another process is doing it or did it meanwhile; was it carried out?"""
    with _locked(board.out, cell.key) as locked:
        if not locked or board.done(cell):
            return False
        _carry_out(plan, board, cell)
        return True


def _carry_out(plan: Plan, board: Board, cell: Cell) -> None:
    files = plan.carry_out(cell, board)
    if ranks.first():
        # before the mark: a done cell is not visited again
        shutil.rmtree(board.out / cell.key / "steps", ignore_errors=True)
        board.finish(cell, files)
        _follow(board, cell)


def _follow(board: Board, cell: Cell) -> None:
    """The scores of a cell to the trackers, under its sequence (or its fine-tuning): over the domains learnt, or over its steps."""
    owner, of_sequence, _ = cell.key.partition("/scores/")
    for row in board.rows(cell.key):
        draw = None if row.shots_seed is None else f"shots{row.shots_seed}"
        name = ".".join(
            part for part in (row.task, row.transfer, draw, row.metric, row.at) if part not in (None, "last")
        )
        trackers.follow(board.out / owner / "scores", {name: row.value}, len(row.learnt) if of_sequence else row.steps)


@contextmanager
def _locked(out: Path, key: str) -> Iterator[bool]:
    """Is the cell (or another piece of work) this process's? A lock of its own, which dies with its owner."""
    folder = out / ".locks"
    folder.mkdir(exist_ok=True)
    with open(folder / sha256(key.encode()).hexdigest()[:24], "a") as lock:
        yield try_lock(lock)


def _gather(plan: Plan, board: Board) -> None:
    """rows.jsonl from the cells that are done, in the plan's order; the same whoever does it. Nothing where another process does it."""
    with _locked(board.out, _ROWS) as locked:
        if locked:
            done = [cell for cell in plan.cells(board) if board.done(cell)]
            write_text(board.out / "rows.jsonl", board.all_rows(done))


def _finish(plan: Plan, board: Board, fill: bool) -> Path:
    """The rows of all cells, what is made from them, and the report; one process at a time."""
    # matplotlib: half a second that jobs which leave the page to another are spared
    from eunoe.report.page import write_report

    while True:
        with _locked(board.out, _ROWS) as locked:
            if locked and not _finished(plan, board.out):
                write_text(board.out / "rows.jsonl", board.all_rows(plan.cells(board)))
                files = plan.finish(board, fill)
                write_report([board.out])
                mark_finished(board.out, [*files, "report.html"])
            if locked:
                return board.out / "report.html"
        stop.check("waiting for another process to write the report")
        time.sleep(0.1)


# -- threads and jobs ---------------------------------------------------------------------------------------------------
def _with_threads_of(recipe: Any, out: Path) -> Any:
    """``threads: auto`` is what the folder's recipe says, if it was begun: a run has one number on whatever machine it is resumed."""
    file = out / "recipe.yaml"
    if recipe.threads != "auto" or not file.is_file():
        return recipe
    return replace(recipe, threads=recipe_of_run(out).threads)


def settled(plan: Plan) -> Any:
    """The recipe with its threads as a number."""
    if plan.recipe.threads != "auto":
        return plan.recipe
    return replace(plan.recipe, threads=1 if plan.weights() < SMALL else cores())


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_jobs(asked: int | Literal["auto"], plan: Plan, board: Board) -> int:
    """How many processes share the work: as many as asked for, and not more than have something to do."""
    if not alone() or ranks.world() > 1:
        return 1
    number = asked if asked != "auto" else cores() if plan.weights() < SMALL and not torch.cuda.is_available() else 1
    owed = [cell for cell in plan.cells(board) if not board.done(cell)]
    ways = {cell.group for cell in owed} | {cell.key for cell in owed if board.ready(cell)}
    return max(1, min(number, len(ways)))


def _started_early(asked: int | Literal["auto"], plan: Plan, out: Path) -> int:
    """How many jobs import while the recipe is being read. Those that ``count_jobs`` then finds too many end without having worked.

    Where fewer are right, as for a large model, all that is lost is a few seconds of cores that had nothing to do.
    """
    if not alone() or ranks.world() > 1 or asked == 1 or (asked == "auto" and torch.cuda.is_available()):
        return 0
    groups = {cell.group for cell in plan.cells(Board(out, None))}
    number = min(cores() if asked == "auto" else asked, cores(), len(groups))
    return number if number > 1 else 0


__all__ = ["SMALL", "cores", "count_jobs", "join", "join_cell", "load_plan", "plan_of", "run", "settled", "work"]
