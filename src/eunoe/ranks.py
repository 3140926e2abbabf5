"""Several processes on one run (``torchrun``): all compute the same things in the same order, and the first one writes.

Only the batches of post-training are divided (data/collate.py, train.py). Everything else is computed by each process
alike, so that none has to be told what another found; what is written is written by the first, and read by all after
``wait``.
"""

from __future__ import annotations

import os


def world() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    """Whether this process is the one that writes, and speaks."""
    return rank() == 0


def on_cpu() -> bool:
    """Whether several processes work on CPUs: accelerate joins them (by gloo) only if told so."""
    import torch  # slow to import

    return world() > 1 and not torch.cuda.is_available()


def wait() -> None:
    """Until all processes are here. Alone: nothing."""
    if world() > 1:
        from accelerate import PartialState

        PartialState(cpu=on_cpu()).wait_for_everyone()


__all__ = ["first", "on_cpu", "rank", "wait", "world"]
