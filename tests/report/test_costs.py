"""What a method says it keeps stands in the run folder and on the page."""

from __future__ import annotations

import doctest
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eunoe import checkpoint
from eunoe.engine import run
from eunoe.methods import METHODS, Entry, Together
from eunoe.methods import base as methods_base
from eunoe.recipe import load_recipe
from eunoe.report import costs
from eunoe.report.page import write_report
from eunoe.report.read import damaged, read_run
from tests.contract.made_up import AllWeights, Fisher, OfOneDomain, Settings
from tests.tiny import tiny_bert
from tests.tiny_run import tiny_settings


class Keeps(AllWeights):
    """A buffer of 100 numbers more with each domain, and a teacher while it learns."""

    def __init__(self, model: Any, settings: Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.rows = torch.zeros(0)

    def end(self, stage: Any) -> None:
        self.rows = torch.zeros(len(self.rows) + 100)

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": {"rows": self.rows}, "name": "text"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = state["buffer"]["rows"].clone()

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "teacher <on disk>": 5_000_000}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sizes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eunoe.progress.console.quiet", True)
        patch.setitem(METHODS, "keeps", Entry(Keeps, Settings, "made up"))
        patch.setitem(METHODS, "alone", Entry(OfOneDomain, Settings, "made up"))
        settings = tiny_settings(folder, seeds=[0], methods=["ncl", "keeps", "alone"])
        settings["training"] |= {"steps": 1}
        settings["evaluation"] |= {"blocks": 4, "base": False}
        for domain in settings["domains"]:
            del domain["task"]
        file = folder / "tiny.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        run(load_recipe(file), folder / "out")
        yield folder / "out"


def test_sizes_are_those_of_the_tensors(made: Path) -> None:
    for place in made.glob("sequences/*/domains/*"):
        written = json.loads((place / "sizes.json").read_text())
        groups = checkpoint.load(place / "final").groups
        tensors = (*groups["weights"].values(), *groups["method"].get("buffer", {}).values())
        assert written["checkpoint"] == sum(t.nbytes for t in tensors), place
    kept = {(s.method, s.place): s.beside for s in read_run(made).sizes}
    assert kept == {("ncl", 0): {}, ("ncl", 1): {}, ("alone", 0): {}, ("alone", 1): {},
                    ("keeps", 0): {"buffer": 400, "teacher <on disk>": 5_000_000},
                    ("keeps", 1): {"buffer": 800, "teacher <on disk>": 5_000_000}}  # fmt: skip


def test_the_page_shows_them_by_method(made: Path) -> None:
    page = write_report(made).read_text(encoding="utf-8")
    section = page.split("<h2>What it costs</h2>")[1].split("</section>")[0]
    lines = [line for line in section.splitlines() if line.startswith("<tr>")]
    assert len(lines) == 6, "beside what they reached, and once more with the first domain's"
    costs, parts = [line for line in lines if ">keeps<" in line]
    assert ">5.00 MB<" in costs
    assert "teacher &lt;on disk&gt; 5.00 MB, buffer 800 B" in parts
    alone, _ = [line for line in lines if ">alone<" in line]
    assert "64 B" in alone, "16 numbers of one domain"


BAD = ["[]", "{}", '{"checkpoint": 1}', '{"checkpoint": -1, "beside": {}}', '{"checkpoint": 1, "beside": {"a": "b"}}',
       '{"checkpoint": 1.5, "beside": {}}', '{"checkpoint": true, "beside": []}']  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_damaged_sizes_are_named_and_the_page_goes_without(made: Path, tmp_path: Path, text: str) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    file = next(out.glob("sequences/keeps*/domains/0-*/sizes.json"))
    file.write_text(text)
    assert [str(one.file) for one in damaged(out)] == [str(file)]
    page = write_report(out).read_text(encoding="utf-8")
    assert "does not hold" in page
    assert "<h2>What it costs</h2>" in page, "of the others"


def test_of_many_parts_the_largest_are_named(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    file = next(out.glob("sequences/keeps*/domains/1-*/sizes.json"))
    file.write_text(json.dumps({"checkpoint": 1, "beside": {f"layer {i}": i for i in range(1, 31)}}))
    page = write_report(out).read_text(encoding="utf-8")
    assert "465 B" in page, "the sum of all"
    assert "layer 30 30 B, layer 29 29 B, layer 28 28 B, layer 27 27 B, layer 26 26 B, layer 25 25 B, 24 more" in page


def test_together_keeps_what_its_parts_keep() -> None:
    model = tiny_bert()
    parts = [Fisher(model, Settings(), ["a"]), Keeps(model, Settings(), ["a"])]
    parts[0].load_state_dict({"fisher": {"w": torch.zeros(3)}, "anchor": {"w": torch.zeros(2)}})
    assert Together(parts).sizes() == {"fisher: fisher": 12, "fisher: anchor": 8, "keeps: teacher <on disk>": 5_000_000}


def test_the_examples_hold() -> None:
    for module in (costs, methods_base):
        assert doctest.testmod(module).failed == 0
