"""``eunoe plan``: its counts are those of the run, it writes nothing, and what it says it takes follows from what was timed."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eunoe import preview, timing
from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import Interrupted
from eunoe.preview import duration, size
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.timing import Piece, together
from tests.tiny import tiny_bert, tiny_folder, tiny_tokenizer
from tests.tiny_run import state, tiny_recipe, write_task, write_text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def study(folder: Path) -> Path:
    """A study with a search over a grid, and one system without."""
    tiny_recipe(folder)
    write_text(folder / "general.txt", seed=5)
    file = folder / "study.yaml"
    file.write_text(f"""
name: study
model: {{name: {folder / "bert"}}}
tasks:
  - {{name: first, train: {write_task(folder / "a.csv", 1)}, test: {write_task(folder / "b.csv", 2, 30)}}}
  - {{name: second, train: {write_task(folder / "c.csv", 3, 48)}, test: {write_task(folder / "d.csv", 4, 30)}, seeds: [4]}}
systems:
  plain: {{name: finetune, epochs: 3, batch: 8, max_length: 32}}
  searched: {{name: finetune, epochs: 2, batch: 8, max_length: 32, grid: {{lr: [1e-3, 2e-3], batch: [8, 4]}}}}
search: {{seed: 9}}
seeds: [0, 1]
retention: {{general: {{source: {folder / "general.txt"}}}}}
evaluation: {{block: 16, blocks: 6}}
""")
    return file


def test_a_run_does_the_cells_and_steps_that_were_planned_and_keeps_the_bytes(folder: Path) -> None:
    recipe = load_recipe(tiny_recipe(folder, methods=["ncl", "cpt"], seeds=[3]))
    seen = preview.preview(recipe, jobs=1)
    assert not (folder / "runs").exists()
    run(recipe, folder / "out")
    cells = {str(mark.parent.relative_to(folder / "out")) for mark in (folder / "out").rglob("cell.json")}
    assert {piece.key for piece in seen.pieces} == cells
    rows = read_rows(folder / "out" / "rows.jsonl")
    assert sum(p.steps for p in seen.pieces if p.kind == "end task") == sum(
        r.steps for r in rows if r.metric == "accuracy"
    )
    curves = [f.read_text().count("\n") - 1 for f in (folder / "out").rglob("curve.csv")]
    assert sum(p.steps for p in seen.pieces if p.kind == "learn") == sum(curves)
    bytes_kept = sum(f.stat().st_size for f in (folder / "out").rglob("final/*"))
    assert 0.5 * bytes_kept < sum(p.keeps for p in seen.pieces) < 1.5 * bytes_kept


def test_a_study_does_the_cells_and_steps_that_were_planned(folder: Path) -> None:
    recipe = load_recipe(study(folder))
    seen = preview.preview(recipe, jobs=1)
    run(recipe, folder / "out")
    done = {str(mark.parent.relative_to(folder / "out/cells")) for mark in (folder / "out").rglob("cell.json")}
    assert len(seen.pieces) == len(done)
    certain = [p for p in seen.pieces if not p.needs]  # which point a search chooses is not known before
    assert {p.key.removeprefix("cells/") for p in certain} <= done
    for piece in certain:
        curve = (folder / "out" / piece.key / "curve.csv").read_text()
        assert piece.steps == curve.count("\n") - 1, piece.key


def test_the_training_of_an_lm_head_is_planned_too(folder: Path) -> None:
    file = tiny_recipe(folder, methods=["cpt"], seeds=[0])
    tiny_bert().bert.save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")
    head = {"corpora": [{"source": str(folder / "general.txt")}], "rank": 2, "block": 16, "batch": 4, "steps": 400}
    recipe = load_recipe(file, {"model.name": str(folder / "encoder"), "model.head": "train", "head": head})
    seen = preview.preview(recipe, jobs=1)
    (trained,) = (p for p in seen.pieces if p.kind == "LM head")
    assert trained.steps == 400
    assert trained.key in next(p for p in seen.pieces if p.kind == "learn").needs
    assert trained.seconds > 10 * seen.pieces[1].seconds


def test_answers_to_prompts_are_planned_of_a_decoder(folder: Path) -> None:
    evaluation = {"blocks": 6, "batch": 8, "prompts": ["good", "bad team"], "answer_tokens": 4, "retention": True}
    file = tiny_recipe(folder, methods=["ncl"], seeds=[0], evaluation=evaluation)
    recipe = load_recipe(file, {"model.name": str(tiny_folder(folder, "llama"))})
    seen = preview.preview(recipe, jobs=1)
    assert len([p for p in seen.pieces if p.kind == "answer prompts" and p.seconds > 0]) == 2
    run(recipe, folder / "out")
    assert {p.key for p in seen.pieces} == {
        str(m.parent.relative_to(folder / "out")) for m in (folder / "out").rglob("cell.json")
    }


def test_the_command_shows_what_is_read_and_done_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(folder.parent / "cache"))
    file = tiny_recipe(folder, seeds=[0])
    before = state(folder)
    assert main(["plan", str(file), "--jobs", "2", "--training.steps", "7"]) == 0
    assert state(folder) == before
    printed = " ".join(capsys.readouterr().out.split())
    assert "sport 60 documents," in printed
    assert "24 rows to fine-tune on, 40 to score; 2 classes: bad, good" in printed
    assert "learn: cpt 2 cells, 14 optimizer steps" in printed
    assert re.search(r"\d+ cells, \d+ optimizer steps, 2 jobs with 1 thread each about \d+ s", printed)
    assert re.search(r"disk about \d+ MB", printed)
    assert "Nothing was written but tokenised text, which is kept in" in printed
    assert (folder.parent / "cache").is_dir()


def test_what_a_run_refuses_the_plan_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_recipe(folder)
    (folder / "money_test.csv").write_text("text,label\nodd,third\n")
    assert main(["plan", str(file)]) == 2
    assert "no training row has the label 'third'" in capsys.readouterr().err
    assert main(["plan", str(file), "--jobs", "none"]) == 2
    assert "--jobs is 'none'" in capsys.readouterr().err


def test_the_timed_steps_leave_random_numbers_threads_and_the_run_as_they_were(folder: Path) -> None:
    recipe = load_recipe(tiny_recipe(folder, methods=["cpt"], seeds=[0]))
    run(recipe, folder / "alone")
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    preview.preview(recipe, jobs=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    run(recipe, folder / "after")
    but = ("times.jsonl", "environment.json", "report.html", "finished.json", ".lock")
    assert state(folder / "alone", but) == state(folder / "after", but)


def test_a_signal_ends_the_timing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny_recipe(folder))
    monkeypatch.setattr(timing, "say", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match="stopped by SIGINT while"):
        preview.preview(recipe)


def test_more_steps_take_more_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of a part is that of a step times the steps; here a step takes 10 ms."""
    time_steps = timing._time_steps
    monkeypatch.setattr(timing, "_time_steps", lambda work: replace(time_steps(work), step=0.01))

    def learning(steps: int) -> float:
        recipe = load_recipe(tiny_recipe(folder, methods=["ncl"], seeds=[0]), {"training.steps": steps})
        return sum(p.seconds for p in preview.preview(recipe, 1).pieces if p.kind == "learn")

    assert learning(50_000) - learning(500) == pytest.approx(2 * 49_500 * 0.01, rel=0.05)


