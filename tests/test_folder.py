"""The run folder: whose it is, what happens to what was damaged or put in place from elsewhere, and folders of earlier versions."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import transformers

import eunoe.train
from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import EunoeError, Interrupted
from eunoe.plan import RunPlan
from eunoe.recipe import load_recipe
from eunoe.report.page import write_report
from eunoe.report.schema import read_rows
from eunoe.route import route_run
from eunoe.study import StudyPlan
from eunoe.verify import verify
from tests.tiny import tiny_folder
from tests.tiny_run import as_before_0_2, state, tiny_recipe, write_task

SMALL: dict[str, Any] = {"seeds": [0], "evaluation": {"blocks": 4, "batch": 8, "base": False, "matrix": "ends"}}
TIMES = ("times.jsonl",)
NCL, CPT = "sequences/ncl.given.seed0", "sequences/cpt.given.seed0"


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eunoe.progress.console.quiet", True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A recipe's file, its finished run, and the run of the same recipe at another learning rate; no test changes them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUNOE_CACHE", str(folder / "cache"))
        file = tiny_recipe(folder, **SMALL)
        run(load_recipe(file), folder / "out", "eunoe run tiny.yaml")
        run(load_recipe(file, [("training.lr", "0.004")]), folder / "other", "eunoe run tiny.yaml")
    return file, folder / "out", folder / "other"


@pytest.fixture
def copied(made: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "out"))


def again(made: tuple[Path, Path, Path], out: Path, **more: Any) -> None:
    run(load_recipe(made[0]), out, "eunoe run tiny.yaml", **more)


def stop_after(patch: pytest.MonkeyPatch, plan: type, cells: int) -> None:
    """The run is stopped once so many cells are done."""
    real, left = plan.carry_out, [cells]  # type: ignore[attr-defined]

    def carry_out(self: Any, cell: Any, board: Any) -> list[str]:
        if not left[0]:
            raise Interrupted("stopped by the test")
        left[0] -= 1
        return list(real(self, cell, board))

    patch.setattr(plan, "carry_out", carry_out)


def broken(out: Path) -> list[tuple[str, str]]:
    return [(f.sequence, f.domain) for f in verify(out) if f.broken]


# -- whose it is ---------------------------------------------------------------------------------------------------------
def test_of_two_starts_that_meet_the_second_is_refused_though_the_first_was_killed(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first begins and is killed while the second, of another recipe, reads its text and has looked at the folder already."""
    out, real = tmp_path / "out", RunPlan.prepare

    def prepare(plan: RunPlan, folder: Path) -> dict[str, str]:
        if plan.recipe.training.lr == 0.004:
            with monkeypatch.context() as patch:
                stop_after(patch, RunPlan, 9)
                with pytest.raises(Interrupted):
                    again(made, out)
        return real(plan, folder)

    monkeypatch.setattr(RunPlan, "prepare", prepare)
    with pytest.raises(EunoeError, match=r"belongs to another recipe: .*training\.lr: 0\.005 there, 0\.004 now"):
        run(load_recipe(made[0], [("training.lr", "0.004")]), out)
    again(made, out)
    assert state(out, TIMES) == state(made[1], TIMES)


def test_of_two_fine_tunings_that_meet_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path)
    train, test = write_task(tmp_path / "a.csv", 1), write_task(tmp_path / "b.csv", 2)
    words = ["finetune", "--train", str(train), "--test", str(test), "--model", "bert", "--epochs", "1", "--max-length", "16",
             "--out", "out"]  # fmt: skip
    real = StudyPlan.prepare

    def prepare(plan: StudyPlan, folder: Path) -> dict[str, str]:
        if plan.recipe.seeds == [1]:
            assert main([*words, "--seeds", "0"]) == 0
        return real(plan, folder)

    monkeypatch.setattr(StudyPlan, "prepare", prepare)
    assert main([*words, "--seeds", "1"]) == 2
    assert "belongs to another recipe: seeds" in capsys.readouterr().err
    assert {row.seed for row in read_rows(tmp_path / "out/rows.jsonl")} == {0}
    assert not list((tmp_path / "out").rglob("steps")), "a study leaves no folder of steps"


