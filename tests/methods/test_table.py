"""A method from outside the package: listed, learnt, recorded; and packages that are broken harm nobody but themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.methods import METHODS
from eunoe.methods.facts import rows, table
from eunoe.methods.table import Table
from eunoe.plan import resolve
from eunoe.recipe import load_recipe
from tests.methods.installed import EXAMPLE, install, install_example
from tests.tiny_run import tiny_recipe

GOOD = "from eunoe.methods import METHODS, Entry\nfrom eunoe.methods.ncl import Ncl, NclSettings\nROW = Entry(Ncl, NclSettings, 'fine')\n"


def read(*folders: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Table, list[str]]:
    """The table of a process that has these packages, and the lines that it says."""
    said: list[str] = []
    own = {name: entry for name, entry in METHODS.items() if not entry.package}
    monkeypatch.setattr("eunoe.methods.table.say_once", said.append)
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    found = Table(own)
    assert list(found)[: len(own)] == list(own)
    return found, said


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's package, whose row stands in METHODS as in a process that began with it installed."""
    found, said = read(install_example(tmp_path / "site"), monkeypatch=monkeypatch)
    assert said == []
    monkeypatch.setitem(METHODS, "near", found["near"])


def test_the_example_is_short_and_passes_the_contract_as_its_author_runs_it(tmp_path: Path) -> None:
    """Among it whole runs: scored, in the report, resumed to the same bytes, verified."""
    assert len((EXAMPLE / "eunoe_near.py").read_text().splitlines()) < 40
    path = os.pathsep.join([str(install_example(tmp_path / "site")), *sys.path])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--pyargs", "eunoe.contract"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^2\d passed, 1 skipped", done.stdout, re.MULTILINE), done.stdout[-300:]


@pytest.mark.usefixtures("near")
def test_a_method_of_a_package_is_listed_with_it_and_stays_out_of_our_page() -> None:
    (line,) = [line for line in rows() if line[0] == "near"]
    assert line[-1].endswith("[eunoe-near 1.0]")
    assert "`near`" not in table()


@pytest.mark.usefixtures("near")
def test_the_recipe_on_the_page_takes_it(tmp_path: Path) -> None:
    page = (EXAMPLE.parents[1] / "docs" / "own_method.md").read_text(encoding="utf-8")
    (methods,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    ways = resolve(load_recipe(tiny_recipe(tmp_path, seeds=[0], **yaml.safe_load(methods)))).sequences
    assert [(way.label, way.method.settings[-1].strength) for way in ways if way.method and "near" in way.method.names] == [
        ("near", 1.0), ("both", 1.0),
    ]  # fmt: skip


@pytest.mark.usefixtures("near")
def test_a_run_records_the_package_and_says_when_another_version_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tiny_recipe(tmp_path, methods=["ncl", {"name": ["ncl", "near"], "label": "both"}], seeds=[0])
    report = run(load_recipe(file), tmp_path / "out", "x")
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert {key: value for key, value in environment.items() if key.startswith("method ")} == {
        "method near": "eunoe-near 1.0"
    }
    assert "eunoe-near 1.0" in report.read_text(encoding="utf-8")
    capsys.readouterr()
    (tmp_path / "out" / "finished.json").unlink()  # as if it had been stopped
    run(load_recipe(file), tmp_path / "out", "x")
    assert "begun with" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "site")
    other, _ = read(install_example(tmp_path / "other", "1.1"), monkeypatch=monkeypatch)
    monkeypatch.setitem(METHODS, "near", other["near"])
    (tmp_path / "out" / "finished.json").unlink()
    run(load_recipe(file), tmp_path / "out", "x")
    assert "was begun with the method near of eunoe-near 1.0; it is now of eunoe-near 1.1" in capsys.readouterr().err


# -- packages that are wrong ---------------------------------------------------------------------------------------------
BROKEN = {
    "needs_what_is_not_there": ("import not_there\nROW = 1\n", "No module named 'not_there'"),
    "does_not_parse": ("ROW = (\n", "was never closed"),
    "lacks_the_name": ("", "has no attribute 'ROW'"),
    "ends_the_program": ("import sys\nsys.exit()\n", "ends the program"),
    "brings_a_class": ("from eunoe.methods.ncl import Ncl as ROW\n", "not an eunoe.methods.Entry"),
    "swaps_its_parts": (GOOD + "ROW = Entry(NclSettings, Ncl, 'swapped')\n", "method: a class on eunoe.methods.base.Method; settings:"),
    "says_nothing": (GOOD + "ROW = Entry(Ncl, NclSettings, None, arithmetic='two')\n", "text; arithmetic: a number"),
    "reads_what_is_not": (GOOD + "ROW = Entry(Ncl, NclSettings, 'x', reads=frozenset({'all'}))\n", "reads: a set"),
}  # fmt: skip


def test_broken_packages_are_named_once_each_and_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [install(tmp_path / "good", "good", "3.0", {"fine": "eunoe_test_good:ROW"}, eunoe_test_good=GOOD)]
    for i, (name, (code, _)) in enumerate(BROKEN.items()):
        folders.append(install(tmp_path / name, f"bad-{i}", "0.1", {name: f"{name}:ROW"}, **{name: code}))
    folders.append(install(tmp_path / "torn", "torn", "0.2", "no equals sign\n"))
    folders.append(install(tmp_path / "empty", "empty", "0.3", {"of-nothing": ":"}))
    found, said = read(*folders, monkeypatch=monkeypatch)
    assert found["fine"].package == "good 3.0"
    assert set(found) == {*METHODS, "fine"}
    for i, (name, (_, reason)) in enumerate(BROKEN.items()):
        (line,) = [line for line in said if f"bad-{i} 0.1" in line]
        assert line.startswith(f"warning: the method {name} of the package bad-{i} 0.1 is left out: ")
        assert reason in line
        with pytest.raises(EunoeError, match=f"the method {name} of the package bad-{i} 0.1 is left out"):
            found[name]
    assert [line for line in said if "torn 0.2" in line and "entry_points.txt is damaged" in line]
    assert [line for line in said if "empty 0.3" in line]
    assert len(said) == len(BROKEN) + 2


def test_names_that_are_taken_stay_with_their_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "ncl": "eunoe_test_good:ROW",
        "CPT": "eunoe_test_good:ROW",
        "a/b": "eunoe_test_good:ROW",
        "fine": "eunoe_test_good:ROW",
    }
    one = install(tmp_path / "one", "one", "1", points, eunoe_test_good=GOOD)
    two = install(tmp_path / "two", "two", "2", {"fine": "eunoe_test_good:ROW"})
    found, said = read(one, two, monkeypatch=monkeypatch)
    assert dict(found) == dict(METHODS)
    assert sum("is a method of eunoe, and that is the one used. Rename the entry point." in line for line in said) == 2
    assert any("the name 'a/b' is not allowed" in line for line in said)
    with pytest.raises(
        EunoeError, match=r"of the package (one 1 and two 2|two 2 and one 1) is left out: two packages take one name"
    ):
        found["fine"]


def test_a_package_found_twice_on_the_path_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"fine": "eunoe_test_good:ROW"}
    old = install(tmp_path / "old", "twice", "1", points, eunoe_test_good=GOOD)
    new = install(tmp_path / "new", "twice", "2", points, eunoe_test_good=GOOD)
    found, said = read(old, new, monkeypatch=monkeypatch)
    assert (found["fine"].package, said) == ("twice 2", []), "the first on the path, as it is for imports"
