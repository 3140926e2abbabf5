"""Small inputs that were read without a word, or ended in a traceback: through the command, as people meet them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eunoe.cli import main
from tests.tiny_run import state, tiny_recipe

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize(
    "words",
    [
        ["run", "{recipe}", "--out", "{long}"],
        ["run", "{recipe}", "--out", "{out}", "--domains.0.corpus.source", "{long}"],
        ["run", "{recipe}", "--out", "{out}", "--domains.0.corpus.source", '"a\\0b"'],
        ["run", "{recipe}", "--out", "{out}", "--model.name", "{long}"],
        ["finetune", "--train", "{long}", "--test-share", "0.2", "--out", "{out}"],
        ["verify", "{long}"],
        ["route", "{long}"],
        ["report", "{long}"],
    ],
)
def test_names_that_no_file_system_holds_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill = {"recipe": tiny_recipe(tmp_path), "out": tmp_path / "out", "long": "n" * 300}
    assert refused([word.format(**fill) for word in words], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["domains.0.corpus.source", "domains.0.task.train"])
def test_a_git_lfs_pointer_is_not_text(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, file = tiny_recipe(tmp_path), tmp_path / ("p.txt" if "corpus" in key else "p.csv")
    file.write_text(POINTER)
    printed = refused(["run", str(recipe), "--out", str(tmp_path / "out"), f"--{key}", str(file)], capsys)
    assert "Git LFS pointer" in printed
    assert "git lfs pull" in printed
    assert not (tmp_path / "out").exists()


def test_text_of_a_script_that_the_tokenizer_does_not_know_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, file = tiny_recipe(tmp_path), tmp_path / "far.txt"
    file.write_text("\n\n".join(f"遗忘 之 河 {i} 与 记忆 the" for i in range(80)), encoding="utf-8")
    printed = refused(
        ["run", str(recipe), "--out", str(tmp_path / "out"), "--domains.0.corpus.source", str(file)], capsys
    )
    assert "are unknown words ([UNK])" in printed
    assert not (tmp_path / "out").exists()


def test_one_class_left_to_train_on_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, file = tiny_recipe(tmp_path), tmp_path / "rows.csv"
    message = ""
    for at in range(20):  # wherever the odd row stands, it is trained on or this is said
        file.write_text("text,label\n" + "".join(f"good {i},{'b' if i == at else 'a'}\n" for i in range(20)))
        task: Any = f"{{train: {file}, test_share: 0.5}}"
        words = [
            "run",
            str(recipe),
            "--out",
            str(tmp_path / f"out{at}"),
            "--domains.0.task",
            task,
            "--methods",
            "[ncl]",
            "--seeds",
            "[0]",
        ]
        capsys.readouterr()
        if main(words) == 2:
            message = capsys.readouterr().err
            break
    assert "left to train on have one class, 'a'" in message


def test_a_finished_run_notices_a_damaged_state_and_learns_it_again_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tiny_recipe(tmp_path, methods=["ncl"], seeds=[0]), tmp_path / "out"
    words = ["run", str(recipe), "--out", str(out)]
    assert main(words) == 0
    before = state(out, ("times.jsonl",))
    file = next(out.glob("sequences/ncl*/domains/0-*/final/weights.safetensors"))
    file.write_bytes(file.read_bytes()[:-9])
    assert "was damaged since" in refused(words, capsys)
    assert main([*words, "--relearn"]) == 0
    after = state(out, ("times.jsonl",))
    assert {name for name in before if before[name] != after.get(name)} <= {"environment.json"}
