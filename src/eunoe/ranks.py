"""Several processes on one run (``torchrun``): all compute the same things in the same order, and the first one writes.

Only the batches of post-training are divided (data/collate.py, train.py). Everything else is computed by each process
alike, so that none has to be told what another computed; what is written is written by the first, and read by all after
``wait``. But what is found in the run folder (what is done, from where to resume, whose it is) the first process alone looks
up and tells the others (``decide``): it writes there, so each of them could find something else and wait for ever.
What a launcher may have set besides is refused or overruled by name (``check``), never followed in silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from eunoe.errors import EunoeError

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)
"""How long a process waits for another that gives no sign; one that ended is noticed at once."""

_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor and context parallelism",
}
_OTHER_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_OVERRULED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "batch and micro_batch of the recipe"),
    "ACCELERATE_GRADIENT_CLIPPING": ("none", "clip of the recipe"),
    "ACCELERATE_MIXED_PRECISION": ("no", "precision of the recipe"),
    "ACCELERATE_DYNAMO_BACKEND": ("NO", "no compilation"),
}


def world() -> int:
    """How many processes the launcher started; 1 without one."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this is, from 0."""
    return _number("RANK", 0)


def first() -> bool:
    """Whether this process is the one that writes, and speaks."""
    return rank() == 0


def check() -> list[str]:
    """Refuse what a launcher set and nothing here follows; returns sentences on what the recipe overrules.

    Raises ``EunoeError`` for FSDP and DeepSpeed, for launchers other than ``torchrun``, and for launcher variables that do
    not fit together (``RANK`` alone, ``WORLD_SIZE`` without an address, empty values).
    """
    for name, what in _UNSUPPORTED.items():
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise EunoeError(f"{name} is {os.environ[name]!r}, but {what} is not supported yet: processes started by torchrun share "
                             f"a run as plain copies. Unset {name}, or set up accelerate without it.")  # fmt: skip
    for name in _OTHER_LAUNCHERS:
        if _number(name, 1) > 1 and world() == 1:
            raise EunoeError(f"{name} is {os.environ[name]!r}: this was started by mpirun, which is not supported. Start it with torchrun, "
                             "or alone with --jobs.")  # fmt: skip
    size, own = world(), rank()
    _number("LOCAL_RANK", 0)
    _number("MASTER_PORT", 0)
    given = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    if "WORLD_SIZE" not in os.environ and given:
        raise EunoeError(f"{given[0]} is set ({os.environ[given[0]]!r}) but WORLD_SIZE is not: left over from a launcher? Unset it, or "
                         "start the processes with torchrun, which sets both.")  # fmt: skip
    if size < 1 or not 0 <= own < size:
        raise EunoeError(
            f"WORLD_SIZE is {size} and RANK is {own}: ranks go from 0 to WORLD_SIZE - 1. Start the processes with torchrun."
        )
    if (
        size > 1 or "LOCAL_RANK" in os.environ
    ):  # accelerate joins the processes wherever LOCAL_RANK is set, one alone too
        needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        lacking = [name for name in needed if not os.environ.get(name)]
        if lacking:
            raise EunoeError(f"WORLD_SIZE is {size} but {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not set, so the "
                             "processes cannot find each other. Start them with torchrun, or unset WORLD_SIZE, RANK and "
                             "LOCAL_RANK.")  # fmt: skip
    return [
        f"{name}={os.environ[name]} is overruled by {by}"
        for name, (neutral, by) in _OVERRULED.items()
        if os.environ.get(name, neutral).lower() != neutral.lower()
    ]


def refuse_several(what: str) -> None:
    """Raise ``EunoeError`` if a launcher started several processes for something that shares its work without one."""
    if world() > 1:
        raise EunoeError(f"WORLD_SIZE is {world()}, but {what} is not divided between processes of torchrun: each would do the same. "
                         "Start it without a launcher; --jobs N, or the same command several times, shares what can be.")  # fmt: skip


def on_cpu() -> bool:
    """Whether several processes work on CPUs: accelerate joins them (by gloo) only if told so."""
    import torch  # slow to import

    return world() > 1 and not torch.cuda.is_available()


def device() -> Any:
    """The ``torch.device`` that this process computes on: what accelerate takes for training, so that scores, probes and
    ``eunoe verify`` see the numbers of the device that trained."""
    return joined().device


def joined() -> Any:
    """accelerate's ``PartialState``: the first call joins the processes, and waits until all are there."""
    from accelerate import PartialState  # slow to import

    return PartialState(cpu=on_cpu(), timeout=PATIENCE)


def wait() -> None:
    """Until all processes are here. Alone: nothing."""
    if world() > 1:
        joined().wait_for_everyone()


def decide(look: Callable[[], T]) -> T:
    """What ``look`` returns, or the ``EunoeError`` that it raises, in the first process: it alone calls it, and tells the others.

    All processes must come here; none leaves before the first one has looked. What it returns must be picklable.
    """
    if world() == 1:
        return look()
    from torch.distributed import broadcast_object_list

    joined()
    shared: list[Any] = [None, None]
    if first():
        try:
            shared[0] = look()
        except EunoeError as error:
            shared[1] = error
    broadcast_object_list(shared)
    if shared[1] is not None:
        raise shared[1]
    answer: T = shared[0]
    return answer


def lost(error: RuntimeError) -> bool:
    """Does torch raise this because another process is gone, or gives no sign?"""
    from torch.distributed import DistError

    return world() > 1 and (isinstance(error, DistError) or "gloo" in str(error))


def _number(name: str, default: int) -> int:
    value = os.environ.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise EunoeError(
            f"the environment variable {name} is {value!r}, not a whole number: left over from a launcher? Unset it."
        ) from None


__all__ = ["check", "decide", "device", "first", "joined", "lost", "on_cpu", "rank", "refuse_several", "wait", "world"]
