"""Trackers get the curves and the scores, whoever computed them; whatever they do, the run's bytes are the same."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest

from eunoe import stop, trackers
from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import EunoeError, Interrupted
from eunoe.recipe import load_recipe
from tests.tiny_run import state, tiny_recipe, tiny_settings

APART = ("times.jsonl", "recipe.yaml", "environment.json", "finished.json", "report.html")
"""What repeats the recipe, or tells of the machine."""


class Fake:
    """Like accelerate's trackers; fails at ``fails``, and takes ``seconds`` for each number."""

    made: list[Fake]
    fails = ""
    seconds = 0.0

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.settings, self.finished = options, [], {}, False
        self.logged: list[tuple[dict[str, float], int | None]]
        self.made.append(self)
        self.at("import")

    def at(self, moment: str) -> None:
        if self.fails == moment:
            raise SystemExit(3) if moment == "start" else RuntimeError(f"no {moment}\nat all")

    def start(self) -> None:
        self.at("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.at("settings")
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        time.sleep(self.seconds)
        if len(self.logged) == 3:
            self.at("middle")
        self.logged.append((values, step))

    def finish(self) -> None:
        self.at("end")
        self.finished = True

    @property
    def points(self) -> list[tuple[str, int | None, float]]:
        return sorted((name, step, value) for values, step in self.logged for name, value in values.items())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """In place of accelerate's tensorboard and wandb trackers, as if both were installed."""
    made = type("Made", (Fake,), {"made": []})
    for name in ("tensorboard", "wandb"):
        entry = trackers.TRACKERS[name]
        monkeypatch.setattr(accelerate.tracking, entry.tracker, made)
        monkeypatch.setitem(trackers.TRACKERS, name, replace(entry, packages=("accelerate",)))
    return made


def small(folder: Path, **settings: Any) -> Path:
    data = tiny_settings(folder)
    for domain in data["domains"][1:]:
        del domain["task"]
    data["domains"][0]["task"].update(shots=2, test_rows=4)
    return tiny_recipe(folder, methods=["ncl"], seeds=[0], domains=data["domains"], **settings)


def carried_out(recipe: Path, out: Path, *names: str, **options: Any) -> dict[str, bytes]:
    run(load_recipe(recipe, {"trackers": list(names)}), out, **options)
    kept = state(out, APART)
    return {name: held for name, held in kept.items() if not str(name).startswith("trackers")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, bytes]]:
    """A recipe, its run without trackers, and the bytes of that."""
    folder = tmp_path_factory.mktemp("plain")
    recipe = small(folder)
    return recipe, folder / "run", carried_out(recipe, folder / "run")


