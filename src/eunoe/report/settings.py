"""What the recipe of a fine-tuning study says that its rows do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eunoe.report.files import clean, is_count, is_number
from eunoe.report.schema import MOMENTS


@dataclass(frozen=True)
class StudySettings:
    """The settings of a study that its report needs; nothing where recipe.yaml is gone."""

    tasks: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Task -> the seeds it is reported on."""
    search_seed: int | None = None
    search_by: str = "last"
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """System or point -> task, or ``f1@TASK``, ``anchor_distance@TASK`` or ``loss@TASK`` -> the published number."""
    published_note: str | None = None
    """What the published numbers are, in the recipe's words."""
    sizes: tuple[Mapping[str, int], ...] = ()
    """Tasks of the same rows but for how many are trained on: of each such group, name -> training rows."""


def study_settings(recipe: Mapping[str, Any]) -> StudySettings:
    """The settings that a report of a study needs, from the recipe as plain data; what is no such setting is left out: the
    recipe was checked when it ran, and the page shows it whole."""

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
        seeds={k: tuple(s for s in v if is_count(s)) for k, v in seeds.items() if isinstance(v, list)},
        sizes=_sizes(tasks),
        search_seed=seed if is_count(seed) else None,
        search_by=next((at for at in MOMENTS if at == search.get("by")), MOMENTS[0]),
        published={s: {t: float(v) for t, v in scores.items() if is_number(v)} for s, scores in published.items()},
        published_note=clean(str(recipe["published_note"])) if recipe.get("published_note") else None,
    )


def _sizes(tasks: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, int], ...]:
    groups: dict[str, dict[str, int]] = {}
    for task in tasks:
        if is_count(rows := task.get("train_rows")):
            alike = {k: v for k, v in task.items() if k not in ("name", "train_rows", "transfer", "seeds")}
            groups.setdefault(repr(sorted(alike.items(), key=repr)), {})[clean(str(task["name"]))] = rows
    return tuple(names for names in groups.values() if len(set(names.values())) > 1)


__all__ = ["StudySettings", "study_settings"]
