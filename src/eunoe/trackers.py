"""Experiment trackers: curves and scores also go to tensorboard, wandb, trackio or mlflow, through accelerate's tracker classes.

The process that was started owns the trackers; jobs send what they have to it (``progress.tell``), so a run is one run there
however many processes share it. Each tracker has a thread that hands the numbers on, so a slow one holds nothing up. One that
fails, wherever, is said once and left out: nothing of the run depends on it, and what it would have got stands in the run folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from eunoe import ranks
from eunoe.atomic import write_text
from eunoe.errors import EunoeError
from eunoe.foreign import first_line
from eunoe.progress import say, tell

PATIENCE = 60.0
"""Seconds that a tracker has, after the run's end, for what it has not handed on yet."""
SENDS = "EUNOE_TRACKED"
"""Set for jobs whose numbers the process that started them waits for."""


@dataclass(frozen=True)
class Place:
    """Where a run stands: its name, the folder ``trackers`` in its folder, and an id that it has again when it is resumed."""

    name: str
    folder: Path
    id: str

    @property
    def mlflow(self) -> Path:
        """The file with the id that mlflow gave the run."""
        return self.folder / "mlflow.run"

    @property
    def mlflow_id(self) -> str | None:
        return self.mlflow.read_text(encoding="utf-8").strip() if self.mlflow.is_file() else None


@dataclass(frozen=True)
class Entry:
    """How one of accelerate's trackers is made."""

    tracker: str
    """Its class in ``accelerate.tracking``."""
    packages: tuple[str, ...]
    """One of these must be installed."""
    options: Callable[[Place], dict[str, Any]]
    """What the class is made with."""
    ordered: bool = False
    """It takes steps that only grow, over all names together: the step is sent as a number of its own instead."""
    keep: Callable[[Any, Place], None] = lambda _tracker, _place: None
    """Once it is started: writes down what a resumed run needs."""


TRACKERS = {
    "tensorboard": Entry("TensorBoardTracker", ("tensorboard", "tensorboardX"),
                         lambda at: {"run_name": "tensorboard", "logging_dir": at.folder}),
    "wandb": Entry("WandBTracker", ("wandb",),
                   lambda at: {"run_name": at.name, "id": at.id, "resume": "allow", "dir": str(at.folder)}, ordered=True),
    "trackio": Entry("TrackioTracker", ("trackio",), lambda at: {"run_name": at.name, "name": at.id, "resume": "allow"}, ordered=True),
    "mlflow": Entry("MLflowTracker", ("mlflow",),
                    lambda at: {"experiment_name": at.name, "run_name": at.id, "run_id": at.mlflow_id},
                    keep=lambda tracker, at: write_text(at.mlflow, f"{tracker.tracker.info.run_id}\n")),
}  # fmt: skip


def refuse_missing(names: Sequence[str]) -> None:
    """Raise ``EunoeError`` for a tracker whose package is not installed."""
    for name in names:
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name].packages):
            raise EunoeError(f"recipe.trackers: {name} is not installed. Install it: pip install {name}, or all of them: pip install "
                             "'eunoe[trackers]'. Or take it out of the list.")  # fmt: skip


