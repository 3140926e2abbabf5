"""``precision: auto``: bfloat16 where the device has units for it, written out, kept by a run folder wherever it is resumed.

A machine with or without such units is made by replacing ``can_half``: every CPU computes bfloat16, only slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.models.half import can_half
from eunoe.precision import auto, written_out
from eunoe.recipe import recipe_of
from tests.tiny_run import as_before_0_2, state, tiny_settings

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of CPUs: a GPU decides by itself")
EXEMPT = ("times.jsonl", "environment.json", "report.html", "recipe.yaml", "finished.json")


def machine(patch: pytest.MonkeyPatch, units: bool) -> None:
    """This machine's CPU has bf16 units, or not."""
    patch.setattr("eunoe.precision.can_half", lambda: units)


def settings(folder: Path, precision: str | None = None, **change: Any) -> dict[str, Any]:
    """Two methods, one with training settings of its own, and end tasks; ``precision`` in each section, or in none."""
    data = tiny_settings(folder, seeds=[0], **change)
    data["methods"] = ["cpt", {"name": "ncl", "training": {"lr": 0.003}}]
    data["evaluation"].update(matrix="ends", base=False, blocks=2)
    data["training"].update(steps=2, checkpoint_every=1)
    del data["general"], data["domains"][1]["task"]
    data["domains"][0]["task"].update(shots=4, test_rows=8)
    if precision is not None:
        data["training"]["precision"] = data["transfer"]["precision"] = precision
    return data


def study(folder: Path, **system: Any) -> dict[str, Any]:
    """A study with a grid, and a task with settings of its own."""
    data = tiny_settings(folder)
    tasks = [{"name": d["name"], **d["task"], "shots": 4, "test_rows": 8} for d in data["domains"]]
    return {
        "name": "study", "model": data["model"], "tasks": [{**tasks[0], "transfer": {"epochs": 1}}, tasks[1]], "seeds": [0],
        "systems": {"adamw": {"name": "finetune", "epochs": 2, "batch": 4, "lr": 0.002, "max_length": 16, **system}},
    }  # fmt: skip


def precisions(value: Any, key: str = "") -> list[Any]:
    """Every value under the key ``precision``, at any depth."""
    if isinstance(value, dict):
        return [found for k, v in value.items() for found in precisions(v, k)]
    if isinstance(value, list):
        return [found for v in value for found in precisions(v, key)]
    return [value] if key == "precision" else []


def said(out: Path) -> set[Any]:
    found = precisions(yaml.safe_load((out / "recipe.yaml").read_text()))
    assert found
    return set(found)


def numbers(out: Path) -> dict[str, str]:
    """Rows, curves and plug-ins: what a run computed. (States also name the run, which is its recipe.)"""
    return {
        n: h for n, h in state(out).items() if Path(n).name in ("rows.jsonl", "curve.csv", "adapter_model.safetensors")
    }


def break_off(recipe: Any, out: Path, patch: pytest.MonkeyPatch) -> None:
    """Run until the first piece of work is done but not yet marked so."""
    with patch.context() as stopped:
        stopped.setattr("eunoe.cells.Board.finish", lambda *_: {}["stopped"])
        with pytest.raises(KeyError):
            run(recipe, out)