def test_a_busy_machine_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    seen = preview.Preview("one", [], [], 1, 1, 100.0, 10**9, 10**6, 0)

    def shown(core: float | None) -> str:
        preview.print_preview(replace(seen, core=core), live=False)
        return " ".join(capsys.readouterr().out.split())

    assert "without other programs, which took 60% of the timed steps about 40 s" in shown(0.4)
    assert "other programs" not in shown(0.97) + shown(None)


PIECE = Piece("", (), "", "score text", "", 0, 1.0)


def piece(key: str, seconds: float, *needs: str, group: str = "x", **more: Any) -> Piece:
    return replace(PIECE, key=key, seconds=seconds, needs=needs, group=group, **more)


def test_jobs_share_what_does_not_wait_for_each_other() -> None:
    chain = [piece("a", 2.0), piece("b", 3.0, "a"), piece("c", 4.0, "b")]
    assert together(chain, 1, {}) == together(chain, 8, {}) == 9.0
    apart = [piece(name, 2.0, group=name) for name in "abcd"]
    assert [together(apart, jobs, {}) for jobs in (1, 2, 3, 4)] == [8.0, 4.0, 4.0, 2.0]
    assert together(apart, 2, dict.fromkeys("abcd", 1.0)) == 6.0  # each makes two models
    learnt = [piece("a", 2.0, kind="learn"), piece("b", 1.0, "a", restores=5.0)]
    assert together(learnt, 1, {}) == 3.0  # it has what it just learnt


def test_times_and_sizes_as_people_say_them() -> None:
    assert [duration(s) for s in (0, 61, 3600, 90000)] == ["1 s", "1 min 1 s", "1 h", "1 d 1 h"]
    assert [size(n) for n in (0, 5e6, 2.5e9)] == ["1 MB", "5 MB", "2.5 GB"]
