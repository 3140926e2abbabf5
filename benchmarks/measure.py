"""What the benchmarks share: taking turns, and the machine's matrix-product peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


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


def ratio(a: list[float], b: list[float]) -> str:
    """Median, least and greatest of a/b over the rounds."""
    each = sorted(x / y for x, y in zip(a, b, strict=True))
    return f"{median(each):.2f} x ({each[0]:.2f} to {each[-1]:.2f})"