def test_the_processor_is_asked_and_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for units in ({"avx512_bf16": True, "amx_bf16": False}, {"avx512_bf16": False, "amx_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert can_half()
        assert auto() == "bf16"
    for units in ({}, {"avx512_f": True, "avx512_bf16": False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert not can_half()
        assert auto() == "float32"


@pytest.mark.parametrize(("units", "meant"), [(True, "bf16"), (False, "float32")])
def test_auto_is_what_it_says_in_domains_and_end_tasks_and_is_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool, meant: str
) -> None:
    machine(monkeypatch, units)
    run(recipe_of(settings(tmp_path)), tmp_path / "auto")
    run(recipe_of(settings(tmp_path, meant)), tmp_path / "named")
    run(recipe_of(settings(tmp_path, "float32" if units else "bf16")), tmp_path / "other")
    auto_run, named, other = (numbers(tmp_path / name) for name in ("auto", "named", "other"))
    assert said(tmp_path / "auto") == {meant}
    assert auto_run == named
    assert len(auto_run) > 6
    differ = [name for name in named if name in other and named[name] != other[name]]
    assert {name.split("/")[1] for name in differ if name.endswith("curve.csv")} == {
        "cpt.given.seed0",
        "ncl.given.seed0",
    }
    assert state(tmp_path / "auto", EXEMPT) == state(tmp_path / "named", EXEMPT)  # they are the same run


@pytest.mark.parametrize(("units", "meant"), [(True, "bf16"), (False, "float32")])
def test_auto_in_a_study_reaches_every_system_task_and_point_of_a_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool, meant: str
) -> None:
    machine(monkeypatch, units)
    data = study(tmp_path, grid={"precision": ["auto", "float32" if units else "bf16"]})
    data["tasks"][1]["transfer"] = {"precision": "auto"}
    run(recipe_of(data), tmp_path / "out")
    assert said(tmp_path / "out") == {"bf16", "float32"}
    assert precisions(yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["tasks"]) == [meant]
    run(recipe_of(study(tmp_path)), tmp_path / "auto")
    run(recipe_of(study(tmp_path, precision=meant)), tmp_path / "named")
    run(recipe_of(study(tmp_path, precision="float32" if units else "bf16")), tmp_path / "other")
    assert said(tmp_path / "auto") == {meant}
    assert numbers(tmp_path / "auto") == numbers(tmp_path / "named")
    assert numbers(tmp_path / "auto") != numbers(tmp_path / "other")


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("kind", [settings, study])
def test_a_folder_made_elsewhere_keeps_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool, kind: Any
) -> None:
    machine(monkeypatch, units)
    run(recipe_of(kind(tmp_path)), tmp_path / "whole")
    out = tmp_path / "out"
    break_off(recipe_of(kind(tmp_path)), out, monkeypatch)
    machine(monkeypatch, not units)
    run(recipe_of(kind(tmp_path)), out)
    assert state(out, ("times.jsonl",)) == state(tmp_path / "whole", ("times.jsonl",))
    key = "training.precision" if kind is settings else "systems.adamw.precision"
    other = recipe_of(kind(tmp_path), {key: "float32" if units else "bf16"})
    with pytest.raises(EunoeError, match=r"precision: '(bf16|float32)' there"):
        run(other, out)


@pytest.mark.parametrize("kind", [settings, study])
def test_a_folder_of_an_earlier_version_that_says_auto_stays_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    machine(monkeypatch, False)
    run(recipe_of(kind(tmp_path)), tmp_path / "whole")
    out = tmp_path / "out"
    break_off(recipe_of(kind(tmp_path)), out, monkeypatch)
    recipe = out / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("precision: float32", "precision: auto"))
    as_before_0_2(out)
    machine(monkeypatch, True)
    run(recipe_of(kind(tmp_path)), out)
    assert said(out) == {"auto"}  # the folder's own recipe is left as it was
    assert numbers(out) == numbers(tmp_path / "whole")


def test_an_lm_head_is_trained_in_float32_whatever_auto_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = settings(tmp_path)
    data["model"]["head"] = "train"
    data["head"] = {"corpora": [data["domains"][0]["corpus"]], "steps": 3, "batch": 2, "block": 16, "rank": 2}
    data["methods"] = ["ncl"]
    heads = []
    for units in (True, False):
        machine(monkeypatch, units)
        run(recipe_of(data), tmp_path / str(units))
        heads.append(load_file(tmp_path / str(units) / "head/patch.safetensors"))
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert numbers(tmp_path / "True") != numbers(tmp_path / "False")


def test_a_recipe_without_auto_is_left_alone(tmp_path: Path) -> None:
    recipe = recipe_of(settings(tmp_path, "float32"))
    assert written_out(recipe) is recipe
