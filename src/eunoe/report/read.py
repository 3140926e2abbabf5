"""What a run folder holds, read for its report: rows, recipe, environment, curves, what was seen on the way, capacity.

A folder is that of a run over domains or of a fine-tuning study; recipe.yaml says which. A study that is still at work has no
rows.jsonl yet: the rows of its finished cells stand in.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError
from eunoe.plugins.capacity_report import BY_DOMAIN
from eunoe.recipe import parse_yaml
from eunoe.report.schema import Row, read_rows
from eunoe.report.tables import BASE

HEAD = "LM head"
LOSS = "loss"


@dataclass(frozen=True)
class Curve:
    """A number over optimizer steps in one training: the training loss (nats), unless it is said to be another."""

    label: str
    seed: int
    steps: tuple[int, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Room:
    """The units of CPT's plug-ins after one domain of one sequence: ``masks`` has one mapping a layer, part and side."""

    method: str
    order: str
    seed: int
    place: int
    domain: str
    masks: list[dict[str, Any]]


@dataclass(frozen=True)
class StudySettings:
    """What the recipe of a study says that its rows do not; nothing where recipe.yaml is gone."""

    tasks: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Task -> the seeds it is reported on."""
    search_seed: int | None = None
    search_by: str = "last"
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """System or point -> task, or ``anchor_distance@TASK`` or ``loss@TASK`` -> the published number."""
    published_note: str | None = None
    """What the published numbers are, in the recipe's words."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds. None where the file is not there."""

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
    rooms: list[Room]


def read_run(folder: Path) -> Run:
    """Everything in ``folder`` that a report shows. Raises ``EunoeError`` if there are no scores; all else may be missing."""
    if not folder.is_dir():
        raise EunoeError(f"{folder} is no folder. Make a run first: eunoe run RECIPE --out {folder}")
    rows = read_rows(folder / "rows.jsonl") or [
        row for file in sorted(folder.glob("cells/*/*/rows.jsonl")) for row in read_rows(file)
    ]
    if not rows:
        raise EunoeError(
            f"{folder} has no scores: rows.jsonl is missing or empty. Make them first: eunoe run RECIPE --out {folder}"
        )
    rows = [_printable(row) for row in rows]
    file = folder / "recipe.yaml"
    recipe = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    environment = None
    with suppress(OSError, ValueError):
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return Run(
        rows[0].run, rows, recipe, environment if isinstance(environment, dict) else None, _study(recipe, rows),
        read_curves(folder, rows), read_observed(folder), read_rooms(folder, rows),
    )  # fmt: skip


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of several folders under names that differ: the recipe's, or as much of the path as it takes."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        again = {name for name in names if names.count(name) > 1}
        if depth == 1:
            clash = [name in again for name in names]
        elif not again:
            break
        names = ["/".join(path[-depth:]) if c else name for name, path, c in zip(names, paths, clash, strict=True)]
    return [
        replace(run, name=name, rows=[replace(row, run=name) for row in run.rows])
        for run, name in zip(runs, names, strict=True)
    ]


def clean(text: str) -> str:
    """The text as any font and encoding can take it: half surrogates and control characters become U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _printable(row: Row) -> Row:
    return replace(row, run=clean(row.run), method=clean(row.method), order=clean(row.order), task=clean(row.task),
                   metric=clean(row.metric), transfer=None if row.transfer is None else clean(row.transfer),
                   learnt=tuple(map(clean, row.learnt)))  # fmt: skip


# -- studies ----------------------------------------------------------------------------------------------------
def _study(recipe: str | None, rows: Sequence[Row]) -> StudySettings | None:
    """The study's settings; None for a run over domains. Without a recipe the rows tell which it is."""
    data: Any = None
    with suppress(EunoeError):
        data = parse_yaml(recipe, "recipe.yaml") if recipe is not None else None
    if not isinstance(data, dict):
        plain = all(row.method == BASE and not row.learnt and row.transfer is not None for row in rows)
        return StudySettings() if plain else None
    return study_settings(data) if "tasks" in data else None


def study_settings(recipe: Mapping[str, Any]) -> StudySettings:
    """The settings that a report of a study needs, from the recipe as plain data; what is no such setting is left out."""

    def mapping(value: Any) -> dict[str, Any]:
        return {clean(str(k)): v for k, v in value.items()} if isinstance(value, dict) else {}

    listed = recipe.get("tasks")
    tasks = [t for t in listed if isinstance(t, dict) and "name" in t] if isinstance(listed, list) else []
    every = recipe.get("seeds")
    seeds = {clean(str(t["name"])): t.get("seeds") or every for t in tasks}
    search = mapping(recipe.get("search"))
    seed = search.get("seed")
    published = {s: mapping(scores) for s, scores in mapping(recipe.get("published")).items()}
    return StudySettings(
        tasks=tuple(seeds),
        systems=tuple(mapping(recipe.get("systems"))),
        seeds={k: tuple(s for s in v if isinstance(s, int)) for k, v in seeds.items() if isinstance(v, list)},
        search_seed=seed if isinstance(seed, int) else None,
        search_by=str(search.get("by", "last")),
        published={
            s: {t: float(v) for t, v in of.items() if isinstance(v, int | float)} for s, of in published.items()
        },
        published_note=clean(str(recipe["published_note"])) if recipe.get("published_note") else None,
    )


