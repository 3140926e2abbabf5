"""Files that stand beside the rows of a run over domains: capacity, sizes, notes, what its methods are, and how long they took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eunoe.foreign import reading
from eunoe.plugins.capacity_report import BY_DOMAIN
from eunoe.report.files import clean, is_count, is_number, parse_json, read_json, read_lines, refuse

AGAIN = "Delete it and run the same command again, which makes it again."


@dataclass(frozen=True)
class Capacity:
    """The units of plug-ins after one domain of one sequence: ``masks`` has one mapping a layer, part and side."""

    method: str
    order: str
    seed: int
    place: int
    domain: str
    masks: list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """What a method kept after one domain, in bytes."""

    method: str
    order: str
    seed: int
    place: int
    checkpoint: int
    """The state of this domain, on disk."""
    beside: dict[str, int]
    """What it keeps beside the model while it learns the next domain, by what it is."""


@dataclass(frozen=True)
class Notes:
    """What a method says of its sequence, in its own words."""

    method: str
    general: str | None
    """How general text is read, such as with plug-ins off."""
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What a method of the run is: the facts by which one chooses among methods."""

    methods: tuple[str, ...]
    """Its rows in METHODS: several where they are combined."""
    naive: bool
    """Is it plain training that protects nothing?"""
    in_turn: bool
    """Does it learn one domain after another? Else all at once, or none."""
    forgets: bool
    """False: it promises that nothing learnt changes."""
    needs_domain: bool
    """Must somebody say at use which domain a text is of?"""
    old_text: bool
    """Does it keep text of earlier domains, or read it again?"""
    keeps: str
    """What it keeps of earlier domains."""
    arithmetic: float
    """A training step's arithmetic against naive training's, as METHODS says it."""
    memory: str
    """Memory in training against naive training's, as METHODS says it."""


@dataclass(frozen=True)
class Time:
    """How long one stage of one sequence was learnt."""

    method: str
    order: str
    seed: int
    place: int
    seconds: float


def read_object(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises ``EunoeError`` if there is none."""
    data = read_json(file, AGAIN)
    if not isinstance(data, dict):
        refuse(clean(str(file)), "does not hold a JSON object", AGAIN)
    return dict(data)


def read_masks(file: Path) -> list[dict[str, Any]]:
    """The masks of a ``capacity.json``, each with counts of its units; what it does not say by domain is empty.

    Raises ``EunoeError`` if there is none.
    """
    masks = read_json(file, AGAIN)
    if not isinstance(masks, list) or not masks or not all(map(_is_mask, masks)):
        refuse(clean(str(file)), "does not hold counts of units, mask by mask", AGAIN)
    return [
        {
            **mask,
            **{key: clean(mask[key]) for key in ("layer", "part", "units")},
            **{key: {clean(name): n for name, n in mask.get(key, {}).items()} for key in BY_DOMAIN},
        }
        for mask in masks
    ]


def _is_mask(mask: Any) -> bool:
    if not isinstance(mask, dict) or not all(isinstance(mask.get(key), str) for key in ("layer", "part", "units")):
        return False
    counts = [mask.get(key) for key in ("size", "used", "shared", "free")]
    for units in (mask.get(key, {}) for key in BY_DOMAIN):
        if not isinstance(units, dict):
            return False
        counts += units.values()
    return all(map(is_count, counts)) and bool(mask["size"])


def read_sizes(file: Path) -> tuple[int, dict[str, int]]:
    """Bytes of a checkpoint, and of what is kept beside the model; raises ``EunoeError`` for anything else."""
    sizes = read_object(file)
    checkpoint, beside = sizes.get("checkpoint"), sizes.get("beside")
    if not isinstance(beside, dict) or not all(map(is_count, (checkpoint, *beside.values()))):
        refuse(
            clean(str(file)),
            "does not hold sizes: checkpoint is a number of bytes, beside maps names to such numbers",
            AGAIN,
        )
    return int(checkpoint or 0), {clean(name): size for name, size in beside.items()}


def read_notes(file: Path) -> tuple[str | None, tuple[str, ...]]:
    """How general text is read, and other lines; raises ``EunoeError`` for anything else."""
    notes = read_object(file)
    general, lines = notes.get("general"), notes.get("lines", [])
    if not (general is None or isinstance(general, str)) or not (
        isinstance(lines, list) and all(isinstance(line, str) for line in lines)
    ):
        refuse(clean(str(file)), "does not hold notes: general is a text, lines is a list of texts", AGAIN)
    return None if general is None else clean(general), tuple(map(clean, lines))


def read_facts(file: Path) -> dict[str, Facts]:
    """Label -> what that method is, of a ``methods.json``; raises ``EunoeError`` for anything else."""
    return {clean(label): _facts(facts, clean(str(file))) for label, facts in read_object(file).items()}


def _facts(facts: Any, where: str) -> Facts:
    kinds: dict[str, Any] = {"methods": list, "keeps": str, "memory": str, "arithmetic": (int, float)}
    wrong = not isinstance(facts, dict) or [
        field.name for field in fields(Facts) if not isinstance(facts.get(field.name), kinds.get(field.name, bool))
    ]
    if wrong or not is_number(facts["arithmetic"]) or not all(isinstance(name, str) for name in facts["methods"]):
        refuse(where, "does not hold the facts of methods", AGAIN)
    return Facts(**{
        **{field.name: facts[field.name] for field in fields(Facts)}, "methods": tuple(map(clean, facts["methods"])),
        "keeps": clean(facts["keeps"]), "memory": clean(facts["memory"]),
    })  # fmt: skip


def read_times(file: Path) -> list[Time]:
    """The stages in a ``times.jsonl``, the last line of each; other lines are of other work. Raises ``EunoeError`` for anything else."""
    times: dict[tuple[str, str, int, int], Time] = {}
    for i, line in read_lines(file, AGAIN, appended=True):
        with reading(f"{clean(str(file))}:{i}", "Delete the line: it says how long something took, and no more."):
            data = parse_json(line)
            time = _stage_time(data) if isinstance(data, dict) else None
        if time:
            times[time.method, time.order, time.seed, time.place] = time
    return list(times.values())


def _stage_time(data: Mapping[str, Any]) -> Time | None:
    """``METHOD.ORDER.seedN/I-NAME`` was a stage; ``.../I:NAME`` a score."""
    sequence, _, stage = str(data.get("what", "")).partition("/")
    method, _, rest = sequence.partition(".")
    order, _, seed = rest.rpartition(".seed")
    place, dash, _ = stage.partition("-")
    seconds = data.get("seconds")
    if not dash or count_in(seed) is None or count_in(place) is None or not is_number(seconds) or seconds < 0:
        return None
    return Time(clean(method), clean(order), int(seed), int(place), float(seconds))


def count_in(text: str) -> int | None:
    """The number in the name of a folder.

    >>> count_in("12"), count_in("x"), count_in("\u00b2")
    (12, None, None)
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None


__all__ = [
    "AGAIN", "Capacity", "Facts", "Notes", "Sizes", "Time", "count_in", "read_facts", "read_masks", "read_notes", "read_object",
    "read_sizes", "read_times",
]  # fmt: skip
