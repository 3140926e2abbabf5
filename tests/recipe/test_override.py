"""Overrides from Python: a mapping or pairs, values as Python has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eunoe.recipe import Recipe, load_recipe
from tests.recipe.refusal import refusal


@pytest.mark.parametrize(
    "overrides",
    [
        {"training.steps": 8},
        [("training.steps", 8)],
        [("training.steps", "8")],
        [["training.steps", 8]],
        (("training.steps", 8),),
        iter([("training.steps", 8)]),
        {"training.steps": np.int64(8)},
        {"training": {"steps": 8}},
    ],
)
def test_overrides_are_a_mapping_or_pairs_with_values_as_python_has_them(overrides: Any) -> None:
    recipe = load_recipe("demo", overrides)
    assert isinstance(recipe, Recipe)
    assert recipe.training.steps == 8


def test_values_keep_what_they_are() -> None:
    recipe = load_recipe("demo", {"training.clip": None, "seeds": (3, np.int32(4)), "evaluation.base": False, "about": "1 2",
                                  "general": {"source": Path("a.txt"), "column": "null"}, "training.lr": np.float32(0.5)})  # fmt: skip
    assert isinstance(recipe, Recipe)
    assert (recipe.training.clip, recipe.seeds, recipe.evaluation.base, recipe.about) == (None, [3, 4], False, "1 2")
    assert recipe.general is not None
    assert (recipe.general.source, recipe.general.column, recipe.training.lr) == ("a.txt", "null", 0.5)


def test_an_override_is_not_changed_by_what_is_done_to_the_recipe() -> None:
    given = {"training": {"lr": 0.5}, "training.lr": 0.25}
    load_recipe("demo", given)
    assert given == {"training": {"lr": 0.5}, "training.lr": 0.25}


@pytest.mark.parametrize(
    "overrides",
    ["training.steps=8", ["training.steps=8"], [("training.steps",)], [(8, "training.steps")], 7, None, [None]],
)
def test_what_are_no_overrides_is_refused_with_an_example(overrides: Any) -> None:
    message = refusal(load_recipe, "demo", overrides)
    assert "overrides: expected keys with values, as in {'training.steps': 8}" in message


@pytest.mark.parametrize("value", [{1, 2}, object(), b"8", 1j, [object()], load_recipe])
def test_a_value_that_no_recipe_can_hold_is_refused_by_its_key(value: Any) -> None:
    message = refusal(load_recipe, "demo", {"training.steps": value})
    assert message.startswith("training.steps: a recipe cannot hold ")


@pytest.mark.parametrize("path", [None, 3, b"demo", "", [], "a\0b"])
def test_a_recipe_that_is_no_path_is_refused(path: Any) -> None:
    message = "holds a NUL character" if path == "a\0b" else "the recipe is given as "
    assert message in refusal(load_recipe, path)