def expected(out: Path) -> list[tuple[str, int, float]]:
    """What stands in the run folder: curves of the domains, and all scores."""
    points = []
    for file in out.glob("sequences/*/domains/*/curve.csv"):
        names, *lines = file.read_text().splitlines()
        for line in lines:
            step, *values = line.split(",")
            for name, value in zip(names.split(",")[1:], values, strict=True):
                points.append((f"{file.parents[2].name}/{file.parent.name}/{name}", int(step), float(value)))
    for line in (out / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        draw = f"shots{row['shots_seed']}" if row["shots_seed"] is not None else None
        name = ".".join(part for part in (row["task"], row["transfer"], draw, row["metric"]) if part)
        place = f"{row['method']}.{row['order']}.seed{row['seed']}/scores/{name}"
        points.append((place, len(row["learnt"]), row["value"]))
    return sorted(points)


def without_end_tasks(points: list[tuple[str, Any, float]]) -> list[tuple[str, Any, float]]:
    """Without the curves of end tasks, which no file of a run keeps."""
    return [point for point in points if ".task" not in point[0]]


def test_curves_and_scores_go_there(plain: Any, tmp_path: Path, fake: type[Fake]) -> None:
    recipe, _, before = plain
    assert carried_out(recipe, tmp_path / "run", "tensorboard") == before
    [made] = fake.made
    assert without_end_tasks(made.points) == expected(tmp_path / "run")
    tuned = [name for name, *_ in made.points if ".task" in name]
    assert "ncl.given.seed0/scores/2/sport.task.shots2022/loss" in tuned
    assert made.options == {"run_name": "tensorboard", "logging_dir": (tmp_path / "run" / "trackers").resolve()}
    assert made.settings["training.lr"] == load_recipe(recipe).training.lr  # type: ignore[union-attr]
    assert made.finished


def test_jobs_send_theirs_to_the_process_that_started_them(plain: Any, tmp_path: Path, fake: type[Fake]) -> None:
    recipe, _, before = plain
    assert carried_out(recipe, tmp_path / "run", "tensorboard", jobs=2) == before
    [made] = fake.made
    assert without_end_tasks(made.points) == expected(tmp_path / "run")


@pytest.mark.parametrize("moment", ["import", "start", "settings", "middle", "end"])
def test_one_that_fails_says_so_once_and_changes_nothing(
    moment: str, plain: Any, tmp_path: Path, fake: type[Fake], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, _, before = plain
    fake.fails = moment
    assert carried_out(recipe, tmp_path / "run", "tensorboard") == before
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    why = "3" if moment == "start" else f"no {moment}"
    assert said == [
        f"the tracker tensorboard failed: {why}. The run does without it: its curves and scores are in the run folder."
    ]


def test_one_that_hangs_is_left_behind(
    plain: Any, tmp_path: Path, fake: type[Fake], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _, before = plain
    fake.seconds = 30
    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    began = time.monotonic()
    assert carried_out(recipe, tmp_path / "run", "tensorboard") == before
    assert time.monotonic() - began < 25
    assert "the tracker tensorboard is still busy" in capsys.readouterr().err


def test_where_steps_may_only_grow_the_step_is_a_number_beside_the_others(
    plain: Any, tmp_path: Path, fake: type[Fake]
) -> None:
    recipe, *_ = plain
    carried_out(recipe, tmp_path / "run", "wandb")
    [made] = fake.made
    assert {step for _, step in made.logged} == {None}
    curve = [values for values, _ in made.logged if "ncl.given.seed0/0-sport/loss" in values]
    assert [values["ncl.given.seed0/0-sport/step"] for values in curve] == [*range(1, len(curve) + 1)]
    assert made.options["resume"] == "allow"


def test_a_resumed_run_sends_the_rest_and_may_have_other_trackers(
    plain: Any, tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _, before = plain
    out, log = tmp_path / "run", Fake.log
    asked = stop.asked

    def stopping(self: Fake, values: dict[str, float], step: int | None = None) -> None:
        log(self, values, step)
        if "ncl.given.seed0/scores/sport.lm_loss" in values:
            monkeypatch.setattr(stop, "asked", lambda: "SIGTERM")

    monkeypatch.setattr(fake, "log", stopping)
    with pytest.raises(Interrupted):
        carried_out(recipe, out, "tensorboard")
    monkeypatch.setattr(stop, "asked", asked)
    monkeypatch.setattr(fake, "log", log)
    assert carried_out(recipe, out, "tensorboard", "wandb") == before
    first, second, other = fake.made
    assert first.finished
    both = {*without_end_tasks(first.points), *without_end_tasks(second.points)}
    assert sorted(both) == expected(out)
    assert other.options["run_name"] == load_recipe(recipe).name


def test_a_study_sends_its_fine_tunings(tmp_path: Path, fake: type[Fake]) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"the {word} team,{word}\n" for word in ("good", "bad") * 4))
    model = load_recipe(tiny_recipe(tmp_path)).model.name  # type: ignore[union-attr]
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({
        "name": "s", "model": {"name": model}, "tasks": [{"name": "t", "train": str(rows), "test": str(rows)}],
        "systems": {"a": {"name": "finetune", "steps": 3, "batch": 4, "max_length": 16}}, "trackers": ["tensorboard"],
    }))  # fmt: skip
    run(study, tmp_path / "out")
    [made] = fake.made
    steps = [(name, step) for name, step, _ in made.points]
    assert [("t/a.seed0/loss", step) for step in (1, 2, 3)] == [point for point in steps if point[0].endswith("/loss")]
    assert ("t/a.seed0/scores/t.a.accuracy", 3) in steps


def test_one_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        trackers.TRACKERS, "wandb", replace(trackers.TRACKERS["wandb"], packages=("no_such_package_here",))
    )
    out = tmp_path / "run"
    assert main(["run", str(small(tmp_path)), "--out", str(out), "--trackers", "[wandb]"]) == 2
    assert (
        "wandb is not installed. Install it: pip install wandb, or all of them: pip install 'eunoe[trackers]'"
        in capsys.readouterr().err
    )
    assert not out.exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EunoeError, match=r"trackers.0: must be 'tensorboard', 'wandb', 'trackio' or 'mlflow', received 'tensorbord'"
    ):
        load_recipe(small(tmp_path), {"trackers": ["tensorbord"]})


def test_the_real_tensorboard_reads_what_was_sent(plain: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'eunoe[trackers]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, _, before = plain
    assert carried_out(recipe, tmp_path / "run", "tensorboard") == before
    read = EventAccumulator(str(tmp_path / "run" / "trackers" / "tensorboard"))
    read.Reload()
    points = sorted((tag, e.step, e.value) for tag in read.Tags()["scalars"] for e in read.Scalars(tag))
    wanted = expected(tmp_path / "run")
    assert [point[:2] for point in without_end_tasks(points)] == [point[:2] for point in wanted]
    assert [point[2] for point in without_end_tasks(points)] == pytest.approx([point[2] for point in wanted], rel=1e-6)
