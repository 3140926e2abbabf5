"""A recipe file with a scale and overrides -> ``Recipe`` or ``Study``.

``load_recipe(path, overrides)`` reads YAML as data (never as code), applies ``a.b=value`` overrides and the chosen
scale, refuses unknown keys with their close matches and wrong types with the value received.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.lookup import lookup, unknown
from eunoe.recipe.build import build
from eunoe.recipe.check import check_recipe, check_study
from eunoe.recipe.override import Overrides, override, pairs
from eunoe.recipe.paths import as_path
from eunoe.recipe.settings import Recipe, Study
from eunoe.recipe.strict import read_yaml, unshared


def shipped_recipes(inside: str = ".") -> dict[str, Path]:
    """Name -> file of the recipes that come with eunoe; those of ``eunoe pretrain`` lie ``inside`` a folder of that name."""
    here = Path(__file__).resolve()
    folders = [here.parents[1] / "recipes" / inside, here.parents[3] / "recipes" / inside]
    return {p.stem: p for folder in folders if folder.is_dir() for p in sorted(folder.glob("*.yaml"))}


def load_recipe(path: str | os.PathLike[str], overrides: Overrides = (), scale: str | None = None) -> Recipe | Study:
    """Read a recipe file (or a shipped recipe's name), apply a scale, then overrides: a mapping, or pairs, of dotted keys.

    A value that is text is read as YAML, as on the command line; any other is taken as it is. A recipe with the key
    ``tasks`` is a fine-tuning study, any other a run over domains.
    Raises ``EunoeError`` for a missing file, broken YAML, unknown keys (with close matches) and wrong values.

    >>> load_recipe("demo", {"training.lr": 1e-3, "seeds": "[0, 1]"}).training.lr
    0.001
    """
    file = as_path(path, "the recipe")
    if not os.path.isfile(file):  # not Path.is_file, which raises on a name that is too long
        known = shipped_recipes()
        if str(path) not in known:
            if os.path.isdir(file):
                raise EunoeError(f"{visible(path)} is a folder, and a recipe is a YAML file. For a folder of your texts, have one written: "
                                 f"eunoe new {shlex.quote(visible(path))}")  # fmt: skip
            missing = unknown(str(path), known, "recipe")
            raise EunoeError(f"{missing} Or give the path of a YAML file.")
        file = known[str(path)]
    data = read_yaml(file)
    if not isinstance(data, dict):
        raise EunoeError(f"{file} holds {type(data).__name__}, not the keys of a recipe. See `eunoe list recipes`.")
    if scale is not None:
        chosen = lookup(_mapping(data.get("scales") or {}, "recipe.scales"), scale, "scale")
        for key, value in unshared(_mapping(chosen, f"recipe.scales.{scale}")).items():
            override(data, str(key), value)
    return recipe_of(data, overrides)


def recipe_of(data: dict[str, Any], overrides: Overrides = ()) -> Recipe | Study:
    """The recipe that plain data describes, after overrides; raises as ``load_recipe``."""
    for key, value in pairs(overrides):
        override(data, key, value)
    if "tasks" in data:
        study = build(Study, data, "recipe")
        check_study(study)
        return study
    recipe = build(Recipe, data, "recipe")
    check_recipe(recipe)
    return recipe


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EunoeError(f"{where}: expected keys with values, received {value!r}.")
    return value
