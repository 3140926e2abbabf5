from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from eunoe.errors import EunoeError
from eunoe.methods import METHODS, choose_method
from eunoe.methods.facts import CHOICES, MARKS, choices, facts_for_report, in_page, rows, table

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
CHOOSE = PAGE.with_name("choose.md")


def test_the_pages_table_is_made_from_the_rows() -> None:
    for file in (PAGE, CHOOSE):
        page = file.read_text(encoding="utf-8")
        assert page == in_page(page), "write it anew: python -m eunoe.methods docs/methods.md"
    page = PAGE.read_text(encoding="utf-8")
    for name in METHODS:
        assert f"\n## {name}\n" in page, "each method has a paragraph under its name"


def test_every_row_has_its_facts() -> None:
    for name, entry in METHODS.items():
        assert all((entry.summary, entry.keeps, entry.memory)), name
        assert (entry.arithmetic > 0) == bool(entry.method.stages(["law"], entry.settings())), name
        assert entry.paper == "" or any(c.isdigit() for c in entry.paper), f"{name}: a paper has a year"


def test_a_fact_that_changes_changes_the_table_and_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    page = in_page(PAGE.read_text(encoding="utf-8"))
    assert "4321.5" not in page
    monkeypatch.setitem(METHODS, "cpt", dataclasses.replace(METHODS["cpt"], arithmetic=4321.5, keeps="a | b"))
    assert "| 4321.5 |" in in_page(page)
    assert "a \\| b" in table(), "a bar in a cell would open another column"
    assert [row[4] for row in rows() if row[0] == "cpt"] == ["4321.5"]


def test_the_choices_follow_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(what: str) -> list[str]:
        (line,) = [line for line in choices().splitlines() if what in line]
        return line.split("|")[2].replace("`", "").replace(" ", "").split(",")

    class Keeps(METHODS["ncl"].method):  # type: ignore[misc,name-defined]
        forgets = False

    new = dataclasses.replace(
        METHODS["ncl"], method=Keeps, reads=frozenset({"earlier"}), memory="- 1 model", arithmetic=9.0
    )
    before = choices()
    monkeypatch.setitem(METHODS, "new", new)
    for what, named in (
        ("forgotten, and nobody", True),
        ("forgotten, and the domain", False),
        ("earlier domains is", True),
        ("less memory", True),
        ("1.2", False),
    ):
        assert ("new" in fits(what)) == named, what
    assert "cpt" in fits("forgotten, and the domain")
    assert "ncl" not in fits("forgotten, and the domain")
    monkeypatch.setitem(METHODS, "new", dataclasses.replace(new, package="other 1.0"))
    assert choices() == before, "the page is the same wherever it is made"


def test_every_method_stands_among_the_choices() -> None:
    assert [name for name in METHODS if f"`{name}`" not in choices()] == []


def test_a_page_without_marks_is_refused() -> None:
    for page in ("", MARKS[0], MARKS[1] + MARKS[0]):
        with pytest.raises(EunoeError, match="put the lines"):
            in_page(page)


def test_the_command_writes_the_page_and_those_beside_it(tmp_path: Path) -> None:
    page, beside, other = (tmp_path / f"{name}.md" for name in ("page", "beside", "other"))
    page.write_text(f"above\n{MARKS[0]}old{MARKS[1]}below\n", encoding="utf-8")
    beside.write_text(f"{CHOICES[0]}old{CHOICES[1]}", encoding="utf-8")
    other.write_text("no marks\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "eunoe.methods", str(page)], check=True)
    assert page.read_text(encoding="utf-8") == f"above\n{MARKS[0]}{table()}{MARKS[1]}below\n"
    assert beside.read_text(encoding="utf-8") == CHOICES[0] + choices() + CHOICES[1]
    assert other.read_text(encoding="utf-8") == "no marks\n"


def test_a_report_is_told_what_a_method_is_as_the_recipe_chose_it() -> None:
    def fact(choice: object, what: str) -> object:
        return facts_for_report(choose_method(choice, "methods[0]"), ("law", "news"))[what]

    every = {name: facts_for_report(choose_method(name, "methods[0]"), ("law", "news")) for name in METHODS}
    assert [name for name, facts in every.items() if facts["naive"]] == ["ncl"]
    assert [name for name, facts in every.items() if not facts["in_turn"]] == ["none", "adapter", "joint"]
    for name, entry in METHODS.items():
        assert (every[name]["forgets"], every[name]["needs_domain"]) == (
            entry.method.forgets,
            entry.method.needs_domain,
        )
    assert {"joint", "der++", "replay"} <= {name for name, facts in every.items() if facts["old_text"]}
    assert not any(every[name]["old_text"] for name in ("ncl", "ewc", "das", "cpt", "kd"))
    both: dict[str, object] = {"name": ["replay", "kd"]}
    assert fact(both, "methods") == ["replay", "kd"]
    assert (fact(both, "old_text"), fact(both, "naive"), fact(both, "arithmetic")) == (True, False, 2.63)
    assert fact(both, "memory") == "as ncl; + 1 model (teacher)"
    assert fact({"name": "replay", "source": "general"}, "old_text") is False, "general text is no old domain's"
