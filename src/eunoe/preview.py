"""``eunoe plan``: what a recipe reads, what is computed, and about how much time, memory and disk that takes; nothing is written.

The work is counted from the plan's cells. Its time comes from a few real steps of each method and of the end tasks and from
scoring one batch, on this machine, with the recipe's threads and with what else the machine is doing now; the rest follows by
the numbers of steps, batches and rows. The steps are taken on models that are made for it, and thrown away.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from eunoe import ranks, stop
from eunoe.cells import Board
from eunoe.data.cache import cache_folder
from eunoe.data.corpus import texts
from eunoe.data.tasks import Task
from eunoe.engine import cores, count_jobs, plan_of, settled
from eunoe.foreign import visible
from eunoe.plan import RunPlan
from eunoe.recipe import CorpusSettings, Recipe, Study
from eunoe.study import StudyPlan
from eunoe.timing import Piece, TimedRun, TimedStudy, held_out, nowhere, together

REPORT, PAGE = 3.0, 10**6
"""Seconds, and bytes, of the report and the small files beside it."""
BUSY = 0.85
"""Below this share of a core the machine is busy with something else, which is said."""
CELL = 20_000
"""Bytes of the small files of a cell."""


@dataclass(frozen=True)
class Reads:
    """One text or labelled task that is read."""

    name: str
    text: str = ""
    task: str = ""


@dataclass(frozen=True)
class Preview:
    """What a recipe would do."""

    name: str
    reads: list[Reads]
    pieces: list[Piece]
    jobs: int
    threads: int
    seconds: float
    """From the command to its report."""
    memory: int
    """Bytes, of all jobs together."""
    disk: int
    """Bytes that the run's folder holds at the end."""
    disk_on_the_way: int
    """Bytes more, at most, while it runs."""
    gpu: int = 0
    core: float | None = None
    """Share of a core that the timed steps had, where they compute on one: below 1 other programs were computing too."""


def preview(recipe: Recipe | Study, jobs: int | Literal["auto"] = "auto", loading: float = 0.0) -> Preview:
    """Read and check all that ``recipe`` needs, as a run does, count its work and time a few steps of it; writes nothing.

    (Tokenised text is kept in the cache, as in a run.) ``jobs``: as in ``run``. ``loading``: seconds that importing this
    took. The state of torch's generator and its number of threads are as before when it returns. Raises ``EunoeError`` for
    everything that a run would refuse, ``Interrupted`` when asked to stop.
    """
    with stop.watching(), _apart():
        ranks.refuse_several("eunoe plan")
        plan, began = plan_of(recipe), time.monotonic()
        plan.prepare(Path("runs") / recipe.name)
        prepared = time.monotonic() - began
        waiting = _peak()
        plan.recipe = settled(plan)
        count = count_jobs(jobs, plan, Board(nowhere(), None))
        assert isinstance(plan, RunPlan | StudyPlan)
        reads = _reads_of_run(plan) if isinstance(plan, RunPlan) else _reads_of_study(plan)
        torch.set_num_threads(plan.recipe.threads)
        began, used = time.monotonic(), time.process_time()
        timed = TimedRun(plan) if isinstance(plan, RunPlan) else TimedStudy(plan)
        had = (time.process_time() - used) / max(time.monotonic() - began, 1e-9)
        pieces = timed.pieces()
        crowd = max(1.0, count * plan.recipe.threads / cores())
        start = (loading + prepared) * (2 if count > 1 else 1) + timed.once
        largest, on_the_way = max((p.keeps for p in pieces), default=0), sorted(p.on_the_way for p in pieces)[-count:]
        return Preview(
            name=recipe.name, reads=reads, pieces=pieces, jobs=count, threads=plan.recipe.threads,
            seconds=start + crowd * together(pieces, count, timed.build) + REPORT,
            memory=count * (_peak() + 2 * largest) + (waiting if count > 1 else 0),
            disk=PAGE + sum(p.keeps + CELL for p in pieces), disk_on_the_way=sum(on_the_way),
            gpu=count * torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            core=had if plan.recipe.threads == 1 and not torch.cuda.is_available() else None,
        )  # fmt: skip


# -- what is read -------------------------------------------------------------------------------------------------------
def _reads_of_run(plan: RunPlan) -> list[Reads]:
    recipe, material, reads = plan.recipe, plan.material, list[Reads]()
    assert material is not None
    for domain in recipe.domains:
        if domain.name not in material.train:
            continue
        blocks = material.train[domain.name]
        tokens = f"{len(blocks) * recipe.training.block:,} tokens to learn"
        scored = _counted(held_out(material, domain.name), "held-out block")
        draws = list(material.tasks.get(domain.name, {}).values())
        reads.append(Reads(domain.name, f"{_documents(domain.corpus)}{tokens}, {scored}", _task(draws)))
    if recipe.general is not None:
        scored = f"{held_out(material, 'general'):,} blocks to score"
        reads.append(Reads("general", _documents(recipe.general) + scored))
    for corpus in recipe.head.corpora if recipe.head else []:
        reads.append(Reads("LM head", _documents(corpus).removesuffix(", ")))
    return reads


