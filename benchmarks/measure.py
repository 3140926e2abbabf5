"""What the benchmarks share: taking turns, and the machine's matrix-product peak."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from statistics import median, quantiles
from typing import Literal

import torch

from eunoe.models.products import product
from eunoe.train import Job, train

Precision = Literal["float32", "bf16"]
DTYPE: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


def peak_flops(size: int = 1536, seconds: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The best matrix-product rate of one thread seen over a while, in FLOP a second of its time, by torch's kernel or oneDNN's."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best, stop = 0.0, time.thread_time() + seconds
    with one_thread():
        while time.thread_time() < stop:
            for multiply in (torch.mm, product):
                began = time.thread_time()
                multiply(a, b)
                best = max(best, 2 * size**3 / (time.thread_time() - began))
    return best


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch has one thread, so that processor time is all of that thread's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


def side_by_side(jobs: list[Job], *others: Callable[[], object]) -> list[list[float]]:
    """Seconds of processor time of each step of several trainings and of each call of ``others``, in turn; the first are not counted.

    Each training has a thread, of which one runs at a time: a training cannot be left in the middle and resumed. It passes the turn
    on after each step but its last, and then when it has ended: what ``train`` does after the last step is also its own. ``others``
    are called after the last training's steps. torch is given one thread meanwhile, so that the time is all of that thread's own: what
    else the machine does, which moves a clock on the wall by more than the differences looked for, is hardly in it.
    """
    columns: list[list[float]] = [[] for _ in (*jobs, *others)]
    batons = [threading.Semaphore(0) for _ in jobs]

    going = list(range(len(jobs)))

    def pass_on(i: int) -> None:
        if going:
            batons[next((k for k in going if k > i), going[0])].release()

    def run(i: int) -> None:
        torch.set_num_threads(1)  # each thread has a number of its own
        clock = _Clock(jobs[i], time.thread_time)

        def turn(step: int) -> dict[str, float]:
            columns[i].append(clock.read())
            if i == len(jobs) - 1:
                for column, other in zip(columns[len(jobs) :], others, strict=True):
                    began = time.thread_time()
                    other()
                    column.append(time.thread_time() - began)
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

    with one_thread(), ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(run, i) for i in range(len(jobs))]
        batons[0].release()
        for one in running:
            one.result()
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
