"""A domain that returns, for a method that keeps something of each stage: what its text is read under, and what is proved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from eunoe import checkpoint
from eunoe.engine import run
from eunoe.methods import METHODS, Entry
from eunoe.plan import load_run
from eunoe.recipe import load_recipe
from eunoe.report.samples import read_samples
from eunoe.report.schema import read_rows
from eunoe.route import route_run
from eunoe.sequence import Walk
from eunoe.verify import verify
from tests.contract.made_up import OfOneDomain, Settings
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_settings

ORDER = ["sport", "money", "sport"]


class Twice(OfOneDomain):
    """Of each stage weights of its own, also of a domain that returns."""

    returns = True


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    monkeypatch.setitem(METHODS, "twice", Entry(Twice, Settings, "made up"))
    settings = tiny_settings(tmp_path, seeds=[0], methods=["twice"], orders={"back": ORDER})
    settings["model"] = {"name": str(tiny_folder(tmp_path, "gpt2"))}
    settings["training"] |= {"steps": 3, "lr": 0.05}
    settings["evaluation"] |= {"blocks": 4, "base": False, "prompts": ["good"], "answer_tokens": 2}
    for domain in settings["domains"]:
        del domain["task"]
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run(load_recipe(file), tmp_path / "out")
    return tmp_path / "out"


def test_text_is_read_under_the_latest_visit_and_every_visit_is_proved(out: Path) -> None:
    plan = load_run(out)
    (way,) = (way for way in plan.sequences if way.method is not None)
    assert way.names == ["sport", "money", "sport#2"]
    assert [way.reads_as("sport", i) for i in (-1, 0, 1, 2)] == [None, "sport", "sport", "sport#2"]
    assert way.reads_as("general", 2) is None

    scores = {(len(row.learnt), row.task): row.value for row in read_rows(out / "rows.jsonl") if row.method == "twice"}
    assert scores[1, "sport"] == scores[2, "sport"], "the first visit's weights do not move"
    assert scores[3, "sport"] != scores[2, "sport"], "the second visit's are others"
    walk = Walk(way, plan.recipe.model, out)
    walk.after(2)
    ids = walk.load(2).groups["probe"]["input_ids"]
    assert not walk.read("sport", ids).equal(walk.read("sport#2", ids))
    assert walk.load(2).groups["probe"]["states"].equal(walk.read("sport#2", ids))

    findings = [(f.domain, f.promised, f.broken) for f in verify(out) if f.domain in way.names]
    assert findings == [(name, True, False) for name in way.names]
    assert {s.reads_as for s in read_samples(out / "samples.jsonl")} == {None, "sport#2"}
    assert "twice" in route_run(out)


def test_a_state_that_several_finals_hold_is_named_by_all_of_them(out: Path) -> None:
    """An end task resumes by that name: with the last final's alone it would go on from another state of the first stages."""
    (way,) = (way for way in load_run(out).sequences if way.method is not None)

    def name() -> str:
        walk = Walk(way, load_run(out).recipe.model, out)
        walk.after(1)
        return walk.start

    before, final = name(), out / way.stage_key(0) / "final"
    assert name() == before
    groups, identity = checkpoint.load(final).groups, checkpoint.identity_of(final)
    groups["weights"]["slot"] += 1
    shutil.rmtree(final.parent)
    checkpoint.save(final, groups, identity)
    assert name() != before
