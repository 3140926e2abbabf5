"""What is said of text that is too little for its settings, before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from eunoe.engine import plan_of
from eunoe.recipe import load_recipe
from tests.tiny_run import tiny_recipe


def test_a_batch_above_the_blocks_of_a_domain_is_said_with_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"block": 16, "batch": 4, "steps": 2, "lr": 0.005}
    methods = ["ncl", {"name": "cpt", "training": {"batch": 5000}}]  # the largest of all sequences counts
    recipe = load_recipe(tiny_recipe(tmp_path, seeds=[0], methods=["ncl"], training=training))
    capsys.readouterr()
    plan = plan_of(recipe)
    plan.prepare(tmp_path / "out")
    assert "a batch holds" not in capsys.readouterr().err
    blocks = len(plan.material.train["sport"])  # type: ignore[attr-defined]
    recipe.methods = methods
    plan_of(recipe).prepare(tmp_path / "out")
    said = [line for line in capsys.readouterr().err.splitlines() if "a batch holds" in line]
    assert len(said) == 2
    assert said[0].startswith(
        f"warning: a batch holds 5,000 blocks, but 'sport' has {blocks}: one step reads each of them {5000 / blocks:,.3g} times"
    )
    assert f"Lower batch to {blocks} or less, or give more text" in said[0]
