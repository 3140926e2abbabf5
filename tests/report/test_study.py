"""A fine-tuning study from rows to numbers, sentences, tables and pages: worked examples, searches, holes, hostile names."""

from __future__ import annotations

import doctest
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from eunoe.errors import EunoeError
from eunoe.evaluate.scores import mean_interval
from eunoe.optim.schedules import warmup_steps
from eunoe.recipe import Study, load_recipe, recipe_of, to_yaml
from eunoe.report import lines, study
from eunoe.report.curves import Curve
from eunoe.report.draw import style
from eunoe.report.growth import growth, growth_section
from eunoe.report.page import write_report
from eunoe.report.read import read_run
from eunoe.report.retention import kept
from eunoe.report.schema import Row
from eunoe.report.settings import StudySettings, study_settings
from eunoe.report.study import StudySummary, cited, summarize_study
from eunoe.report.terminal import print_run, print_study
from eunoe.study import StudyPlan, resolve_study
from tests.report.chromium import Chromium
from tests.report.made_up import STUDY, SYSTEMS, TASKS, made_up_run, made_up_study, study_rows
from tests.report.test_page import page


def row(label: str, seed: int, value: float, metric: str = "accuracy", task: str = "rte", **more: object) -> Row:
    return Row(**{"run": "r", "method": "base", "transfer": label, "order": "none", "seed": seed, "shots_seed": None, "learnt": (),
                  "task": task, "metric": metric, "value": value, "n": 100, "steps": 50, **more})  # fmt: skip


SETTINGS = StudySettings(tasks=("rte",), systems=("adamw", "recadam"), seeds={"rte": (1, 2)}, search_seed=0,
                         published={"recadam": {"rte": 74.4}})  # fmt: skip
# The search (seed 0) scores what no average may hold; recadam's second point was chosen.
ROWS = [
    row("adamw", 1, 0.50), row("adamw", 2, 0.75),
    row("recadam[k=1]", 0, 0.99), row("recadam[k=2]", 0, 1.0),
    row("recadam[k=2]", 1, 0.75), row("recadam[k=2]", 2, 0.875), row("recadam[k=2]", 2, 0.9375, at="best", steps=30),
    row("adamw", 1, 4.5, "lm_loss@t", detail={"before": 4.0}), row("adamw", 2, 4.75, "lm_loss@t", detail={"before": 4.0}),
    row("recadam[k=1]", 0, 4.125, "lm_loss@t", detail={"before": 4.0}),
    row("recadam[k=2]", 1, 4.25, "lm_loss@t", detail={"before": 4.0}),
    row("recadam[k=2]", 1, 3.0, "anchor_distance", detail={"layers": {"embeddings": 1.0, "encoder.layer.0": 2.0}}),
    row("recadam[k=2]", 1, 0.75, "cka@t", detail={"layers": {"0": 1.0, "1": 0.5}}),
]  # fmt: skip


