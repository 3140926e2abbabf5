"""A recipe as resolved, as YAML and back, and whether two are the same run.

``RUN/recipe.yaml`` holds every key with its value. A later version reads it and fills the keys it has added with their
defaults, so a run folder stays the folder of its run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from eunoe.errors import EunoeError
from eunoe.recipe.read import recipe_of
from eunoe.recipe.settings import Recipe, Study
from eunoe.recipe.strict import parse_yaml, read_text

AnyRecipe = Recipe | Study


def to_yaml(recipe: AnyRecipe) -> str:
    """The resolved recipe as YAML, all defaults written out: what ``RUN/recipe.yaml`` holds."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True, width=110)


def recipe_of_run(out: Path) -> AnyRecipe:
    """The recipe of a run folder, from its recipe.yaml.

    Raises ``EunoeError`` if there is none, or if it is damaged: not UTF-8, not YAML, cut short, or not what a run writes.
    """
    file = out / "recipe.yaml"
    if not file.is_file():
        raise EunoeError(f"{out} is not a run folder: it has no recipe.yaml. Make one: eunoe run RECIPE --out {out}")
    try:
        return _whole(read_text(file))
    except EunoeError as error:
        raise EunoeError(f"{file} is damaged, or not what this version writes: {error} Restore it from a copy, or run its recipe "
                         "again with another --out.") from None  # fmt: skip


def _whole(text: str) -> AnyRecipe:
    """The recipe that ``to_yaml`` wrote. ``scales`` is the last key that any version writes: without it the end is missing."""
    data = parse_yaml(text, "it")
    if not isinstance(data, dict):
        raise EunoeError(f"it holds {type(data).__name__}, not the keys of a recipe.")
    if "scales" not in data:
        raise EunoeError("it is cut short: its last key, scales, is missing.")
    return recipe_of(data)


def same_run(out: Path, recipe: AnyRecipe, resolve: Callable[[Any], AnyRecipe]) -> list[str]:
    """What differs between the recipe of the run folder ``out`` and a resolved ``recipe``; [] for the same run.

    ``resolve`` fills in the options of methods, transfers and optimizers, which their owners type (``plan.resolve(...).recipe``,
    ``study.resolve_study(...).recipe``): a key that was added since has its default there. Raises ``EunoeError`` as
    ``recipe_of_run``.
    """
    old = recipe_of_run(out)
    if type(old) is not type(recipe):
        kinds = ("a run over domains", "a fine-tuning study")
        return ["{} there, {} now".format(*(kinds[isinstance(one, Study)] for one in (old, recipe)))]
    there, now = parse_yaml(to_yaml(resolve(old)), "old"), parse_yaml(to_yaml(recipe), "new")
    there["trackers"] = now["trackers"]  # who watches changes no number
    if "auto" in (there["threads"], now["threads"]):
        there["threads"] = now["threads"]  # the run settles it: as begun, or by the model's size
    return differences(there, now)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted keys in which two resolved recipes differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path}: {old!r} there, {new!r} now"]