class Tracker:
    """One tracker, in a thread of its own from its start to its end; ``settings`` are plain values."""

    def __init__(self, name: str, place: Place, settings: Mapping[str, Any]) -> None:
        self.name, self.place, self.settings = name, place, settings
        self.waiting: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self.failed = False
        self.thread = threading.Thread(target=self._hand_on, daemon=True, name=f"tracker {name}")
        self.thread.start()

    def send(self, values: dict[str, float], step: int) -> None:
        if not self.failed:
            self.waiting.put((values, step))

    def close(self, patience: float) -> None:
        """Wait until all is handed on, ``patience`` seconds at most."""
        self.waiting.put(None)
        self.thread.join(patience)
        if self.thread.is_alive():
            self._fail(f"is still busy {patience:.0f} s after the end, and is left behind")

    def _hand_on(self) -> None:
        entry = TRACKERS[self.name]
        try:
            tracker = getattr(importlib.import_module("accelerate.tracking"), entry.tracker)(
                **entry.options(self.place)
            )
            tracker.main_process_only = (
                False  # the first process alone comes here; who asks accelerate again may get another answer
            )
            tracker.start()
            entry.keep(tracker, self.place)
            tracker.store_init_configuration(dict(self.settings))
            while (item := self.waiting.get()) is not None:
                values, step = item
                if entry.ordered:
                    tracker.log(values | {f"{name.rpartition('/')[0]}/step": step for name in values})
                else:
                    tracker.log(values, step=step)
            tracker.finish()
        except BaseException as error:  # SystemExit too: none of its failures is one of the run
            self._fail(f"failed: {first_line(error)}")

    def _fail(self, how: str) -> None:
        self.failed = True
        say(
            f"the tracker {self.name} {how.rstrip('.')}. The run does without it: its curves and scores are in the run folder."
        )


_open: list[Tracker] = []
_sending: Path | None = None
"""The run folder that a job, or the process with the trackers, works in."""


@contextmanager
def tracking(names: Sequence[str], name: str, out: Path, settings: Any) -> Iterator[None]:
    """Within the block what is followed goes to the trackers ``names``; ``name`` and ``settings`` are the run's, ``out`` its folder.

    Everything is handed on at the end, also after an error. Without names nothing happens.
    """
    global _sending
    if not names:
        yield
        return
    place = Place(name, (out / "trackers").resolve(), f"{name}-{sha256(str(out.resolve()).encode()).hexdigest()[:8]}")
    place.folder.mkdir(parents=True, exist_ok=True)
    ranks.joined()  # accelerate's trackers log by its state, which training would make
    _open.extend(Tracker(one, place, flattened(settings)) for one in dict.fromkeys(names))
    _sending = out
    try:
        yield
    finally:
        _sending = None
        end = time.monotonic() + PATIENCE
        for tracker in _open:
            tracker.close(max(0.0, end - time.monotonic()))
        _open.clear()


@contextmanager
def sending(out: Path, tracked: bool) -> Iterator[None]:
    """Within the block, in a job on the run folder ``out``: what is followed goes to the process that started it, where that tracks."""
    global _sending
    _sending = out if tracked else None
    try:
        yield
    finally:
        _sending = None


def follow(where: Path | None, values: Mapping[str, float], step: int) -> None:
    """Hand ``values`` (name -> number) of a step on; ``where``: the folder in the run that they belong to, whose path is before the names.

    Does nothing where nothing is tracked.
    """
    if _sending is None or where is None or not where.is_relative_to(_sending):
        return
    parts = [
        part for part in where.relative_to(_sending).parts if part not in ("sequences", "cells", "domains", "steps")
    ]
    named = {"/".join([*parts, name]): float(value) for name, value in values.items()}
    if _open:
        take({"values": named, "step": step})
    else:
        tell({"track": {"values": named, "step": step}})


def take(event: Mapping[str, Any]) -> None:
    """What a job followed, to the trackers."""
    for tracker in _open:
        tracker.send(dict(event["values"]), int(event["step"]))


def flattened(settings: Any, path: str = "") -> dict[str, str | float | int | bool]:
    """Nested settings as dotted keys with plain values, as all trackers take them.

    >>> flattened({"training": {"lr": 0.1, "clip": None}, "seeds": [0, 1]})
    {'training.lr': 0.1, 'training.clip': 'null', 'seeds.0': 0, 'seeds.1': 1}
    """
    if isinstance(settings, Mapping | list):
        inner = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
        return {
            k: v for key, value in inner for k, v in flattened(value, f"{path}.{key}" if path else str(key)).items()
        }
    return {
        path: settings if isinstance(settings, str | int | float) else "null" if settings is None else str(settings)
    }


__all__ = [
    "PATIENCE",
    "SENDS",
    "TRACKERS",
    "Entry",
    "Place",
    "Tracker",
    "flattened",
    "follow",
    "refuse_missing",
    "sending",
    "take",
    "tracking",
]
