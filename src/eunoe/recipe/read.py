"""A recipe from strict YAML, and back.

``load_recipe(path, overrides)`` reads YAML as data (never as code), applies ``a.b=value`` overrides and the chosen
scale, refuses unknown keys with their close matches and wrong types with the value received.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown
from eunoe.recipe.build import build
from eunoe.recipe.check import check_recipe, check_study
from eunoe.recipe.override import override
from eunoe.recipe.settings import Recipe, Study


class _Loader(yaml.SafeLoader):
    """Safe YAML; also reads ``1e-4`` as the number it is (YAML 1.1 wants ``1.0e-4``) and refuses repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        for key in seen:
            if seen.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML as data; raises ``EunoeError`` naming ``where`` and the place of the fault."""
    try:
        return _unshared(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2022-99-99
        raise EunoeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise EunoeError(f"{where} is not usable YAML: it is nested too deeply, or an alias holds itself.") from None


def _unshared(data: Any) -> Any:
    """A copy in which no part is shared, so that an override below one YAML alias leaves the others alone."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with eunoe."""
    here = Path(__file__).resolve()
    folders = [here.parents[1] / "recipes", here.parents[3] / "recipes"]
    return {p.stem: p for folder in folders if folder.is_dir() for p in sorted(folder.glob("*.yaml"))}


def load_recipe(
    path: str | Path, overrides: Sequence[tuple[str, str]] = (), scale: str | None = None
) -> Recipe | Study:
    """Read a recipe file (or a shipped recipe's name), apply a scale, then ``(dotted key, YAML value)`` overrides.

    A recipe with the key ``tasks`` is a fine-tuning study, any other a run over domains.
    Raises ``EunoeError`` for a missing file, broken YAML, unknown keys (with close matches) and wrong values.

    >>> load_recipe("demo", [("training.lr", "1e-3")]).training.lr
    0.001
    """
    file = Path(path)
    if not os.path.isfile(file):  # not Path.is_file, which raises on a name that is too long
        known = shipped_recipes()
        if str(path) not in known:
            missing = unknown(str(path), known, "recipe")
            raise EunoeError(f"{missing} Or give the path of a YAML file.")
        file = known[str(path)]
    try:
        data = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise EunoeError(f"{file} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise EunoeError(f"{file} cannot be read: {error.strerror or error}.") from None
    if not isinstance(data, dict):
        raise EunoeError(f"{file} holds {type(data).__name__}, not the keys of a recipe. See `eunoe list recipes`.")
    if scale is not None:
        chosen = lookup(_mapping(data.get("scales") or {}, "recipe.scales"), scale, "scale")
        for key, value in _unshared(_mapping(chosen, f"recipe.scales.{scale}")).items():
            override(data, str(key), value)
    return recipe_of(data, overrides)


def recipe_of(data: dict[str, Any], overrides: Sequence[tuple[str, str]] = ()) -> Recipe | Study:
    """The recipe that plain data describes, after overrides; raises as ``load_recipe``."""
    for key, text in overrides:
        override(data, key, parse_yaml(text, f"--{key}"))
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


def to_yaml(recipe: Recipe | Study) -> str:
    """The resolved recipe as YAML, all defaults written out: what ``RUN/recipe.yaml`` holds."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True, width=110)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted keys in which two resolved recipes differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path}: {old!r} there, {new!r} now"]
