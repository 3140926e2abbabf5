"""Paths as people write them, and folders that must not lie in each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from eunoe.cli import main
from eunoe.recipe import expand, refuse_inside
from tests.recipe.refusal import refusal
from tests.tiny_run import tiny_recipe


def test_a_file_whose_name_holds_a_dollar_is_read_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("money", raising=False)
    monkeypatch.setenv("HOLDS", "/x$money")
    for name in ("a$money.txt", "$$b.txt", "${money}.txt", "~c.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
        assert expand(str(tmp_path / name)) == str(tmp_path / name)
    assert expand("new/a$$money.txt") == "new/a$money.txt"
    assert expand("costs$.txt") == "costs$.txt"
    assert expand("$HOLDS/a") == "/x$money/a"  # what a variable holds is not expanded again
    message = refusal(expand, "new/a$money.txt")
    assert "environment variable money, which is not set" in message
    assert "$$ for a $" in message


@pytest.mark.parametrize("out", ["texts/run", "texts", "texts/deep/run", "link/run"])
def test_a_run_folder_inside_a_folder_that_is_read_is_refused(out: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "texts")
    message = refusal(refuse_inside, tmp_path / out, [str(tmp_path / "texts")])
    assert "which is read: what the run writes would be read as text. Choose an --out outside" in message


def test_a_source_inside_the_run_folder_is_refused_and_neighbours_are_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "run/a.txt").write_text("x", encoding="utf-8")
    assert "the folder that the run writes to" in refusal(
        refuse_inside, tmp_path / "run", [str(tmp_path / "run/a.txt")]
    )
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    refuse_inside(
        tmp_path / "run", [str(tmp_path / "texts"), str(tmp_path / "a.txt"), "hub:run/a", "package:eunoe/recipes"]
    )
    refuse_inside(tmp_path / "texts2", [str(tmp_path / "texts")])


def test_eunoe_run_refuses_it_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tiny_recipe(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "sport.txt").rename(tmp_path / "texts/sport.txt")
    assert main(["run", str(file), "--domains.0.corpus.source", "texts", "--out", "texts/run"]) == 2
    assert "texts/run lies in texts, which is read" in " ".join(capsys.readouterr().err.split())
    assert [p.name for p in (tmp_path / "texts").iterdir()] == ["sport.txt"]
