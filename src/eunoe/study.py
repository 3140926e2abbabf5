"""A fine-tuning study: one pretrained model, labelled tasks, systems that fine-tune it, seeds; what each learnt and lost.

RecAdam's tables (EMNLP 2020, https://arxiv.org/abs/2004.12651) are such studies; ``eunoe glue`` and ``eunoe finetune`` make
one from their options. A system is a transfer with its settings. One with a ``grid`` has several points; with ``search``
every point runs with the search seed, and the best goes on with the seeds that are reported.

The work is cut into cells, one fine-tuning each, whose results lie in folders of their own. Processes that are started
with the same command share the work: each takes the next cell that nobody is at. rows.jsonl is put together from the
cells in the plan's order, so it does not matter who did what, nor how often one was killed.

Study folder: recipe.yaml, environment.json, times.jsonl, cells/TASK/SYSTEM[-POINT].seedN/{rows.jsonl, curve.csv,
observed.csv}, rows.jsonl, report.html.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eunoe import transfer
from eunoe.atomic import write_text
from eunoe.data.collate import Rows, row_steps
from eunoe.data.corpus import Part, load_blocks
from eunoe.data.glue import GLUE, has_split, load_glue, read_glue
from eunoe.data.shots import evenly
from eunoe.data.submission import fill_submission, validate_submission, write_submission
from eunoe.data.tasks import Example, Task, load_task
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import Score, eval_batches, predictions, task_scores
from eunoe.evaluate.retention import Retention
from eunoe.folder import claimed, derived_seed, finished, mark_finished, note_time, refuse_other
from eunoe.lookup import lookup
from eunoe.methods.base import Method
from eunoe.models.load import LanguageModel, load_lm, refuse_longer
from eunoe.optim.advice import Point, lambda_curve
from eunoe.optim.advice import warnings as advice
from eunoe.optim.schedules import SCHEDULES
from eunoe.progress import say
from eunoe.recipe import CorpusSettings, Study, StudyTask, TaskSettings, build, named, override, refuse_inside
from eunoe.report.page import write_report
from eunoe.report.schema import Row, read_rows, to_line
from eunoe.train import optimizer_settings
from eunoe.transfer.finetune import Finetuned, FinetuneSettings, encode_examples, encode_task


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a task, a system at one point of its grid, a seed."""

    task: str
    system: str
    label: str
    """What rows call it: the system, and the point in brackets."""
    point: int | None
    """Index in the grid; None where the system has none."""
    settings: FinetuneSettings
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its results lie."""
        point = "" if self.point is None else f"-{self.point}"
        return out / "cells" / self.task / f"{self.system}{point}.seed{self.seed}"


@dataclass(frozen=True)
class Annealing:
    """What RecAdam's settings will do in a run of ``steps``: the course, and what will not work."""

    steps: int
    curve: list[Point]
    warnings: list[str]


def annealing(cell: Cell, rows: int) -> Annealing | None:
    """The course of lambda, the pull and the rate when ``cell`` is fine-tuned on ``rows`` rows; None without RecAdam."""
    settings = cell.settings
    _, options, plain = optimizer_settings(settings.optimizer, "optimizer")
    if plain["name"] != "recadam":
        return None
    steps = row_steps(rows, settings.batch, settings.epochs, settings.steps)
    loop = (settings.lr, steps, settings.schedule, settings.warmup)
    return Annealing(steps, lambda_curve(options, *loop), advice(options, *loop, start=settings.start))


@dataclass(frozen=True)
class StudyPlan:
    """A study made ready: ``points[task, system]`` are its cells at seed 0, settings typed; ``recipe`` has all written out."""

    recipe: Study
    points: dict[tuple[str, str], list[Cell]]

    def cells(self, out: Path) -> Iterator[Cell]:
        """All cells known to be owed, in order: those of a search's winner only once its search is done."""
        for (name, _system), points in self.points.items():
            chosen = points
            if self.recipe.search is not None and len(points) > 1:
                tried = [dataclasses.replace(p, seed=self.recipe.search.seed) for p in points]
                yield from tried
                values = [self._value(cell, out) for cell in tried]
                if None in values:
                    continue
                chosen = [points[max(range(len(points)), key=lambda i: (values[i], -i))]]
            for cell in chosen:
                for seed in self._seeds(name):
                    yield dataclasses.replace(cell, seed=seed)

    def _seeds(self, name: str) -> list[int]:
        task = next(t for t in self.recipe.tasks if t.name == name)
        return self.recipe.seeds if task.seeds is None else task.seeds

    def _value(self, cell: Cell, out: Path) -> Any:
        """What a search compares: the first score of a finished cell; None before."""
        assert self.recipe.search is not None
        if not done(cell, out):
            return None
        rows = read_rows(cell.folder(out) / "rows.jsonl")
        return next(row.value for row in rows if row.at == self.recipe.search.by)


