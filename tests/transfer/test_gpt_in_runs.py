"""GPT-1's fine-tuning as the transfer of a run over domains, and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from eunoe.cli import main
from eunoe.engine import run
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from tests.tiny import tiny_folder
from tests.tiny_run import state, write_task, write_text


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    monkeypatch.setattr("eunoe.report.page.render", lambda *_: "")
    monkeypatch.chdir(tmp_path)


def test_the_states_of_a_run_are_the_same_whatever_its_end_tasks_are_fine_tuned_with(tmp_path: Path) -> None:
    """By hash. cpt reads plug-ins, whose hooks must outlive the new words; one puts its own table, without them, into the copy."""
    tiny_folder(tmp_path, "gpt2")
    for i, name in enumerate(("sport", "money")):
        write_text(tmp_path / f"{name}.txt", seed=i, n=30)
    write_task(tmp_path / "train.csv", 1, n=16)
    write_task(tmp_path / "test.csv", 2, n=8)
    finals, rows = [], []
    for transfer in ("finetune", "gpt"):
        domains = [
            f"{{name: {n}, corpus: {{source: {n}.txt}}, task: {{train: train.csv, test: test.csv}}}}"
            for n in ("sport", "money")
        ]
        (tmp_path / "recipe.yaml").write_text(
            "name: r\nmodel: {name: gpt2}\nmethods: [ncl, cpt, one]\ngeneral: {source: money.txt}\n"
            f"domains: [{', '.join(domains)}]\n"
            "training: {steps: 2, batch: 4, block: 16, optimizer: adamw, precision: float32}\n"
            f"transfer: {{name: {transfer}, epochs: 1, batch: 8, max_length: 16}}\n"
            "evaluation: {blocks: 2, batch: 4, retention: true}\n"
        )
        out = tmp_path / transfer
        run(load_recipe(str(tmp_path / "recipe.yaml")), out)
        found = state(out)
        finals.append({name: digest for name, digest in found.items() if "/final/" in name and "manifest" not in name})
        rows.append(
            {(r.method, r.task, r.learnt, r.metric) for r in read_rows(out / "rows.jsonl") if r.transfer == transfer}
        )
    assert finals[0]
    assert finals[0] == finals[1]
    assert rows[0] == rows[1]


def test_it_runs_from_the_command_line_and_refuses_a_masked_model_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("gpt2", "bert"):
        tiny_folder(tmp_path, kind)
    write_task(tmp_path / "train.csv", 1, n=16)
    words = ["finetune", "--transfer", "gpt", "--train", "train.csv", "--test", "train.csv", "--epochs", "1", "--batch", "8",
             "--max-length", "16", "--jobs", "1"]  # fmt: skip
    assert main([*words, "--model", "gpt2", "--out", "out"]) == 0
    assert {r.transfer for r in read_rows(tmp_path / "out" / "rows.jsonl")} == {"gpt"}
    capsys.readouterr()
    assert main([*words, "--model", "bert", "--out", "other"]) == 2
    assert "needs a causal LM" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