@pytest.mark.parametrize("way", [NCL, CPT])
@pytest.mark.parametrize("what", ["domains/0-sport", "domains/0-sport/final", "scores/2/sport.task"])
def test_what_another_run_made_is_refused_by_run_and_by_verify(
    way: str, what: str, made: tuple[Path, Path, Path], copied: Path
) -> None:
    """A whole stage, the final state alone (with its mark gone), and the rows of an end task: of each the files are all in order."""
    shutil.rmtree(copied / way / what)
    shutil.copytree(made[2] / way / what, copied / way / what)
    assert broken(copied)
    (copied / "finished.json").unlink()
    if what.endswith("final"):
        (copied / way / "domains/0-sport/cell.json").unlink()
        shutil.rmtree(copied / way / "domains/1-money")
    with pytest.raises(EunoeError, match="belongs to another"):
        again(made, copied)


def test_rows_of_another_run_are_found_and_made_again(made: tuple[Path, Path, Path], copied: Path) -> None:
    for name in ("rows.jsonl", f"{NCL}/scores/1/sport.text/rows.jsonl"):
        shutil.copy(made[2] / name, copied / name)
        assert [domain for _, domain in broken(copied)].count("rows") >= 1, name
        again(made, copied)
        assert state(copied, TIMES) == state(made[1], TIMES)
        assert not broken(copied)