def resolve_study(study: Study) -> StudyPlan:
    """Look up every name, type every option and expand every grid; raises ``EunoeError`` for what is unknown."""
    points: dict[tuple[str, str], list[Cell]] = {}
    systems: dict[str, Any] = {}
    for label, value in study.systems.items():
        where = f"recipe.systems.{label}"
        name, options = named(value, where)
        entry = lookup(transfer.TRANSFERS, name, "transfer")
        grid = options.pop("grid", {})
        if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
            raise EunoeError(
                f"{where}.grid: expected keys with lists of values, as in `grid: {{lr: [1e-4, 2e-4]}}`; received {grid!r}."
            )
        systems[label] = {
            "name": name,
            **dataclasses.asdict(_typed(entry, options, {}, {}, where)),
            **({"grid": grid} if grid else {}),
        }
        for task in study.tasks:
            cells = points.setdefault((task.name, label), [])
            for i, values in enumerate(itertools.product(*grid.values())):
                point = dict(zip(grid, values, strict=True))
                shown = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in point.items())
                settings = _typed(entry, options, task.transfer, point, f"{where} ({task.name})")
                if study.search is not None and study.search.by == "best" and not settings.evaluate_every:
                    raise EunoeError(f"{where}: recipe.search.by is best, but evaluate_every is not set: there is one evaluation. Set "
                                     "evaluate_every, or search by last.")  # fmt: skip
                cells.append(
                    Cell(task.name, label, f"{label}[{shown}]" if grid else label, i if grid else None, settings, 0)
                )
    return StudyPlan(dataclasses.replace(study, systems=systems, scales={}), points)


def _typed(
    entry: transfer.Entry, options: dict[str, Any], of_task: dict[str, Any], point: dict[str, Any], where: str
) -> FinetuneSettings:
    data = deepcopy(options)
    for key, value in {**of_task, **point}.items():
        override(data, key, value)
    settings: FinetuneSettings = build(entry.settings, data, where)
    lookup(SCHEDULES, settings.schedule, f"schedule in {where}")
    settings.optimizer = optimizer_settings(settings.optimizer, f"{where}.optimizer")[2]
    return settings


def run_study(study: Study, out: Path, command: str = "", fill: bool = False) -> Path:
    """Carry out ``study`` in the folder ``out``, or help others who are at it; returns the path of its report.

    ``fill``: where test rows are answered, submission.zip also answers the tasks that the study lacks, with a constant.
    Raises ``EunoeError`` for anything the user can mend, ``Interrupted`` when asked to stop (place saved).
    """
    plan = resolve_study(study)
    refuse_inside(out, _sources(plan.recipe))
    refuse_other(plan.recipe, out, lambda old: resolve_study(old).recipe)
    if finished(out):
        added = _fill(out) if fill else []
        say(
            f"{out} is finished: every score of the study is there. {'Only submission.zip' if added else 'Nothing'} was changed."
        )
        return out / "report.html"
    bench = Bench(plan.recipe)
    for cells in plan.points.values():
        for cell in cells:
            course = annealing(cell, len(bench.tasks[cell.task].train))
            for line in course.warnings if course else []:
                say(f"warning: {cell.task}, {cell.label}: {line}")
    with claimed(plan.recipe, out, command, shared=True):
        while owed := [cell for cell in plan.cells(out) if not done(cell, out)]:
            if any(_take(cell, bench, out) for cell in owed):  # one at a time: it may decide a search
                _gather(plan, out)
            else:
                time.sleep(1)  # others are at all that is left
        return _finish(plan, out, fill)


def _sources(study: Study) -> list[str]:
    """Every source that a study reads, but for the folder of GLUE's own files."""
    tasks = [s for task in study.tasks for s in (task.train, task.dev, task.test)]
    return [s for s in tasks + [s for c in study.retention.values() for s in (c.source, c.valid)] if s is not None]


def done(cell: Cell, out: Path) -> bool:
    """Are the cell's results there?"""
    return (cell.folder(out) / "rows.jsonl").is_file()