def read_observed(folder: Path) -> dict[tuple[str, str], list[Curve]]:
    """(task, what) -> curves of a study's cells: the training loss, and each metric seen while it trained.

    The label is the one the cell's rows have; where they are missing (a cell at work), the name of its folder.
    """
    found: dict[tuple[str, str], list[Curve]] = {}
    for cell in sorted(path for path in folder.glob("cells/*/*") if path.is_dir()):
        name, _, seed = cell.name.rpartition(".seed")
        if not seed.isdecimal():
            continue
        rows = read_rows(cell / "rows.jsonl")
        label, task = clean((rows[0].transfer or name) if rows else name), clean(cell.parent.name)
        for what, points in (*_columns(cell / "curve.csv"), *_long(cell / "observed.csv")):
            if points:
                steps = sorted(points)
                curve = Curve(label, int(seed), tuple(steps), tuple(points[step] for step in steps))
                found.setdefault((task, what), []).append(curve)
    return found


def _columns(file: Path) -> Iterator[tuple[str, dict[int, float]]]:
    if file.is_file():
        curve = _curve(file, "", 0)
        yield LOSS, dict(zip(curve.steps, curve.loss, strict=True))


def _long(file: Path) -> Iterator[tuple[str, dict[int, float]]]:
    """Each metric of a table of (step, metric, value), in the order they first appear."""
    found: dict[str, dict[int, float]] = {}
    for line in _lines(file):
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            step, value = int(line["step"]), float(line["value"])
            if isfinite(value) and step >= 0:
                found.setdefault(clean(line["metric"]), {})[step] = value
    yield from found.items()


# -- runs over domains ------------------------------------------------------------------------------------------
def read_curves(folder: Path, rows: Sequence[Row] = ()) -> dict[tuple[str, int, str], list[Curve]]:
    """The learning curves of a run folder: (order, place, domain) -> a curve per method and seed, in the order of the rows.

    A line cut short by a kill, or with a loss that is no finite number, is left out; so is a file without the columns
    ``step`` and ``loss``.
    """
    found: dict[tuple[str, int, str], list[Curve]] = {}
    for file, method, order, seed, place, domain in _places(folder, "curve.csv", rows):
        curve = _curve(file, method, seed)
        if curve.steps:
            found.setdefault((order, place, domain), []).append(curve)
    head = folder / "head" / "curve.csv"
    if head.is_file() and (curve := _curve(head, HEAD, 0)).steps:
        found[("", -1, HEAD)] = [curve]
    return found


def read_rooms(folder: Path, rows: Sequence[Row] = ()) -> list[Room]:
    """What each domain left of the plug-ins' room, in the order of the rows; a file that is broken is left out."""
    found = []
    for file, method, order, seed, place, domain in _places(folder, "capacity.json", rows):
        masks: Any = None
        with suppress(OSError, ValueError):
            masks = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(masks, list) and masks and all(map(_is_mask, masks)):
            found.append(Room(method, order, seed, place, domain, [_printable_mask(mask) for mask in masks]))
    return found


def _is_mask(mask: Any) -> bool:
    if not isinstance(mask, dict) or not all(isinstance(mask.get(key), str) for key in ("layer", "part", "units")):
        return False
    counts = [mask.get(key) for key in ("size", "used", "shared", "free")]
    for of in (mask.get(key, {}) for key in BY_DOMAIN):
        if not isinstance(of, dict):
            return False
        counts += of.values()
    return all(isinstance(count, int) and count >= 0 for count in counts) and bool(mask["size"])


def _printable_mask(mask: dict[str, Any]) -> dict[str, Any]:
    """Its names as any font can take them; what it does not say by domain is empty."""
    by_domain = {key: {clean(name): n for name, n in mask.get(key, {}).items()} for key in BY_DOMAIN}
    return {**mask, **{key: clean(mask[key]) for key in ("layer", "part", "units")}, **by_domain}


def _places(folder: Path, name: str, rows: Sequence[Row]) -> list[tuple[Path, str, str, int, int, str]]:
    """Each file of that name in the folder of a learnt domain: with method, order, seed, place and domain.

    Methods and orders come as in the rows, those without rows last; then seeds and places.
    """
    learnt = [row for row in rows if row.learnt]
    methods, orders = (
        [*dict.fromkeys(names)] for names in ([row.method for row in learnt], [row.order for row in learnt])
    )

    def rank(names: list[str], name: str) -> tuple[int, str]:
        return names.index(name) if name in names else len(names), name

    found = []
    for file in sorted(folder.glob(f"sequences/*/domains/*/{name}")):
        method, _, rest = file.parents[2].name.partition(".")
        order, _, seed = rest.rpartition(".seed")
        place, _, domain = file.parent.name.partition("-")
        if seed.lstrip("-").isdigit() and place.isdigit():
            found.append((file, clean(method), clean(order), int(seed), int(place), clean(domain)))
    return sorted(found, key=lambda of: (rank(methods, of[1]), rank(orders, of[2]), of[3:]))


def _curve(file: Path, label: str, seed: int) -> Curve:
    points: dict[int, float] = {}
    for line in _lines(file):
        with suppress(KeyError, TypeError, ValueError):
            step, loss = int(line["step"]), float(line["loss"])
            if isfinite(loss) and step > 0:
                points[step] = loss
    return Curve(label, seed, tuple(sorted(points)), tuple(points[step] for step in sorted(points)))


def _lines(file: Path) -> Iterator[dict[str, str]]:
    if file.is_file():
        with open(file, encoding="utf-8", errors="replace", newline="") as lines:
            yield from csv.DictReader(lines)


__all__ = [
    "HEAD", "LOSS", "Curve", "Room", "Run", "StudySettings", "clean", "read_curves", "read_observed", "read_rooms", "read_run",
    "read_runs", "study_settings",
]  # fmt: skip
