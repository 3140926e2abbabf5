"""What a run folder holds, read for its report: rows, recipe, environment, curves, what was seen on the way, capacity, notes.

A folder is that of a run over domains or of a fine-tuning study; recipe.yaml says which. A study that is still running has no
rows.jsonl yet: the rows of its finished cells stand in.

Without its rows a run has no report: a damaged rows.jsonl is an error. Any other damaged file is left out, and the report
says which.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from eunoe.errors import EunoeError, Interrupted
from eunoe.foreign import reading, visible
from eunoe.recipe import parse_yaml
from eunoe.report.beside import (
    AGAIN,
    Capacity,
    Facts,
    Notes,
    Sizes,
    Time,
    count_in,
    read_facts,
    read_masks,
    read_notes,
    read_object,
    read_sizes,
    read_times,
)  # fmt: skip
from eunoe.report.curves import HEAD, LOSS, Curve, curve, read_curve, read_observed
from eunoe.report.files import clean, read_document, refuse
from eunoe.report.matrices import BASE, matrix_csv
from eunoe.report.samples import Sample, read_samples
from eunoe.report.schema import Row, read_rows
from eunoe.report.settings import StudySettings, study_settings

RECIPE = 1_000_000
"""Bytes of the largest recipe."""
T = TypeVar("T")


class Damage(NamedTuple):
    """A file that cannot be read, or says something else than the rows, and why: the whole sentence, naming the file."""

    file: Path
    why: str


@dataclass(frozen=True)
class Run:
    """What one run folder holds. None where the file is not there, or damaged."""

    name: str
    rows: list[Row]
    recipe: str | None
    environment: dict[str, Any] | None
    study: StudySettings | None
    """None: a run over domains."""
    curves: dict[tuple[str, int, str], list[Curve]]
    """(order, place in it, domain) -> curves, labelled with the bare method."""
    observed: dict[tuple[str, str], list[Curve]]
    """Of a study: (task, what) -> curves, labelled as in the rows; what is ``loss`` or a metric seen while it trained."""
    capacity: list[Capacity]
    sizes: list[Sizes]
    notes: list[Notes]
    samples: list[Sample]
    facts: dict[str, Facts]
    """Label -> what that method is; of a run that an earlier version wrote, nothing."""
    times: list[Time] | None
    """None where they were not asked for."""
    damaged: list[str]
    """A sentence for each file that was left out; its path is that in the run folder."""


class Reader:
    """Reads optional files of a folder and remembers the damaged ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[Damage] = []

    def read(self, read: Callable[[Path], T], file: Path) -> T | None:
        """What ``read`` makes of the file; None where there is no file, or it is damaged."""
        if not os.path.lexists(file):
            return None
        try:
            return read(file)
        except Interrupted:
            raise
        except EunoeError as error:
            self.damaged.append(Damage(file, str(error)))
            return None

    @property
    def sentences(self) -> list[str]:
        """What is damaged, by paths in the folder: a page says nothing of the machine it was made on."""
        sentences = []
        for file, why in self.damaged:
            inside = clean(str(file.relative_to(self.folder)))
            for path in (clean(str(file)), visible(file)):
                why = why.replace(path, inside)
            sentences.append(f"damaged, and left out: {why}")
        return sentences


def read_run(folder: str | Path, *, times: bool = False) -> Run:
    """Everything in ``folder`` that a report shows. All but the rows may be missing. ``times``: how long things took as well, which
    differs from run to run.

    Raises ``EunoeError`` if there are no scores or a line of them is damaged; it names the file, the line and what to do.
    """
    folder = existing(folder)
    rows = read_rows(folder / "rows.jsonl") or [
        row for file in sorted(folder.glob("cells/*/*/rows.jsonl")) for row in read_rows(file)
    ]
    if not rows:
        raise EunoeError(f"{clean(str(folder))} has no scores: rows.jsonl is missing or has no whole line. Make them first: "
                         f"eunoe run RECIPE --out {clean(str(folder))}")  # fmt: skip
    rows = [_printable(row) for row in rows]
    reader = Reader(folder)
    recipe = reader.read(read_recipe, folder / "recipe.yaml")
    return Run(
        rows[0].run, rows, recipe[0] if recipe else None, reader.read(read_object, folder / "environment.json"),
        _study(recipe[1] if recipe else None, rows), _curves(reader, rows), _observed(reader), _capacity(reader, rows),
        _sizes(reader, rows), _notes(reader, rows), reader.read(read_samples, folder / "samples.jsonl") or [],
        reader.read(read_facts, folder / "methods.json") or {}, (reader.read(read_times, folder / "times.jsonl") or []) if times else None,
        reader.sentences,
    )  # fmt: skip


