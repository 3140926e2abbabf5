"""What the benchmarks share: taking turns, and the machine's matrix-product peak."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median, quantiles

import torch

from eunoe.train import Job, train


def peak_flops(size: int = 2048, seconds: float = 1.5) -> float:
    """The best float32 matrix-product rate seen over a while, in FLOP/s, with the threads in use."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    best, stop = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def in_turn(*work: Callable[[], float], rounds: int) -> list[list[float]]:
    """Call each function once a round, in turn, after one round that is not counted; returns its values per function."""
    for f in work:
        f()
    rows = [[f() for f in work] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


def quartiles(a: list[float], b: list[float]) -> str:
    """Median of a/b over the rounds, and between which values its middle half lies."""
    low, middle, high = quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)
    return f"{middle:.3f} x (middle half {low:.3f} to {high:.3f})"


def ratio(a: list[float], b: list[float]) -> str:
    """Median, least and greatest of a/b over the rounds."""
    each = sorted(x / y for x, y in zip(a, b, strict=True))
    return f"{median(each):.2f} x ({each[0]:.2f} to {each[-1]:.2f})"


def taking_turns(
    job: Job, *others: Callable[[], float], each: int, settle: int, before: Callable[[], object] = lambda: None
) -> list[list[float]]:
    """Seconds of the steps of ``train(job)``, and what each other function returns, in turns of ``each`` steps or calls.

    The first ``settle`` of each turn are not counted: they ask the system again for memory that the others gave back, which a
    training by itself does in its first steps alone. ``before`` is called before each of our turns and after the last, outside the
    clock.
    """
    if not 1 <= settle < each or len(job.batches) % each:
        raise ValueError(f"{len(job.batches)} steps are no whole turns of {each} steps, of which {settle} settle")
    clock = _Clock(job)
    columns: list[list[float]] = [[] for _ in range(1 + len(others))]

    def turn(step: int) -> dict[str, float]:
        place = (step - 1) % each
        if place >= settle:
            columns[0].append(clock.read())
        if place == each - 1:
            for column, other in zip(columns[1:], others, strict=True):
                column += [other() for _ in range(each)][settle:]
            before()
        clock.start()
        return {}

    before()
    train(replace(job, batches=clock, observe=turn))
    return columns


def side_by_side(jobs: list[Job]) -> list[list[float]]:
    """Seconds of processor time of each step of several trainings, which take turns; the first of each is not counted.

    Each training has a thread, of which one runs at a time: a training cannot be left in the middle and resumed. It passes the turn
    on after each step but its last, and then when it has ended: what ``train`` does after the last step is also its own.
    torch is given one thread meanwhile, so that the time is all of that thread's own: what else the machine does, which moves
    a clock on the wall by more than the differences looked for, is hardly in it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    columns: list[list[float]] = [[] for _ in jobs]
    batons = [threading.Semaphore(0) for _ in jobs]

    going = list(range(len(jobs)))

    def pass_on(i: int) -> None:
        if going:
            batons[next((k for k in going if k > i), going[0])].release()

    def run(i: int) -> None:
        clock = _Clock(jobs[i], time.thread_time)

        def turn(step: int) -> dict[str, float]:
            columns[i].append(clock.read())
            if step < len(jobs[i].batches):
                pass_on(i)
                batons[i].acquire()
            clock.start()
            return {}

        batons[i].acquire()
        try:
            train(replace(jobs[i], batches=clock, observe=turn))
        finally:
            going.remove(i)
            pass_on(i)

    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(run, i) for i in range(len(jobs))]
        batons[0].release()
        for one in running:
            one.result()
    torch.set_num_threads(threads)
    return [column[1:] for column in columns]


class _Clock:
    """A job's batches; asking for the first ones starts the clock, so that nothing before the first step is counted."""

    def __init__(self, job: Job, now: Callable[[], float] = time.perf_counter) -> None:
        self.job = job
        self.now = now
        self.began = 0.0

    def __len__(self) -> int:
        return len(self.job.batches)

    def __getitem__(self, step: int, /) -> list[dict[str, torch.Tensor]]:
        if not self.began:
            self.start()
        return self.job.batches[step]

    def start(self) -> None:
        self.began = self.now()

    def read(self) -> float:
        return self.now() - self.began