def test_a_checkpoint_of_another_sequence_domain_or_run_is_not_resumed_from(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, steps, real = tmp_path / "out", [0], eunoe.train._step

    def step(*args: Any) -> float:
        steps[0] += 1
        if steps[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return float(real(*args))

    with monkeypatch.context() as patch:
        patch.setattr("eunoe.train._step", step)
        with pytest.raises(Interrupted):
            again(made, out)
    saved = next(out.rglob("steps"))
    assert saved.parent == out / NCL / "domains/0-sport"
    elsewhere = out / CPT / "domains/0-sport/steps"
    shutil.copytree(saved, elsewhere)
    with pytest.raises(
        EunoeError, match=r"belongs to another training \(cell: sequences/ncl.* there, sequences/cpt.* here"
    ):
        again(made, out)
    shutil.rmtree(elsewhere)
    again(made, out)
    assert state(out, TIMES) == state(made[1], TIMES)


# -- what was damaged ----------------------------------------------------------------------------------------------------
BESIDE = ("report.html", "matrix.csv", "methods.json", "rows.jsonl", "finished.json", "texts.json", f"{CPT}/notes.json", f"{CPT}/plugins/*",
          "sequences/*/domains/*/curve.csv", "sequences/*/domains/0-sport/capacity.json", "sequences/*/scores/2/*/rows.jsonl",
          "sequences/*/scores/1/*/cell.json", "sequences/*/domains/1-money/cell.json")  # fmt: skip
DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "bytes": lambda file: file.write_bytes(b"\xff\x00[[[["),
    "another value": lambda file: file.write_bytes(file.read_bytes().replace(b"0", b"1")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_of_a_finished_run_are_noticed_and_made_again(
    damage: str, made: tuple[Path, Path, Path], copied: Path
) -> None:
    files = [file for pattern in BESIDE for file in sorted(copied.glob(pattern))]
    assert len(files) >= len(BESIDE)
    if damage == "another value":  # such a change of whose it is is refused, see above
        files = [file for file in files if file.name not in ("texts.json", "cell.json")]
    for file in files:
        DAMAGE[damage](file)
    again(made, copied)
    assert state(copied, TIMES) == state(made[1], TIMES)


@pytest.mark.parametrize("name", [f"{CPT}/notes.json", f"{CPT}/plugins/adapter_model.safetensors", f"{CPT}/domains/0-sport/capacity.json",
                                  f"{NCL}/domains/1-money/curve.csv", "texts.json", "methods.json",
                                  f"{NCL}/scores/1/sport.text/rows.jsonl"])  # fmt: skip
def test_one_damaged_file_of_a_finished_run_is_enough(name: str, made: tuple[Path, Path, Path], copied: Path) -> None:
    (copied / name).write_bytes(b"")
    again(made, copied)
    assert state(copied, TIMES) == state(made[1], TIMES)


ODD = (
    b"[" * 100_000,
    b"null",
    b'{"run": 1, "cell": [], "needs": {}, "sha256": {"\\u0000": 1}, "rows_sha256": [], "format": "2"}',
)


@pytest.mark.parametrize(
    "name", ["texts.json", "finished.json", "environment.json", "recipe.yaml", f"{CPT}/domains/0-sport/cell.json"]
)
def test_no_damaged_file_ends_in_a_traceback(name: str, made: tuple[Path, Path, Path], copied: Path) -> None:
    whole = (copied / name).read_bytes()
    for data in ODD:
        calls: list[Callable[[], object]] = [lambda: again(made, copied), lambda: verify(copied)]
        if data == b"null":
            calls += [lambda: write_report([copied]), lambda: route_run(copied)]
        for call in calls:
            (copied / name).write_bytes(data)
            with suppress(EunoeError):  # anything else ends the test
                call()
        (copied / name).write_bytes(whole)


@pytest.mark.parametrize("way", [NCL, CPT])
def test_a_damaged_final_is_named_with_the_command_and_relearn_makes_it_again(
    way: str, made: tuple[Path, Path, Path], copied: Path
) -> None:
    weights = copied / way / "domains/0-sport/final/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    again(made, copied, relearn=True)  # of a finished run
    assert state(copied, TIMES) == state(made[1], TIMES)
    weights.write_bytes(data)
    shutil.rmtree(copied / way / "domains/1-money")
    (copied / "finished.json").unlink()
    with pytest.raises(EunoeError, match=r"weights.safetensors was changed: .* give the same command with --relearn"):
        again(made, copied)
    again(made, copied, relearn=True)
    assert state(copied, TIMES) == state(made[1], TIMES)


# -- folders of earlier versions --------------------------------------------------------------------------------------------
def test_a_folder_of_a_version_before_0_2_is_read_and_resumed(
    made: tuple[Path, Path, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(as_before_0_2(copied))
    assert not broken(copied)
    again(made, copied)
    assert state(copied) == before, "finished: nothing is done again"
    assert "exactly 0" in write_report([copied]).read_text(encoding="utf-8")
    said: list[str] = []
    monkeypatch.setattr("eunoe.folder.say", said.append)
    monkeypatch.setattr("eunoe.sequence.say_once", said.append)
    (copied / "finished.json").unlink()
    shutil.rmtree(copied / CPT / "domains/1-money")
    rows = (copied / "rows.jsonl").read_bytes()
    (copied / "rows.jsonl").write_bytes(b"".join(rows.splitlines(keepends=True)[:-9]))
    for _ in range(2):  # the second time it is finished
        again(made, copied)
        assert (copied / "rows.jsonl").read_bytes() == rows
        assert not broken(copied)
    for part in (
        "whether they are still the same cannot be checked",
        "whether they belong to this run cannot be checked",
    ):
        assert any(part in line for line in said), part


# -- where it lies -------------------------------------------------------------------------------------------------------
def test_a_file_system_without_locks_is_told_and_one_process_works(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr("eunoe.folder.say_once", said.append)
    monkeypatch.setattr("eunoe.jobs.Jobs.share", lambda *_: pytest.fail("several processes were sent to work"))
    again(made, tmp_path / "out", jobs=2)
    assert any("has no locks (No locks available): take care that no other process runs there" in line for line in said)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == (made[1] / "rows.jsonl").read_bytes()


def test_a_run_may_not_write_into_what_it_reads(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text(("the match was good and the team had a season\n\n") * 40)
    recipe = load_recipe(made[0], [("general", f"{{source: {text}, documents: paragraphs}}")])
    with pytest.raises(EunoeError, match=r"lies in .*text, which is read"):
        run(recipe, str(text / "runs"))
    assert [file.name for file in text.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_written_is_one_line(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def refuse(folder: Path, *rest: Any, **more: Any) -> None:
        if folder.is_relative_to(tmp_path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(folder, *rest, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EunoeError, match=r"out cannot be written: Permission denied\. Choose another --out"):
        again(made, tmp_path / "out")


def test_a_path_and_a_recipe_may_be_text_and_the_folder_is_named_by_the_recipe(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made[1], tmp_path / "runs/tiny")
    assert run(str(made[0])) == Path("runs/tiny/report.html")
    assert run(made[0], "runs/tiny") == Path("runs/tiny/report.html")
    assert len(verify("runs/tiny")) == len(verify(Path("runs/tiny")))


# -- what is done once, and what is not done again -----------------------------------------------------------------------
def test_a_pretrained_model_is_loaded_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def counted(cls: type, *args: Any, **more: Any) -> Any:
        loads.append(cls.__name__)
        return real(cls, *args, **more)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(counted))
    file = tiny_recipe(tmp_path, **{**SMALL, "seeds": [0, 1]})
    data = [("domains.*.task", "null"), ("evaluation.blocks", "2"), ("training.steps", "1")]
    run(load_recipe(file, data), tmp_path / "out")
    assert loads == ["BertForMaskedLM"]


def test_an_end_task_that_was_stopped_resumes_from_its_step(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, seen = tmp_path / "out", eunoe.train._step, list[tuple[str, int]]()
    signalled: list[bool] = []

    def step(job: Any, optimizer: Any, number: int) -> float:
        if "end task" in job.name:
            seen.append((job.name, number))
            if number == 3 and not signalled:
                signalled.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
        return float(real(job, optimizer, number))

    monkeypatch.setattr("eunoe.train._step", step)
    with pytest.raises(Interrupted, match=r"end task .*; saved after step 4 of 6"):
        again(made, out)
    assert [number for _, number in seen] == [0, 1, 2, 3]
    again(made, out)
    first = seen[0][0]
    assert [number for name, number in seen if name == first][:6] == [0, 1, 2, 3, 4, 5]
    assert state(out, TIMES) == state(made[1], TIMES)
    assert not list(out.rglob("steps"))


def test_where_a_few_shot_draw_falls_short_stands_in_its_rows(tmp_path: Path) -> None:
    file = tiny_recipe(tmp_path, **{**SMALL, "methods": ["ncl"]})
    shots = [
        ("domains.0.task.shots", "13"),
        ("domains.1.task.shots", "3"),
        ("training.steps", "1"),
        ("transfer.epochs", "1"),
    ]
    run(load_recipe(file, shots), tmp_path / "out")
    short = {row.task: row.short_shots for row in read_rows(tmp_path / "out/rows.jsonl") if row.transfer}
    assert short == {"sport": {"bad": 12, "good": 12}, "money": None}


def test_a_batch_that_no_memory_holds_is_refused_before_anything_is_written(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    for change in (("training.batch", "1000000"), ("methods", "[ncl, {name: cpt, training: {batch: 1000000}}]")):
        with pytest.raises(EunoeError, match=r"a batch of 1,000,000 blocks of up to 128 tokens has more than"):
            run(load_recipe(made[0], [change, ("training.block", "128")]), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_seeds_below_0_are_refused_by_their_key(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(EunoeError, match=r"recipe\.seeds"):
        run(load_recipe(made[0], [("seeds", "[-1]")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