def _reads_of_study(plan: StudyPlan) -> list[Reads]:
    reads = [Reads(name, task=_task([task])) for name, task in plan.tasks.items()]
    for name, corpus in plan.recipe.retention.items():
        blocks = sum(len(batch["input_ids"]) for batch in plan.texts[name])
        reads.append(Reads(name, f"{_documents(corpus)}{blocks:,} blocks to score"))
    return reads


def _documents(corpus: CorpusSettings) -> str:
    if corpus.source.startswith("hub:"):  # may have no end
        return ""
    return f"{_counted(sum(1 for _ in texts(corpus)), 'document')}, "


def _task(draws: Sequence[Task]) -> str:
    if not draws:
        return ""
    task, several = draws[0], f", {len(draws)} draws" * (len(draws) > 1)
    shown = ", ".join(task.labels[:6]) + ", ..." * (len(task.labels) > 6)
    classes = f"{len(task.labels)} classes: {shown}" if task.labels else "a number for each row"
    if task.choices:
        classes = f"{task.choices} choices a row"
    return f"{len(task.train):,} rows to fine-tune on{several}, {len(task.test):,} to score; {classes}"


@contextmanager
def _apart() -> Iterator[None]:
    """Whatever the block draws at random, and however many threads it sets: afterwards both are as before."""
    before = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(before)


def _peak() -> int:
    """The most memory that this process had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# -- for people -----------------------------------------------------------------------------------------------------------
def table(seen: Preview) -> Table:
    """What a person reads: what is read, what is done, what it takes."""
    out = Table(
        title=f"{seen.name}: what this recipe does (nothing of it is done yet)", title_justify="left", box=SIMPLE_HEAD
    )
    for name, side in (("", "left"), ("what", "left"), ("amount", "left"), ("time", "right")):
        out.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for i, reads in enumerate(seen.reads):
        lines = [line for line in (reads.text, reads.task and f"end task: {reads.task}") if line]
        out.add_row("reads" if i == 0 else "", visible(reads.name), visible("; ".join(lines), 300), "")
    out.add_section()
    for i, kind in enumerate(dict.fromkeys(piece.kind for piece in seen.pieces)):
        own = [piece for piece in seen.pieces if piece.kind == kind]
        for k, what in enumerate(dict.fromkeys(piece.what for piece in own)):
            pieces = [piece for piece in own if piece.what == what]
            steps = sum(piece.steps for piece in pieces)
            amount = f"{_counted(len(pieces), 'cell')}{', ' + _counted(steps, 'optimizer step') if steps else ''}"
            named = f"{kind}: {what}" if what else kind
            out.add_row("does" if i + k == 0 else "", named, amount, duration(sum(piece.seconds for piece in pieces)))
    out.add_section()
    threads = f"{_counted(seen.jobs, 'job')} with {_counted(seen.threads, 'thread')}{' each' if seen.jobs > 1 else ''}"
    steps = sum(piece.steps for piece in seen.pieces)
    whole = f"{_counted(len(seen.pieces), 'cell')}, {_counted(steps, 'optimizer step')}, {threads}"
    out.add_row("takes", "time, start to report", whole, f"about {duration(seen.seconds)}")
    if seen.core is not None and seen.core < BUSY:
        note = f"without other programs, which took {1 - seen.core:.0%} of the timed steps"
        out.add_row("", "", note, f"about {duration(seen.seconds * seen.core)}")
    out.add_row("", "memory", f"about {size(seen.memory)}" + (f", on the GPU {size(seen.gpu)}" if seen.gpu else ""), "")
    more = f", and up to {size(seen.disk_on_the_way)} more while it runs" if seen.disk_on_the_way else ""
    out.add_row("", "disk", f"about {size(seen.disk)}{more}", "")
    return out


def print_preview(seen: Preview, live: bool) -> None:
    """The table and what it stands on, on stdout; ``live``: a terminal reads it."""
    out = Console(width=None if live else 120, highlight=False)
    out.print(table(seen))
    out.print(
        "Cells are the pieces that a run is cut into. The time is from a few steps of each kind, on this machine as busy as it is "
        f"now. Nothing was written but tokenised text, which is kept in {cache_folder()} as in any run.", markup=False
    )  # fmt: skip


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """A time as people say it, in two units at most.

    >>> [duration(s) for s in (0.4, 59, 130, 7500, 200000)]
    ['1 s', '59 s', '2 min 10 s', '2 h 5 min', '2 d 7 h']
    """
    whole = max(1, round(seconds))
    for name, unit, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def size(count: float) -> str:
    """Bytes as people say them.

    >>> [size(n) for n in (900, 427364352, 12.34e9)]
    ['1 MB', '427 MB', '12.3 GB']
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


__all__ = ["Preview", "Reads", "duration", "preview", "print_preview", "size", "table"]