class Bench:
    """What every cell needs, made once: the pretrained model, the tasks as token ids, the measure of retention.

    Raises ``EunoeError`` for missing or broken models, tasks and text, before anything is written.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.lm = load_lm(study.model)
        self.tasks = {task.name: load_study_task(task) for task in study.tasks}
        self._rows: dict[tuple[str, int], tuple[Rows, Rows]] = {}
        self.more = {task.name: _more_splits(task, study.evaluation.predict_test) for task in study.tasks}
        self.retention: Retention | None = None
        if study.retention:
            refuse_longer(self.lm, study.evaluation.block, "recipe.evaluation.block")
            self.retention = Retention(self.lm, {k: _text(self.lm, study, c) for k, c in study.retention.items()})

    def rows(self, task: str, settings: FinetuneSettings) -> tuple[Rows, Rows]:
        """A task's training and scored rows as token ids, cut at the settings' length."""
        key = (task, settings.max_length)
        if key not in self._rows:
            self._rows[key] = encode_task(self.lm, self.tasks[task], settings)
        return self._rows[key]


def load_study_task(settings: StudyTask) -> Task:
    """A GLUE task, scored on its development set, or rows of your own."""
    if settings.glue is None:
        if settings.made is not None:
            raise EunoeError(
                f"task of {settings.name!r}: a study's task has rows of its own; received made: {settings.made}."
            )
        own = {f.name: getattr(settings, f.name) for f in dataclasses.fields(TaskSettings)}
        return load_task(settings.name, TaskSettings(**own), CorpusSettings(source=""))
    unread = [
        f.name
        for f in dataclasses.fields(TaskSettings)
        if f.name != "test_rows" and getattr(settings, f.name) != f.default
    ]
    if unread:
        raise EunoeError(f"task of {settings.name!r}: {', '.join(unread)} is not read with glue; leave it out.")
    assert settings.folder is not None
    lookup(GLUE, settings.glue, "GLUE task")
    return load_glue(settings.name, settings.glue, settings.folder, settings.train_rows, settings.test_rows)


def _more_splits(settings: StudyTask, predict_test: bool) -> dict[str, list[Example]]:
    """Rows of a GLUE task besides the scored ones: MNLI's other development set, and test rows to answer."""
    if settings.glue is None or settings.folder is None:
        return {}
    asked = [(settings.glue, "dev_mismatched")]
    if predict_test:
        asked += [(settings.glue, "test"), (settings.glue, "test_mismatched")]
        asked += [("ax", "test")] if settings.glue == "mnli" else []
    found = {}
    for task, split in asked:
        if split in GLUE[task].splits and (task != "ax" or has_split(task, settings.folder, split)):
            rows = read_glue(task, settings.folder, split)
            wanted = next((n for s, _, n in GLUE[task].submit if s == split), len(rows))
            if len(rows) != wanted:
                say(f"warning: {settings.folder} has {len(rows):,} {split} rows of {task}, but GLUE has {wanted:,}: its server will not "
                    "take the answers. Fetch the file again.")  # fmt: skip
            if split.startswith("dev") and settings.test_rows is not None:
                rows = [rows[i] for i in evenly(len(rows), settings.test_rows)]
            found[f"{task} {split}"] = rows
    return found


def _text(lm: LanguageModel, study: Study, corpus: CorpusSettings) -> list[Any]:
    part: Part = "valid" if corpus.valid is not None else "all"
    blocks = load_blocks(corpus, lm.tokenizer, study.evaluation.block, part).take(study.evaluation.blocks)
    return eval_batches(lm, blocks, study.evaluation.batch, study.evaluation.mask_rate)


# -- one cell ---------------------------------------------------------------------------------------------------
def _take(cell: Cell, bench: Bench, out: Path) -> bool:
    """Carry out a cell unless it is done or another process is at it; was it carried out?"""
    with _mine(cell.folder(out)) as mine:
        if not mine or done(cell, out):
            return False
        carry_out(cell, bench, out)
        return True


