"""Made-up methods in whole runs: stopped in the middle of every method's learning, resumed to the same bytes; and bf16 everywhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from eunoe.engine import run
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods import METHODS, Method
from eunoe.progress import Bar
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.verify import verify
from tests.contract.made_up import MADE_UP, register
from tests.tiny import tiny_folder
from tests.tiny_run import state, tiny_recipe, write_task

EXEMPT = ("times.jsonl", "environment.json")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    register(monkeypatch)


def recipe(folder: Path, **change: Any) -> Path:
    made = tiny_recipe(folder, seeds=[0])
    plain = yaml.safe_load(made.read_text())
    plain["domains"][1]["task"] = None
    plain["training"] |= {"steps": 3, "micro_batch": 2}
    plain["transfer"] |= {"epochs": 1}
    plain["evaluation"] |= {"blocks": 4, "base": False}
    made.write_text(yaml.safe_dump({**plain, **change}, sort_keys=False))
    return made


def resumed(file: Path, out: Path, monkeypatch: pytest.MonkeyPatch, stops: dict[str, int]) -> int:
    """Run until it is finished; each method's class stops the run once, after so many of its steps. Returns how often it stopped."""
    steps: dict[str, int] = {}
    for name in stops:
        method = METHODS[name].method
        real = method.after_step

        def stop_once(self: Method, name: str = name, real: Any = real) -> None:
            real(self)
            steps[name] = steps.get(name, 0) + 1
            if steps[name] == stops[name]:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(method, "after_step", stop_once)
    stopped = 0
    while True:
        try:
            run(load_recipe(file), out, "x")
            return stopped
        except Interrupted:
            stopped += 1
            assert stopped <= len(stops)


def test_a_run_of_all_made_up_methods_is_resumed_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in MADE_UP if name != "returning"]
    file = recipe(tmp_path, methods=names)
    whole, killed = tmp_path / "a" / "out", tmp_path / "b" / "out"
    run(load_recipe(file), whole, "x")
    rows = read_rows(whole / "rows.jsonl")
    for name in names:
        assert {row.task for row in rows if row.method == name} == {"sport", "money", "general"}
    stops = dict.fromkeys(
        names, 5
    )  # in the last stage, after its second step; of the one stage of two domains, after its fifth
    assert resumed(file, killed, monkeypatch, stops) == len(names)
    assert state(killed, EXEMPT) == state(whole, EXEMPT)
    findings = verify(killed)
    assert {f.sequence.split(".")[0].split()[0] for f in findings if f.promised} >= {"of-one-domain", "prompts"}
    assert not [(f.sequence, f.domain, f.text) for f in findings if f.broken]


def test_a_domain_that_returns_is_a_stage_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = {"back": ["sport", "money", "sport"]}
    file = recipe(tmp_path, methods=["returning", "ncl"], orders=orders)
    whole, killed = tmp_path / "a" / "out", tmp_path / "b" / "out"
    run(load_recipe(file), whole, "x")
    stages = sorted(p.name for p in (whole / "sequences/returning.back.seed0/domains").iterdir())
    assert stages == ["0-sport", "1-money", "2-sport#2"]
    with pytest.raises(EunoeError, match=r"recipe\.orders\.back names a domain again, which fisher cannot learn twice"):
        run(load_recipe(recipe(tmp_path, methods=["fisher"], orders=orders)), tmp_path / "c", "x")
    recipe(tmp_path, methods=["returning", "ncl"], orders=orders)
    learnt = {row.learnt for row in read_rows(whole / "rows.jsonl") if row.method == "returning"}
    assert ("sport", "money", "sport") in learnt
    assert resumed(file, killed, monkeypatch, {"returning": 8}) == 1
    assert state(killed, EXEMPT) == state(whole, EXEMPT)


# -- bf16 ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, torch.dtype]]:
    """Of every training step of any model: what is trained, whether autocast is on, and the type that a linear layer gives."""
    collected: list[tuple[str, bool, torch.dtype]] = []
    real = nn.Linear.forward
    trained: list[str] = []

    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        out = real(self, x)
        if torch.is_grad_enabled() and trained:
            collected.append((trained[-1], torch.is_autocast_enabled("cpu"), out.dtype))
        return out

    real_bar = Bar.__init__

    def bar(self: Any, name: str, *args: Any) -> None:
        trained.append(name)
        real_bar(self, name, *args)

    monkeypatch.setattr(Bar, "__init__", bar)
    monkeypatch.setattr(nn.Linear, "forward", forward)
    return collected


def half(passes: list[tuple[str, bool, torch.dtype]]) -> set[str]:
    """What was trained; all of it in bf16."""
    assert passes
    assert {(on, dtype) for _, on, dtype in passes} == {(True, torch.bfloat16)}
    return {name for name, *_ in passes}


def test_every_stage_and_end_task_of_a_run_is_in_bf16_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[str, bool, torch.dtype]]
) -> None:
    plain = yaml.safe_load(recipe(tmp_path).read_text())
    file = recipe(
        tmp_path, methods=["ncl", "old-rows"], training={**plain["training"], "precision": "bf16"},
        transfer={**plain["transfer"], "precision": "bf16"},
    )  # fmt: skip
    whole, killed = tmp_path / "a" / "out", tmp_path / "b" / "out"
    run(load_recipe(file), whole, "x")
    trained = {
        f"{name} · seed 0 · {what}" for name in ("ncl", "old-rows") for what in ("sport", "money", "end task sport")
    }
    assert half(seen) == trained
    seen.clear()
    assert resumed(file, killed, monkeypatch, {"ncl": 2, "old-rows": 5}) == 2
    assert half(seen) == trained
    assert state(killed, EXEMPT) == state(whole, EXEMPT)
    seen.clear()
    plain["training"]["precision"] = plain["transfer"]["precision"] = "float32"
    file = recipe(tmp_path, methods=["ncl"], training=plain["training"], transfer=plain["transfer"])
    run(load_recipe(file), tmp_path / "c", "x")
    assert {(on, dtype) for _, on, dtype in seen} == {(False, torch.float32)}, "and what is told apart can be told"


def test_every_cell_of_a_study_is_in_bf16_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[str, bool, torch.dtype]]
) -> None:
    rows = {"train": str(write_task(tmp_path / "a.csv", 1)), "test": str(write_task(tmp_path / "b.csv", 2))}
    common = {"name": "finetune", "epochs": 2, "batch": 8, "max_length": 32, "precision": "bf16", "checkpoint_every": 2}
    study = {
        "name": "half", "model": {"name": str(tiny_folder(tmp_path)), "dropout": 0.1},
        "tasks": [{"name": "one", **rows}, {"name": "two", **rows}], "seeds": [0, 1],
        "systems": {"adamw": common, "recadam": {**common, "optimizer": "recadam"}},
    }  # fmt: skip
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    run(load_recipe(file), tmp_path / "a" / "out", "x")
    trained = {f"{t} · {s} · seed {seed}" for t in ("one", "two") for s in ("adamw", "recadam") for seed in (0, 1)}
    assert half(seen) == trained
    seen.clear()
    real, steps = Method.after_step, []

    def stop_twice(self: Method) -> None:
        real(self)
        steps.append(1)
        if len(steps) in (4, 21):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Method, "after_step", stop_twice)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(load_recipe(file), tmp_path / "b" / "out", "x")
    run(load_recipe(file), tmp_path / "b" / "out", "x")
    assert half(seen) == trained
    assert state(tmp_path / "b" / "out", EXEMPT) == state(tmp_path / "a" / "out", EXEMPT)
