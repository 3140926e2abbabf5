"""Every method of the table in a whole run: masked and causal, in bf16, with accumulation, stopped in its last stage and resumed.

An end task of the first domain follows each; ``eunoe verify`` finds every promise kept; the report has the method in its tables.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from eunoe.contract.over_methods import *  # noqa: F403
from eunoe.contract.tiny import tiny_folder
from eunoe.contract.tiny_run import state, tiny_settings
from eunoe.engine import run
from eunoe.errors import Interrupted
from eunoe.methods import METHODS, Method
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.verify import verify

EXEMPT = ("times.jsonl", "environment.json")


def recipe(folder: Path, name: str, kind: str) -> Path:
    made = tiny_settings(folder, methods=[name], seeds=[0])
    made["model"] = {"name": str(tiny_folder(folder, kind)), "dropout": 0.1}
    made["domains"][1]["task"] = None
    made["training"] |= {"steps": 3, "micro_batch": 2, "precision": "bf16"}
    made["transfer"] |= {"epochs": 1, "precision": "bf16", "max_length": 28}  # of 128 positions: beside a prompt of 100
    made["evaluation"] |= {"blocks": 4, "base": False}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_it_is_scored_resumed_to_the_same_bytes_and_keeps_its_promises(
    any_name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, method = recipe(tmp_path, any_name, kind), METHODS[any_name].method
    whole, stopped = tmp_path / "a" / "out", tmp_path / "b" / "out"
    steps, real = [], method.after_step

    def count(self: Method) -> None:
        real(self)
        steps.append(1)

    monkeypatch.setattr(method, "after_step", count)
    run(load_recipe(file), whole, "x")
    rows = [row for row in read_rows(whole / "rows.jsonl") if row.method == any_name]
    assert {row.task for row in rows} == {"sport", "money", "general"}
    assert {(row.task, row.metric) for row in rows if row.transfer} >= {("sport", "accuracy")}
    assert f">{any_name}<" in (whole / "report.html").read_text(encoding="utf-8")
    if method.stages(["sport", "money"], METHODS[any_name].settings()):
        last = len(steps) - 1

        def stop_once(self: Any) -> None:
            real(self)
            steps.append(1)
            if len(steps) == 2 * last + 1:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(method, "after_step", stop_once)
        with pytest.raises(Interrupted):
            run(load_recipe(file), stopped, "x")
    run(load_recipe(file), stopped, "x")
    assert state(stopped, EXEMPT) == state(whole, EXEMPT)
    findings = verify(whole)
    assert not [(f.domain, f.text) for f in findings if f.broken]
    assert any(f.promised for f in findings if f.domain in ("sport", "money")) == (not method.forgets and bool(steps))