@contextmanager
def _mine(folder: Path) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def carry_out(cell: Cell, bench: Bench, out: Path) -> None:
    """Fine-tune, score, measure what is left, and write the cell's files; rows.jsonl last, because it means done."""
    began, folder, task = time.monotonic(), cell.folder(out), bench.tasks[cell.task]
    entry = lookup(transfer.TRANSFERS, named(bench.study.systems[cell.system], "")[0], "transfer")
    fine: Finetuned = entry.transfer(
        bench.lm, Method(bench.lm.model, None, []), None, task, bench.rows(cell.task, cell.settings), cell.settings,
        derived_seed(cell.seed, "task", cell.task), bench.study.evaluation.batch, folder / "steps",
        f"{cell.task} · {cell.label} · seed {cell.seed}",
    )  # fmt: skip
    told: dict[str, list[Any]] = {}
    rows = [_row(bench, cell, score, fine.steps) for score in fine.scores]
    rows += [_row(bench, cell, score, fine.best_step, at="best") for score in fine.best]
    for split, examples in bench.more[cell.task].items():
        found = encode_examples(bench.lm, task, examples, cell.settings.max_length)
        if split.endswith("dev_mismatched"):
            other = task_scores(fine.model, found, task.labels, bench.study.evaluation.batch)[0]
            rows.append(_row(bench, cell, replace(other, metric="accuracy_mm", detail=None), fine.steps))
        else:
            told[split] = predictions(fine.model, found, task.labels, bench.study.evaluation.batch)
    if told:
        write_text(folder / "predictions.json", json.dumps(told) + "\n")
    if bench.retention is not None:
        rows += [_row(bench, cell, score, fine.steps) for score in bench.retention.of(fine.model.trunk)]
    write_text(folder / "curve.csv", fine.trained.curve_csv())
    write_text(
        folder / "observed.csv",
        "step,metric,value\n" + "".join(f"{s},{m},{v!r}\n" for s, m, v in fine.trained.observed),
    )
    write_text(folder / "rows.jsonl", "".join(map(to_line, rows)))
    shutil.rmtree(folder / "steps", ignore_errors=True)
    note_time(out, str(folder.relative_to(out)), time.monotonic() - began, fine.trained.tokens)


def _row(bench: Bench, cell: Cell, score: Score, steps: int, at: str = "last") -> Row:
    return Row(
        run=bench.study.name, method="base", transfer=cell.label, order="none", seed=cell.seed,
        shots_seed=bench.tasks[cell.task].shots_seed, learnt=(), task=cell.task, metric=score.metric, value=score.value,
        n=score.n, steps=steps, at=at, detail=score.detail,
    )  # fmt: skip


def _gather(plan: StudyPlan, out: Path) -> None:
    """rows.jsonl from the cells that are done, in the plan's order; the same whoever does it."""
    with _alone(out):
        cells = dict.fromkeys(cell.folder(out) / "rows.jsonl" for cell in plan.cells(out) if done(cell, out))
        write_text(out / "rows.jsonl", "".join(file.read_text(encoding="utf-8") for file in cells))


def _finish(plan: StudyPlan, out: Path, fill: bool) -> Path:
    """The rows of all cells, the submission if one was asked for, and the report."""
    _gather(plan, out)
    with _alone(out):
        if finished(out):
            return out / "report.html"
        if plan.recipe.evaluation.predict_test:
            _submit(plan, out, fill)
        report = write_report([out])
        mark_finished(out)
    return report


def _submit(plan: StudyPlan, out: Path, fill: bool) -> None:
    """submission.zip: of each task the answers of the cell with the best last development score, searches left out.

    Whatever is wrong with it is said.
    """
    answers: dict[tuple[str, str], list[Any]] = {}
    tried = plan.recipe.search.seed if plan.recipe.search else None
    for task in plan.recipe.tasks:
        cells = [c for c in plan.cells(out) if c.task == task.name and c.seed != tried]
        best = max(
            cells, key=lambda c: next(r.value for r in read_rows(c.folder(out) / "rows.jsonl") if r.at == "last")
        )
        file = best.folder(out) / "predictions.json"
        if file.is_file():
            held = json.loads(file.read_text(encoding="utf-8"))
            answers |= {(key.split(" ")[0], key.split(" ")[1]): value for key, value in held.items()}
            say(f"submission: {task.name} is answered by {best.label}, seed {best.seed}")
    lacking = write_submission(out / "submission.zip", answers)
    if fill:
        _fill(out)
        lacking = []
    faults = validate_submission(out / "submission.zip")
    for fault in faults:
        say(f"submission: {fault}")
    if lacking:
        say(
            f"submission: `eunoe glue --check {out / 'submission.zip'} --fill` answers the files that are missing with a constant"
        )
    if not faults:
        say(f"submission: {out / 'submission.zip'} has all files, rows and labels that GLUE's server wants")


def _fill(out: Path) -> list[str]:
    """Add what submission.zip lacks, and say so; returns the names."""
    file = out / "submission.zip"
    added = fill_submission(file) if file.is_file() else []
    if added:
        say(f"submission: {', '.join(added)} answered with a constant: their scores on the server mean nothing")
    return added


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One process at a time."""
    with open(out / ".rows.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


__all__ = [
    "Annealing",
    "Bench",
    "Cell",
    "StudyPlan",
    "annealing",
    "carry_out",
    "done",
    "load_study_task",
    "resolve_study",
    "run_study",
]