def existing(folder: str | Path) -> Path:
    """The folder, if there is one; raises ``EunoeError`` else."""
    if not os.path.isdir(folder):  # not Path.is_dir, which raises on a name that is too long
        name = clean(str(folder))
        raise EunoeError(f"{name} is not a folder. Make a run first: eunoe run RECIPE --out {name}")
    return Path(folder)


def read_runs(folders: Sequence[Path], *, times: bool = False) -> list[Run]:
    """The runs of several folders under names that differ: the recipe's, or as much of the path as it takes."""
    runs = [read_run(folder, times=times) for folder in folders]
    names = [run.name for run in runs]
    paths = [folder.resolve().parts for folder in folders]
    clash = [False] * len(runs)
    for depth in range(1, max(map(len, paths)) + 1):
        taken = Counter(names)
        if depth == 1:
            clash = [taken[name] > 1 for name in names]
        elif max(taken.values()) == 1:
            break
        names = [
            clean("/".join(path[-depth:])) if c else name for name, path, c in zip(names, paths, clash, strict=True)
        ]
    return [
        replace(run, name=name, rows=[replace(row, run=name) for row in run.rows])
        for run, name in zip(runs, names, strict=True)
    ]


def _printable(row: Row) -> Row:
    return replace(row, run=clean(row.run), method=clean(row.method), order=clean(row.order), task=clean(row.task),
                   metric=clean(row.metric), transfer=None if row.transfer is None else clean(row.transfer),
                   learnt=tuple(map(clean, row.learnt)))  # fmt: skip


# -- single files -----------------------------------------------------------------------------------------------
def read_recipe(file: Path) -> tuple[str, dict[str, Any]]:
    """A recipe as text and as data; raises ``EunoeError`` if it is none."""
    advice = "Put it back: without it the settings are not known."
    text = read_document(file, advice, RECIPE)
    with reading(file, advice):
        data = parse_yaml(text, clean(str(file)))
    if not isinstance(data, dict):
        refuse(clean(str(file)), "is not a recipe: it has no keys", advice)
    return re.sub(r"[^\n\t]+", lambda line: clean(line[0]), text), data


# -- studies ----------------------------------------------------------------------------------------------------
def _study(recipe: Mapping[str, Any] | None, rows: Sequence[Row]) -> StudySettings | None:
    """The study's settings; None for a run over domains. Without a recipe the rows tell which it is."""
    if recipe is None:
        plain = all(row.method == BASE and not row.learnt and row.transfer is not None for row in rows)
        return StudySettings() if plain else None
    return study_settings(recipe) if "tasks" in recipe else None


def _observed(reader: Reader) -> dict[tuple[str, str], list[Curve]]:
    """(task, what) -> curves of a study's cells: the training loss, and each metric seen while it trained.

    The label is the one the cell's rows have; where they are missing (a cell in progress), the name of its folder.
    """
    observed: dict[tuple[str, str], list[Curve]] = {}
    for cell in sorted(path for path in reader.folder.glob("cells/*/*") if path.is_dir()):
        name, _, seed = cell.name.rpartition(".seed")
        if count_in(seed) is None:
            continue
        rows = reader.read(read_rows, cell / "rows.jsonl")
        label, task = clean((rows[0].transfer or name) if rows else name), clean(cell.parent.name)
        columns = {LOSS: reader.read(read_curve, cell / "curve.csv") or {}}
        for what, points in (*columns.items(), *(reader.read(read_observed, cell / "observed.csv") or {}).items()):
            if points:
                observed.setdefault((task, what), []).append(curve(label, int(seed), points))
    return observed


# -- runs over domains ------------------------------------------------------------------------------------------
def _curves(reader: Reader, rows: Iterable[Row]) -> dict[tuple[str, int, str], list[Curve]]:
    """(order, place, domain) -> a curve per method and seed, in the order of the rows."""
    curves: dict[tuple[str, int, str], list[Curve]] = {}
    for file, method, order, seed, place, domain in _places(reader.folder, "curve.csv", rows):
        points = reader.read(read_curve, file)
        if points:
            curves.setdefault((order, place, domain), []).append(curve(method, seed, points))
    head = reader.read(read_curve, reader.folder / "head" / "curve.csv")
    if head:
        curves[("", -1, HEAD)] = [curve(HEAD, 0, head)]
    return curves


def _capacity(reader: Reader, rows: Iterable[Row]) -> list[Capacity]:
    """What each domain left of the plug-ins' units, in the order of the rows."""
    capacity = []
    for file, method, order, seed, place, domain in _places(reader.folder, "capacity.json", rows):
        masks = reader.read(read_masks, file)
        if masks is not None:
            capacity.append(Capacity(method, order, seed, place, domain, masks))
    return capacity