def printed(rows: list[Row], settings: StudySettings, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_study(rows, settings, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def made_up() -> StudySummary:
    import yaml

    return summarize_study(study_rows(), study_settings(yaml.safe_load(STUDY)))


@pytest.mark.parametrize("module", [study, lines])
def test_the_examples_of_the_docstrings_hold(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted >= 1
    assert results.failed == 0


# -- numbers ----------------------------------------------------------------------------------------------------
def test_a_small_study_worked_by_hand() -> None:
    (task,) = summarize_study(ROWS, SETTINGS).tasks
    adamw, recadam, best = task.results
    assert (adamw.name, adamw.at, adamw.seeds, adamw.scores.values) == ("adamw", "last", (1, 2), (0.5, 0.75))
    assert (adamw.median, adamw.best, adamw.ahead, adamw.published) == (0.625, 0.75, None, None)
    assert (recadam.name, recadam.label, recadam.point) == ("recadam", "recadam[k=2]", "k = 2")
    assert recadam.scores.values == (0.75, 0.875)
    assert recadam.ahead is not None
    assert recadam.ahead.values == (0.25, 0.125)
    assert recadam.ahead.interval == mean_interval([0.25, 0.125])
    assert recadam.published == 74.4
    assert (best.at, best.seeds, best.steps, best.ahead) == ("best", (2,), (30,), None)
    assert task.grid == {"recadam": ["recadam[k=1]", "recadam[k=2]"]}


def test_rows_of_the_search_are_spots_of_the_frontier_and_nothing_else() -> None:
    summary = summarize_study(ROWS, SETTINGS)
    (searched, adamw, recadam) = summary.spots["rte"]
    assert (searched.label, searched.searched, searched.score.mean, searched.lost.mean) == (
        "recadam[k=1]",
        True,
        0.99,
        0.125,
    )
    assert (adamw.searched, adamw.score.mean, adamw.lost.mean) == (False, 0.625, 0.625)
    assert (recadam.name, recadam.lost.values, recadam.distance) == ("recadam", (0.25,), 3.0)
    assert [one.label for one in summary.kept] == ["adamw", "recadam"]
    without = summarize_study([r for r in ROWS if r.seed != 0], SETTINGS)
    assert without.tasks[0].results == summary.tasks[0].results
    assert without.answer == summary.answer


def test_retention_is_the_change_of_each_text_with_layers_as_means() -> None:
    adamw, recadam = summarize_study(ROWS, SETTINGS).kept
    assert adamw.texts["t"].change.values == (0.5, 0.75)
    assert adamw.texts["t"].before.mean == 4.0
    assert (adamw.distance, adamw.cka) == (None, {})
    assert recadam.distance_layers == {"embeddings": 1.0, "encoder.layer.0": 2.0}
    assert recadam.cka_layers == {"t": {"0": 1.0, "1": 0.5}}
    two = [*ROWS, row("recadam[k=2]", 2, 0.25, "cka@t", detail={"layers": {"0": 0.0}})]
    (_, again) = summarize_study(two, SETTINGS).kept
    assert again.cka["t"].mean == 0.5
    assert again.cka_layers["t"] == {"0": 0.5, "1": 0.5}


def test_a_loss_without_the_one_before_says_nothing() -> None:
    assert kept([row("a", 1, 4.0, "lm_loss@t")], lambda r: "a")[0].texts == {}


def test_the_answer_compares_with_the_first_system_and_says_what_was_lost() -> None:
    assert summarize_study(ROWS, SETTINGS).answer == (
        "Against adamw, points after the last step: recadam +18.8 ± 79.4 on rte (interval contains 0). "
        "LM loss of general text moved by +0.250 nats with recadam, +0.625 with adamw."
    )
    sure = [r if r.seed != 2 else replace(r, seed=1) for r in ROWS if r.seed == 1]
    assert "+25.0 on rte (one seed)" in summarize_study(sure, SETTINGS).answer
    tasks = tuple("abcdefg")
    rows = [replace(r, task=task) for r in ROWS if r.metric == "accuracy" for task in tasks]
    assert summarize_study(rows, replace(SETTINGS, tasks=tasks)).answer.startswith(
        "Against adamw, points after the last step: recadam +18.8 on average of 7 tasks, higher on 7."
    )


def test_the_score_that_the_search_went_by_is_the_one_the_answer_tells() -> None:
    rows = [*ROWS, row("adamw", 2, 0.8125, at="best")]
    answer = summarize_study(rows, replace(SETTINGS, search_by="best")).answer
    assert answer.startswith("Against adamw, points at the best evaluation: recadam +12.5 on rte (one seed).")


def test_several_points_of_one_system_are_ranked_not_compared() -> None:
    rows = [row(f"recadam[k={k}]", 1, 0.5 + k / 16) for k in (0, 1, 2)] + [row("infinity", 1, 0.875)]
    summary = summarize_study(rows, StudySettings(tasks=("rte",), systems=("recadam", "infinity"), seeds={"rte": (1,)}))
    assert [r.name for r in summary.tasks[0].results] == [*(f"recadam[k={k}]" for k in (0, 1, 2)), "infinity"]
    assert all(r.ahead is None for r in summary.tasks[0].results)
    assert (
        summary.answer
        == "Best after the last step: infinity 87.5 Accuracy points on rte (last of 4: recadam[k=0], 50.0)."
    )
    assert summary.unfinished == []
    assert (
        summarize_study(rows[-1:], StudySettings()).answer
        == "Scored after the last step: infinity 87.5 Accuracy points on rte."
    )


def test_what_is_missing_is_told_by_task_and_system() -> None:
    settings = replace(SETTINGS, tasks=("rte", "cola"), seeds={"rte": (1, 2, 3), "cola": (1,)})
    assert summarize_study(ROWS, settings).unfinished == [
        "unfinished: adamw on rte lacks seed 3", "unfinished: recadam on rte lacks seed 3",
        "unfinished: adamw has no score on cola", "unfinished: recadam has no score on cola",
    ]  # fmt: skip
    search = summarize_study([r for r in ROWS if r.seed == 0], SETTINGS)
    assert search.unfinished[1] == "unfinished: recadam has no score on rte, only 2 of its search"
    assert search.answer == "Unfinished: no system has a score beside those of its search."
    assert [len(s) for s in search.spots.values()] == [1]


def test_each_task_is_compared_by_the_metric_of_its_first_row() -> None:
    summary = made_up()
    assert {task.name: task.metrics[0].name for task in summary.tasks} == {
        task: metrics[0] for task, metrics in TASKS.items()
    }
    assert [r.published for r in summary.tasks[0].results] == [71.1, 71.1, 74.4, 74.4, None, None, None, None]
    assert summary.unfinished == []
    assert {r.name: len(r.seeds) for r in summary.tasks[0].results} == {"adamw": 5, "recadam": 5}


def test_rows_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(EunoeError, match="two rows of run 'r' give accuracy of 'rte'"):
        summarize_study([*ROWS, row("adamw", 1, 0.6)], SETTINGS)


# -- the terminal -----------------------------------------------------------------------------------------------
def test_the_terminal_shows_a_table_a_task_and_fits_100_columns(tmp_path: Path) -> None:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_run(read_run(made_up_study(tmp_path / "s", cells=False)), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for words in ("rte: Accuracy, points (277 rows", "cola: Matthews", "over adamw", "published", "74.4", "best", "CKA",
                  "recadam: lr = 0.0001, t0 = 0.5 (chosen of 4 on seed 0)", "4.070 > "):  # fmt: skip
        assert words in text, words
    assert "[/red]" in printed([row("adamw", 1, 0.5, task="[/red]")], StudySettings())


@pytest.mark.parametrize("length", [1, 2, 5, 9, 40, 90, 150])
def test_any_beginning_of_a_study_can_be_printed_and_has_a_page(tmp_path: Path, length: int) -> None:
    run = made_up_study(tmp_path / "s", study_rows()[:length])
    assert printed(read_run(run).rows, read_run(run).study or StudySettings()).strip()
    assert "nfinished" in page(write_report([run])).text


# -- the folder -------------------------------------------------------------------------------------------------
def test_cells_are_read_under_the_label_of_their_rows(tmp_path: Path) -> None:
    run = made_up_study(tmp_path / "s")
    loaded = read_run(run).observed
    assert {what for _, what in loaded} >= {"loss", "anchor_distance", "lambda", "accuracy", "matthews", "pearson"}
    curves = loaded[("rte", "anchor_distance")]
    assert {c.label for c in curves} == {f"{s}[{p}]" for s, points in SYSTEMS.items() for p in points}
    assert {c.seed for c in curves} == {0, 1, 2, 3, 4, 5}
    broken = run / "cells" / "rte" / "adamw-0.seed0" / "observed.csv"
    broken.write_text("step,metric,value\n3,lambda,0.5\nx,lambda,1\n4,lambda,nan\n5,lam")
    again = read_run(run)
    assert len(again.observed[("rte", "lambda")]) == len(loaded[("rte", "lambda")]) - 1
    (sentence,) = again.damaged
    assert "cells/rte/adamw-0.seed0/observed.csv" in sentence


def test_a_study_at_work_is_reported_from_its_cells(tmp_path: Path) -> None:
    run = made_up_study(tmp_path / "s")
    whole = read_run(run)
    (run / "rows.jsonl").unlink()
    shutil.rmtree(run / "cells" / "stsb")
    half = read_run(run)
    assert 0 < len(half.rows) < len(whole.rows)
    assert "recadam has no score on stsb" in page(write_report([run])).text


@pytest.mark.parametrize("recipe", [None, "a: ]broken", "- list"])
def test_without_its_recipe_a_study_is_known_by_its_rows(tmp_path: Path, recipe: str | None) -> None:
    run = made_up_study(tmp_path / "s", recipe=recipe or "")
    if recipe is None:
        (run / "recipe.yaml").unlink()
    loaded = read_run(run)
    assert loaded.study == StudySettings()
    text = page(write_report([run])).text
    assert "Best after the last step" in text  # nothing says which rows are of the search
    domains = made_up_run(tmp_path / "d")
    (domains / "recipe.yaml").unlink()
    assert read_run(domains).study is None


@pytest.mark.parametrize(
    "strange", ["tasks: 3", "tasks: [1, {name: a}]\nseeds: x\nsearch: []\npublished: {a: 1, b: {c: x}}", "tasks:"]
)
def test_settings_that_are_none_are_left_out(tmp_path: Path, strange: str) -> None:
    run = made_up_study(tmp_path / "s", ROWS, recipe=strange)
    assert isinstance(read_run(run).study, StudySettings)
    assert write_report([run]).is_file()


# -- the page ---------------------------------------------------------------------------------------------------
def test_a_study_has_a_page_with_all_it_should_say(tmp_path: Path) -> None:
    run = made_up_study(tmp_path / "s")
    read = page(write_report([run]))
    for words in ("Against adamw, points after the last step: recadam", "rte: Accuracy, points", "lr = 0.0001, t0 = 0.5",
                  "Published", "74.4",
                  "How much of the pretrained model is preserved", "Task score against retention", "Over the steps", "CKA on brown",
                  "21 points on seed 0", "1, 2, 3, 4, 5 (rte); 1, 2, 3 (cola, stsb)", "step (logarithmic)",
                  "Spearman, points"):  # fmt: skip
        assert words in read.text, words
    layers, edges, steps, search = 3 * 3, 3, 3 * 4, 3 * 4
    plots = [a for tag, a in read.elements if tag == "svg" and a.get("role") == "img"]
    assert len(plots) == layers + edges + steps + search
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_study_without_searches_texts_or_curves_has_no_empty_sections(tmp_path: Path) -> None:
    rows = study_rows(
        search=False, texts=(), best=False, systems={"adamw": ("",)}, tasks={"rte": ("accuracy",)}, seeds=(1,)
    )
    text = page(write_report([made_up_study(tmp_path / "s", rows, cells=False, recipe="tasks: [{name: rte}]")])).text
    for words in (
        "is preserved",
        "against retention",
        "Over the steps",
        "Published",
        "other metrics",
        "Against",
        "Setting Step",
    ):
        assert words not in text.partition("How to read")[0], words
    assert "Scored after the last step: adamw" in text


def test_runs_that_start_near_are_drawn_over_plain_steps(tmp_path: Path) -> None:
    text = page(write_report([made_up_study(tmp_path / "s", far=False)])).text
    assert "Distance to the pretrained weights" in text
    assert "(logarithmic)" not in text


def test_many_points_each_have_a_line_of_their_own(tmp_path: Path) -> None:
    systems = {"recadam": tuple(f"k={k}" for k in range(10)), "infinity": ("",)}
    rows = study_rows(search=False, systems=systems, tasks={"cola": ("matthews",)}, seeds=(42,))
    run = made_up_study(
        tmp_path / "s", rows, recipe="tasks: [{name: cola}]\nsystems: {recadam: 1, infinity: 2}\nseeds: [42]"
    )
    text = write_report([run]).read_text(encoding="utf-8")
    (far,) = re.findall(r'aria-label="cola: distance to the pretrained weights over.*?</svg>', text, flags=re.S)
    assert len(set(re.findall(r"var\(--ramp-\d+", far))) == 11
    assert "recadam[k=9]" in text


def test_studies_and_runs_stand_on_one_page_and_the_same_folders_give_the_same_bytes(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        folders = [made_up_study(tmp_path / name / "one"), made_up_run(tmp_path / name / "run"),
                   made_up_study(tmp_path / name / "two", study_rows(run="other"))]  # fmt: skip
        pages.append(write_report(folders, tmp_path / f"{name}.html").read_bytes())
    assert pages[0] == pages[1]
    read = page(tmp_path / "a.html")
    assert read.text.count("Against adamw, points after the last step") == 2
    assert "next comes cpt, which learnt 0.746 ± 0.017 and forgot exactly 0" in read.text
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_whatever_stands_in_a_study_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = study_rows(run="<title>", tasks={evil: ("<b>", "$x^2$")}, systems={"<i>": ("a=<u>", "b=$"), '"><img src=x>': ("",)},
                      texts=("<s>$y$",))  # fmt: skip
    run = made_up_study(tmp_path / "s", rows, cells=False, recipe="tasks: [{name: '<script>'}]\nsearch: {seed: 0}")
    place = run / "cells" / "<script>x" / "<u>.seed1"
    place.mkdir(parents=True)
    (place / "observed.csv").write_text("step,metric,value\n1,<b>,2\n")
    read = page(write_report([run]))
    assert not {tag for tag, _ in read.elements} & {"img", "b", "u", "i", "s"}
    assert [tag for tag, _ in read.elements].count("script") == 1, "the page's own"
    for words in (evil, "<i>", "a = <u>", "<s>$y$", "$x^2$"):
        assert words in read.text, words


def test_on_a_phone_a_study_overflows_nowhere(tmp_path: Path) -> None:
    path = write_report([made_up_study(tmp_path / "s")])
    with Chromium() as browser:
        for width in (390, 1200):
            browser.open(path, width, dark=width == 390, phone=width == 390)
            browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            assert browser.requests() == [path.resolve().as_uri()]
            assert browser.complaints() == []


# -- published numbers --------------------------------------------------------------------------------------------
CITING = StudySettings(("rte",), ("recadam", "adamw"), {"rte": (1, 2)}, 0, "last", {
    "recadam[k=1]": {"anchor_distance@rte": 3.3, "loss@rte": 0.05, "rte": 70.0}, "recadam": {"rte": 60.0},
    "recadam[k=3]": {"anchor_distance@rte": 9.0}, "adamw": {"loss@rte": 0.0}, "adamw[lr=2]": {"loss@rte": 0.125},
})  # fmt: skip


def test_a_score_is_cited_for_a_point_or_else_for_its_system() -> None:
    rows = [row("recadam[k=1]", 1, 0.5), row("recadam[k=2]", 1, 0.5), row("adamw", 1, 0.5)]
    assert [r.published for r in summarize_study(rows, CITING).tasks[0].results] == [70.0, 60.0, None]


def test_distance_and_loss_at_the_end_stand_beside_the_cited_ones() -> None:
    steps = tuple(range(1, 41))
    observed = {
        ("rte", "anchor_distance"): [
            Curve("recadam[k=1]", 1, (1, 40), (9.0, 3.0)), Curve("recadam[k=1]", 2, (1, 40), (9.0, 3.5)),
            Curve("recadam[k=1]", 0, (1, 40), (9.0, 99.0)), Curve("recadam[k=2]", 1, (1, 40), (9.0, 99.0)),
        ],
        ("rte", "loss"): [Curve("recadam[k=1]", 1, steps, (1.0,) * 38 + (0.5, 0.25)), Curve("adamw[lr=1]", 1, steps, (0.5,) * 40),
                          Curve("adamw[lr=2]", 1, steps, (0.25,) * 40)],
        ("cola", "loss"): [Curve("adamw", 1, steps, (0.5,) * 40)],
    }  # fmt: skip
    (task,) = cited(CITING, observed).items()
    assert task[0] == "rte"
    assert [(c.label, c.metric.name, c.ours and c.ours.values, c.published) for c in task[1]] == [
        ("recadam[k=1]", "anchor_distance", (3.0, 3.5), 3.3),  # the search's seed and other points are left out
        ("recadam[k=1]", "loss", (0.375,), 0.05),  # the mean over the last steps
        ("recadam[k=3]", "anchor_distance", None, 9.0),
        ("adamw[lr=1]", "loss", (0.5,), 0.0),  # cited for the system; the point below is cited by itself
        ("adamw[lr=2]", "loss", (0.25,), 0.125),
    ]


def figure2(scale: str | None) -> Study:
    recipe = load_recipe("recadam_figure2", scale=scale)
    assert isinstance(recipe, Study)
    return recipe


def test_a_number_of_another_metric_stands_beside_that_metric() -> None:
    rows = [row("adamw", 0, 0.5), row("adamw", 0, 0.25, metric="f1")]
    settings = StudySettings(published={"adamw": {"rte": 70.0, "f1@rte": 60.0, "f1@other": 1.0}})
    assert [(r.metric.name, r.published) for r in summarize_study(rows, settings).tasks[0].results] == [
        ("accuracy", 70.0),
        ("f1", 60.0),
    ]


def test_tasks_that_differ_in_their_training_rows_alone_are_one_chart(tmp_path: Path) -> None:
    source = {"train": "a.csv", "test": "b.csv"}
    recipe = {
        "name": "grow", "systems": {"adamw": "finetune", "<b>": "finetune"}, "seeds": [1, 2],
        "tasks": [{"name": "t_32", **source, "train_rows": 32}, {"name": "t_500", **source, "train_rows": 500, "seeds": [1]},
                  {"name": "t_all", **source}, {"name": "u_32", "train": "c.csv", "test": "b.csv", "train_rows": 32}],
    }  # fmt: skip
    settings = study_settings(recipe)
    assert settings.sizes == ({"t_32": 32, "t_500": 500},)
    rows = [row("adamw", 1, 0.25, task="t_32"), row("adamw", 2, 0.75, task="t_32"), row("adamw", 1, 0.875, task="t_500"),
            row("adamw", 1, 0.99, task="t_500", at="best"), row("<b>", 1, 0.5, task="t_500"), row("<b>", 1, 0.5, task="u_32")]  # fmt: skip
    summary = summarize_study(rows, settings)
    ((title, (metric, systems)),) = growth(summary, settings).items()
    assert (title, metric.name) == ("t", "accuracy")
    points = {name: [(n, r.scores.values) for n, r in points] for name, points in systems.items()}
    assert points == {"adamw": [(32, (0.25, 0.75)), (500, (0.875,))], "<b>": [(500, (0.5,))]}
    looks = {name: style(i) for i, name in enumerate(("adamw", "<b>"))}
    section = growth_section(summary, settings, looks, "x")
    assert "labelled rows (logarithmic)" in section
    assert section.count("<figure") == 1
    assert "&lt;b&gt;" in section
    assert "<b>" not in section
    assert "50.0" in section
    assert "87.5" in section
    assert "99.0" not in section
    assert growth_section(summarize_study(rows[:2], settings), settings, looks, "x") == ""


@pytest.mark.parametrize("scale", [None, "small"])
def test_figure_2_prints_ours_beside_every_published_number(tmp_path: Path, scale: str | None) -> None:
    recipe = figure2(scale)
    labels = [cell.label for cell in resolve_study(recipe).points["cola", "recadam"]]
    assert list(recipe.published) == [*labels, "infinity"]
    systems = {"recadam": tuple(label[8:-1] for label in labels), "infinity": ("",)}
    rows = study_rows(search=False, systems=systems, tasks={"cola": ("matthews",)}, seeds=(42,), texts=())
    file = write_report([made_up_study(tmp_path / "s", rows, recipe=to_yaml(recipe))])
    section = (
        file.read_text(encoding="utf-8").partition("Beside the published curves")[2].partition("Over the steps")[0]
    )
    assert "read by eye, ±0.3" in section
    assert ("another model and budget than ours" in section) == (scale == "small")
    for label, (far, loss) in zip(labels, ((0.25, 0.61), (0.5, 0.51), (3.3, 0.05), (6.3, 0)), strict=False):
        cells = '</td><td class="n">'.join((re.escape(label), r"\d+\.\d\d", f"{far:g}", r"\d\.\d\d\d", f"{loss:g}"))
        assert re.search(f"<td>{cells}</td>", section), label


def test_what_is_cited_must_be_known() -> None:
    data = {"name": "a", "tasks": [{"name": "t", "glue": "rte", "folder": "x"}], "systems": {"adamw": "finetune"}}
    recipe_of({**data, "published": {"adamw[lr=1]": {"t": 1.0, "loss@t": 0.5}}})
    for published, said in (({"adam[lr=1]": {"t": 1.0}}, "adamw"), ({"adamw": {"loss@u": 1.0}}, "unknown task"),
                            ({"adamw": {"los@t": 1.0}}, "unknown measure.*loss")):  # fmt: skip
        with pytest.raises(EunoeError, match=said):
            recipe_of({**data, "published": published})


# -- the recipe of ALBERT -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scale", "tasks", "t0", "dropout"),
    [
        (None, {"mnli": (3e-5, 128, 10000, 1000), "qnli": (1e-5, 32, 33112, 1986), "sst2": (1e-5, 32, 20935, 1256)}, 1000, 0.0),
        ("qqp", {"qqp": (5e-5, 128, 14000, 1000)}, 1000, 0.1),
        ("small_tasks", {"cola": (1e-5, 16, 5336, 320), "stsb": (2e-5, 16, 3598, 214), "mrpc": (2e-5, 32, 800, 200)}, 500, 0.0),
        ("rte", {"rte": (3e-5, 32, 800, 200)}, 500, 0.1),
    ],
)  # fmt: skip
def test_albert_has_the_published_settings(
    scale: str | None, tasks: dict[str, tuple[float, int, int, int]], t0: int, dropout: float
) -> None:
    recipe = load_recipe("recadam_table1_albert", scale=scale)
    assert isinstance(recipe, Study)
    plan: StudyPlan = resolve_study(recipe)
    assert recipe.model.dropout == dropout
    assert {task for task, _ in plan.points} == set(tasks)
    for (task, _), cells in plan.points.items():
        for one in (cell.settings for cell in cells):
            assert one.steps is not None
            assert (one.lr, one.batch, one.steps, warmup_steps(one.warmup, one.steps)) == tasks[task]
            assert one.dropout == 0.1
        grid = sorted({cell.settings.optimizer["t0"] for cell in cells} if len(cells) > 1 else ())
        assert grid in ([], [250, 500, 1000] if t0 == 1000 else [100, 250, 500])
    assert {s: set(scores) for s, scores in recipe.published.items()} == {s: set(tasks) for s in ("adamw", "recadam")}
