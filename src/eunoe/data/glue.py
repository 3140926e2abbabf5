"""GLUE (being written)."""

from __future__ import annotations
from pathlib import Path
from eunoe.data.tasks import Example, Task
from eunoe.data.shots import evenly

GLUE = dict.fromkeys(("cola", "rte", "mrpc", "stsb"))


def _read(task: str, file: Path) -> list[Example]:
    lines = [x.split("\t") for x in file.read_text(encoding="utf-8-sig").splitlines() if x]
    if task == "cola":
        return [Example(x[3], None, x[1]) for x in lines]
    if task == "rte":
        return [Example(x[1], x[2], x[3]) for x in lines[1:]]
    if task == "mrpc":
        return [Example(x[3], x[4], x[0]) for x in lines[1:]]
    return [Example(x[7], x[8], float(x[9])) for x in lines[1:]]


def load_glue(name: str, task: str, root: str, train_rows: int | None, test_rows: int | None) -> Task:
    from eunoe.recipe import expand

    folder = Path(expand(root)) / task
    parts = []
    for split, most in (("train", train_rows), ("dev", test_rows)):
        rows = _read(task, folder / f"{split}.tsv")
        parts.append(tuple(rows[i] for i in evenly(len(rows), most or len(rows))))
    labels = {"cola": ("0", "1"), "mrpc": ("0", "1"), "rte": ("entailment", "not_entailment"), "stsb": ()}[task]
    metrics = {"cola": ("matthews",), "mrpc": ("accuracy", "f1"), "rte": (), "stsb": ()}[task]
    return Task(name, "classification" if labels else "regression", labels, *parts, None, metrics)