def _sizes(reader: Reader, rows: Iterable[Row]) -> list[Sizes]:
    """What each method kept after each domain, in the order of the rows."""
    sizes = []
    for file, method, order, seed, place, _ in _places(reader.folder, "sizes.json", rows):
        kept = reader.read(read_sizes, file)
        if kept is not None:
            sizes.append(Sizes(method, order, seed, place, *kept))
    return sizes


def _notes(reader: Reader, rows: Iterable[Row]) -> list[Notes]:
    """Notes of each sequence, by method in the order of the rows."""
    methods = {method: i for i, method in enumerate(dict.fromkeys(row.method for row in rows))}
    notes_of_methods = []
    for file in sorted(reader.folder.glob("sequences/*/notes.json")):
        notes = reader.read(read_notes, file)
        if notes is not None:
            notes_of_methods.append(Notes(clean(file.parent.name.partition(".")[0]), *notes))
    return sorted(notes_of_methods, key=lambda notes: methods.get(notes.method, len(methods)))


def _places(folder: Path, name: str, rows: Iterable[Row]) -> list[tuple[Path, str, str, int, int, str]]:
    """Each file of that name in the folder of a learnt domain: with method, order, seed, place and domain.

    Methods and orders come as in the rows, those without rows last; then seeds and places.
    """
    learnt = [row for row in rows if row.learnt]
    methods = {name: i for i, name in enumerate(dict.fromkeys(row.method for row in learnt))}
    orders = {name: i for i, name in enumerate(dict.fromkeys(row.order for row in learnt))}
    places = []
    for file in sorted(folder.glob(f"sequences/*/domains/*/{name}")):
        method, _, rest = file.parents[2].name.partition(".")
        order, _, seed = rest.rpartition(".seed")
        place, _, domain = file.parent.name.partition("-")
        if count_in(seed.removeprefix("-")) is not None and count_in(place) is not None:
            places.append((file, clean(method), clean(order), int(seed), int(place), clean(domain)))
    return sorted(
        places, key=lambda one: (methods.get(one[1], len(methods)), one[1], orders.get(one[2], len(orders)), *one[2:])
    )


# -- what is damaged --------------------------------------------------------------------------------------------
def damaged(folder: str | Path) -> list[Damage]:
    """The files of a run folder that cannot be read, or say something else than its rows; [] for a whole run.

    Made again from the rows: matrix.csv and report.html; from the last states: capacity.json, sizes.json, notes.json and samples.jsonl.
    Files that are missing are no damage, and checkpoints are checked by ``eunoe.checkpoint``.
    """
    folder = existing(folder)
    reader = Reader(folder)
    for pattern, read in FILES.items():
        for file in sorted(folder.glob(pattern)):
            reader.read(read, file)
    if not reader.damaged:
        reader.read(lambda file: _same(file, matrix_csv(read_rows(folder / "rows.jsonl"))), folder / "matrix.csv")
    return reader.damaged


def _same(file: Path, data: bytes) -> None:
    if file.read_bytes() != data:
        refuse(clean(str(file)), "does not hold the scores of rows.jsonl", AGAIN)


def _page(file: Path) -> None:
    text = read_document(file, AGAIN)
    if not text.startswith("<!DOCTYPE html>") or not text.endswith("</html>\n"):
        refuse(clean(str(file)), "is not a whole page", AGAIN)


FILES: Mapping[str, Callable[[Path], object]] = {
    "recipe.yaml": read_recipe,
    **dict.fromkeys(("environment.json", "texts.json", "finished.json"), read_object),
    **dict.fromkeys(("rows.jsonl", "cells/*/*/rows.jsonl"), read_rows),
    **dict.fromkeys(("head/curve.csv", "sequences/*/domains/*/curve.csv", "cells/*/*/curve.csv"), read_curve),
    "cells/*/*/observed.csv": read_observed,
    "sequences/*/domains/*/capacity.json": read_masks,
    "sequences/*/domains/*/sizes.json": read_sizes,
    "sequences/*/notes.json": read_notes,
    **dict.fromkeys(("samples.jsonl", "sequences/*/samples.jsonl"), read_samples),
    "methods.json": read_facts,
    "times.jsonl": read_times,
    "report.html": _page,
}
"""Each file of a run folder, and who reads it."""


__all__ = [
    "Capacity", "Damage", "Notes", "Run", "Sizes", "clean", "damaged", "existing", "read_run", "read_runs",
]  # fmt: skip
