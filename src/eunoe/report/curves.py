"""Numbers over optimizer steps as a run folder keeps them: ``curve.csv`` and ``observed.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eunoe.foreign import reading
from eunoe.report.files import clean, finite, read_table, step

HEAD = "LM head"
LOSS = "loss"
ADVICE = "Its numbers are lost; delete it, and the folder it stands in to make them again."


@dataclass(frozen=True)
class Curve:
    """A number over optimizer steps in one training: the training loss (nats), unless it is said to be another."""

    label: str
    seed: int
    steps: tuple[int, ...]
    loss: tuple[float, ...]


def curve(label: str, seed: int, points: Mapping[int, float]) -> Curve:
    """The points in the order of their steps."""
    steps = sorted(points)
    return Curve(label, seed, tuple(steps), tuple(points[one] for one in steps))


def read_curve(file: Path) -> dict[int, float]:
    """Step -> training loss of a ``curve.csv``; raises ``EunoeError`` naming it where anything in it is none."""
    with reading(file, ADVICE):
        return {step(line["step"]): finite(line["loss"]) for line in read_table(file, ("step", LOSS), ADVICE)}


def read_observed(file: Path) -> dict[str, dict[int, float]]:
    """Metric -> step -> value of an ``observed.csv``, metrics as they first appear; raises ``EunoeError`` as ``read_curve``."""
    observed: dict[str, dict[int, float]] = {}
    with reading(file, ADVICE):
        for line in read_table(file, ("step", "metric", "value"), ADVICE):
            observed.setdefault(clean(line["metric"]), {})[step(line["step"])] = finite(line["value"])
    return observed


__all__ = ["HEAD", "LOSS", "Curve", "curve", "read_curve", "read_observed"]
