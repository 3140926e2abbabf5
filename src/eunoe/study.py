"""A fine-tuning study made ready: one pretrained model, labelled tasks, systems that fine-tune it, seeds; its work cut into cells.

RecAdam's tables (EMNLP 2020, https://arxiv.org/abs/2004.12651) are such studies; ``eunoe glue`` and ``eunoe finetune`` make
one from their options. A system is a transfer with its settings. One with a ``grid`` has several points; with ``search``
every point runs with the search seed, and the best then runs with the seeds that are reported. A cell is one fine-tuning.

Study folder: recipe.yaml, environment.json, times.jsonl, cells/TASK/SYSTEM[-POINT].seedN/{rows.jsonl, curve.csv,
observed.csv}, rows.jsonl, report.html.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eunoe import ranks, transfer
from eunoe.atomic import write_text
from eunoe.cells import Board, Cell
from eunoe.data.cache import sha256
from eunoe.data.corpus import Part, load_blocks
from eunoe.data.glue import GLUE, has_split, load_glue, read_glue
from eunoe.data.shots import evenly
from eunoe.data.submission import fill_submission, validate_submission, write_submission
from eunoe.data.tasks import Example, Task, load_task
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import Score, answer_scores, eval_batches
from eunoe.evaluate.retention import Retention
from eunoe.folder import derived_seed, note_time, says_whose
from eunoe.lookup import lookup
from eunoe.methods.base import Method
from eunoe.models.load import LanguageModel, pretrained, refuse_longer
from eunoe.progress import say
from eunoe.recipe import CorpusSettings, ModelSettings, Study, StudyTask, TaskSettings, build, named, override
from eunoe.report.schema import Row, to_line
from eunoe.transfer import Start


@dataclass(frozen=True)
class Finetune:
    """One fine-tuning: a task, a system at one point of its grid, a seed."""

    task: str
    system: str
    label: str
    """What rows call it: the system, and the point in brackets."""
    point: int | None
    """Index in the grid; None where the system has none."""
    entry: transfer.Entry
    settings: Any
    model: ModelSettings
    """What is fine-tuned: the study's model, or the system's own."""
    seed: int

    @property
    def key(self) -> str:
        """Where its results lie."""
        point = "" if self.point is None else f"-{self.point}"
        return f"cells/{self.task}/{self.system}{point}.seed{self.seed}"

    @property
    def cell(self) -> Cell:
        return Cell(self.key, (), self, f"cells/{self.task}")


@dataclass
class StudyPlan:
    """A study made ready: ``points[task, system]`` are its fine-tunings at seed 0, settings typed; ``recipe`` has all written out."""

    recipe: Study
    points: dict[tuple[str, str], list[Finetune]]
    out: Path = field(default_factory=Path)

    def cells(self, board: Board) -> list[Cell]:
        """All cells known to be owed, in order: those of a search's winner only once its search is done."""
        return [work.cell for work in self.works(board)]

    def works(self, board: Board) -> Iterator[Finetune]:
        """The fine-tunings known to be owed, in order."""
        for (name, _system), points in self.points.items():
            chosen = points
            if self.recipe.search is not None and len(points) > 1:
                tried = [replace(p, seed=self.recipe.search.seed) for p in points]
                yield from tried
                values = [self._value(work, board) for work in tried]
                if None in values:
                    continue
                chosen = [points[max(range(len(points)), key=lambda i: (values[i], -i))]]
            for work in chosen:
                for seed in self._seeds(name):
                    yield replace(work, seed=seed)

    def _seeds(self, name: str) -> list[int]:
        task = next(t for t in self.recipe.tasks if t.name == name)
        return self.recipe.seeds if task.seeds is None else task.seeds

    def _value(self, work: Finetune, board: Board) -> Any:
        """What a search compares: the first score of a finished cell; None before."""
        assert self.recipe.search is not None
        if not board.done(work.cell):
            return None
        return next(row.value for row in board.rows(work.key) if row.at == self.recipe.search.by)

    # -- before anything is written ------------------------------------------------------------------------------------
    def refuse_ranks(self) -> None:
        ranks.refuse_several("a study")

    def prepare(self, out: Path) -> dict[str, str]:
        study, self.out = self.recipe, out
        self.models: dict[tuple[Any, ...], LanguageModel] = {}
        self.lm = self.model(study.model)
        self.tasks = {task.name: load_study_task(task) for task in study.tasks}
        self.more = {task.name: _more_splits(task, study.evaluation.predict_test) for task in study.tasks}
        self.texts: dict[str, list[Any]] = {}
        self.retention: dict[tuple[Any, ...], Retention] = {}
        digests = {"model": self.lm.identity}
        for points in self.points.values():
            for work in points:
                task = self.tasks[work.task]
                lm = self.model(work.model)
                if work.model != study.model:
                    digests[f"model of {work.system}"] = lm.identity
                work.entry.refuse(lm, task, work.settings, f"recipe.systems.{work.system}")
                digests |= {f"{what} of {work.label}": value for what, value in work.entry.reads(work.settings).items()}
                course = work.entry.course(work.settings, len(task.train))
                for line in course.warnings if course else []:
                    say(f"warning: {work.task}, {work.label}: {line}")
        if study.retention:
            for lm in self.models.values():
                refuse_longer(lm, study.evaluation.block, "recipe.evaluation.block")
            self.texts = self._texts(self.lm)
        digests |= {
            f"{name} (text)": sha256(b["input_ids"].tolist() for b in batches) for name, batches in self.texts.items()
        }
        digests |= {
            f"{name} (unlabelled)": sha256(task.unlabelled) for name, task in self.tasks.items() if task.unlabelled
        }
        return digests | {
            name: sha256([(e.text, e.pair, str(e.label), *e.choices) for e in part] for part in (task.train, task.test))
            for name, task in self.tasks.items()
        }

    def sources(self) -> list[str]:
        """Every file or folder that the study will read, but GLUE's: its files are read by their names, whatever lies beside them."""
        study = self.recipe
        texts = [s for corpus in study.retention.values() for s in (corpus.source, corpus.valid)]
        rows = [s for task in study.tasks for s in (task.train, task.dev, task.test, task.unlabelled)]
        return [s for s in [*texts, *rows] if s is not None]

    def model(self, settings: ModelSettings) -> LanguageModel:
        """The model of these settings, loaded once and never changed."""
        key = dataclasses.astuple(settings)
        if key not in self.models:
            self.models[key] = pretrained(settings)
            self.models[key].model.to(ranks.device())
        return self.models[key]

    def _texts(self, lm: LanguageModel) -> dict[str, list[Any]]:
        return {name: _text(lm, self.recipe, corpus) for name, corpus in self.recipe.retention.items()}

    def weights(self) -> int:
        return max(sum(p.numel() for p in lm.model.parameters()) for lm in self.models.values())

    # -- one cell ------------------------------------------------------------------------------------------------------
    def begin(self, board: Board) -> None:
        """Nothing to get ready."""

    def carry_out(self, cell: Cell, board: Board) -> list[str]:
        """Fine-tune, score, measure what is preserved, and write the cell's files."""
        began, folder, work = time.monotonic(), self.out / cell.key, cell.work
        task, batch = self.tasks[work.task], self.recipe.evaluation.batch
        names = ["rows.jsonl", "curve.csv", "observed.csv"]
        if (folder / "rows.jsonl").is_file() and not says_whose(self.out):
            return [f"{cell.key}/{name}" for name in names if (folder / name).is_file()]  # a version before 0.2 did it
        lm = self.model(work.model)
        tuned = work.entry.transfer(Start(
            lm=lm, method=Method(lm.model, None, []), domain=None, task=task, seed=derived_seed(work.seed, "task", work.task),
            batch=batch, folder=folder / "steps", shared=self.out / "shared", name=f"{work.task} · {work.label} · seed {work.seed}",
            identity={"run": board.run or "", "cell": cell.key},
        ), work.settings)  # fmt: skip
        rows = [self._row(work, score, tuned.steps) for score in tuned.scores]
        rows += [self._row(work, score, tuned.best_step, at="best") for score in tuned.best]
        answers: dict[str, list[Any]] = {}
        for split, examples in self.more[work.task].items():
            predicted = tuned.predict(examples)
            if split.endswith("dev_mismatched"):
                other = answer_scores(task, [e.label for e in examples], predicted)[0]
                rows.append(self._row(work, replace(other, metric="accuracy_mm", detail=None), tuned.steps))
            else:
                answers[split] = predicted
        if answers:
            write_text(folder / "predictions.json", json.dumps(answers) + "\n")
            names.append("predictions.json")
        if self.texts and tuned.trunk is not None:
            rows += [self._row(work, score, tuned.steps) for score in self._retention(work.model).measure(tuned.trunk)]
        write_text(folder / "curve.csv", tuned.curve_csv())
        write_text(folder / "observed.csv", tuned.observed_csv())
        write_text(folder / "rows.jsonl", "".join(map(to_line, rows)))
        note_time(self.out, cell.key, time.monotonic() - began, tuned.tokens)
        return [f"{cell.key}/{name}" for name in names]

    def _retention(self, settings: ModelSettings) -> Retention:
        """Made with the first cell that needs it: it is measured with the threads of a cell."""
        key, lm = dataclasses.astuple(settings), self.model(settings)
        if key not in self.retention:
            self.retention[key] = Retention(lm, self.texts if lm is self.lm else self._texts(lm))
        return self.retention[key]

    def _row(self, work: Finetune, score: Score, steps: int, at: str = "last") -> Row:
        task = self.tasks[work.task]
        return Row(
            run=self.recipe.name, method="base", transfer=work.label, order="none", seed=work.seed,
            shots_seed=task.shots_seed, short_shots=task.short or None, learnt=(), task=work.task, metric=score.metric, value=score.value,
            n=score.n, steps=steps, at=at, detail=score.detail,
        )  # fmt: skip

    def drop_damaged(self, board: Board) -> None:
        """A study keeps no states of stages."""

    # -- the end ---------------------------------------------------------------------------------------------------------
    def finish(self, board: Board, fill: bool) -> list[str]:
        """The submission, if one was asked for; what the cells had in common goes."""
        shutil.rmtree(self.out / "shared", ignore_errors=True)
        if not self.recipe.evaluation.predict_test:
            return []
        self._submit(board, fill)
        return ["submission.zip"]

    def _submit(self, board: Board, fill: bool) -> None:
        """submission.zip: of each task the answers of the cell with the best last development score, searches left out.

        Whatever is wrong with it is said.
        """
        file, answers = board.out / "submission.zip", dict[tuple[str, str], list[Any]]()
        tried = self.recipe.search.seed if self.recipe.search else None
        for task in self.recipe.tasks:
            works = [work for work in self.works(board) if work.task == task.name and work.seed != tried]
            best = max(works, key=lambda work: next(r.value for r in board.rows(work.key) if r.at == "last"))
            saved = board.out / best.key / "predictions.json"
            if saved.is_file():
                kept = json.loads(saved.read_text(encoding="utf-8"))
                answers |= {(key.split(" ")[0], key.split(" ")[1]): value for key, value in kept.items()}
                say(f"submission: {task.name} is answered by {best.label}, seed {best.seed}")
        lacking = write_submission(file, answers)
        if fill:
            fill_constant(board.out)
            lacking = []
        faults = validate_submission(file)
        for fault in faults:
            say(f"submission: {fault}")
        if lacking:
            say(f"submission: `eunoe glue --check {file} --fill` answers the files that are missing with a constant")
        if not faults:
            say(f"submission: {file} has all files, rows and labels that GLUE's server wants")


def fill_constant(out: Path) -> list[str]:
    """Add what submission.zip lacks, and say so; returns the names."""
    file = out / "submission.zip"
    added = fill_submission(file) if file.is_file() else []
    if added:
        say(f"submission: {', '.join(added)} answered with a constant: their scores on the server mean nothing")
    return added


def resolve_study(study: Study) -> StudyPlan:
    """Look up every name, type every option and expand every grid; raises ``EunoeError`` for what is unknown."""
    points: dict[tuple[str, str], list[Finetune]] = {}
    systems: dict[str, Any] = {}
    names = [named(value, f"recipe.systems.{label}")[0] for label, value in study.systems.items()]
    transfer.refuse_unread({task.name: task for task in study.tasks}, names)
    for label, value in study.systems.items():
        where = f"recipe.systems.{label}"
        name, options = named(value, where)
        entry = lookup(transfer.TRANSFERS, name, "transfer")
        grid, own = options.pop("grid", {}), options.pop("model", None)
        model = (
            study.model
            if own is None
            else build(ModelSettings, {"name": own} if isinstance(own, str) else own, f"{where}.model")
        )
        if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
            raise EunoeError(
                f"{where}.grid: expected keys with lists of values, as in `grid: {{lr: [1e-4, 2e-4]}}`; received {grid!r}."
            )
        systems[label] = {
            "name": name,
            **dataclasses.asdict(_typed(entry, options, {}, {}, where)),
            **({"grid": grid} if grid else {}),
            **({"model": dataclasses.asdict(model)} if own is not None else {}),
        }
        for task in study.tasks:
            cells = points.setdefault((task.name, label), [])
            for i, values in enumerate(itertools.product(*grid.values())):
                point = dict(zip(grid, values, strict=True))
                shown = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in point.items())
                settings = _typed(entry, options, task.transfer, point, f"{where} ({task.name})")
                if study.search is not None and study.search.by == "best" and (why := entry.no_best(settings)):
                    raise EunoeError(f"{where}: recipe.search.by is best, but {why}, or search by last.")
                cells.append(
                    Finetune(
                        task.name,
                        label,
                        f"{label}[{shown}]" if grid else label,
                        i if grid else None,
                        entry,
                        settings,
                        model,
                        0,
                    )
                )
    return StudyPlan(dataclasses.replace(study, systems=systems, scales={}), points)


def _typed(
    entry: transfer.Entry, options: dict[str, Any], of_task: dict[str, Any], point: dict[str, Any], where: str
) -> Any:
    data = deepcopy(options)
    for key, value in {**of_task, **point}.items():
        override(data, key, value)
    return entry.resolve(build(entry.settings, data, where), where)


def load_study_task(settings: StudyTask) -> Task:
    """A GLUE task, scored on its development set, or rows of your own."""
    if settings.glue is None:
        if settings.made is not None:
            raise EunoeError(
                f"task of {settings.name!r}: a study's task has rows of its own; received made: {settings.made}."
            )
        own = {f.name: getattr(settings, f.name) for f in dataclasses.fields(TaskSettings)}
        task = load_task(settings.name, TaskSettings(**own), CorpusSettings(source=""))
        kept = evenly(len(task.train), settings.train_rows or len(task.train))
        return replace(task, train=tuple(task.train[i] for i in kept))
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
    splits = {}
    for task, split in asked:
        if split in GLUE[task].splits and (task != "ax" or has_split(task, settings.folder, split)):
            rows = read_glue(task, settings.folder, split)
            wanted = next((n for s, _, n in GLUE[task].submit if s == split), len(rows))
            if len(rows) != wanted:
                say(f"warning: {settings.folder} has {len(rows):,} {split} rows of {task}, but GLUE has {wanted:,}: its server will not "
                    "take the answers. Fetch the file again.")  # fmt: skip
            if split.startswith("dev") and settings.test_rows is not None:
                rows = [rows[i] for i in evenly(len(rows), settings.test_rows)]
            splits[f"{task} {split}"] = rows
    return splits


def _text(lm: LanguageModel, study: Study, corpus: CorpusSettings) -> list[Any]:
    part: Part = "valid" if corpus.valid is not None else "all"
    blocks = load_blocks(corpus, lm.tokenizer, study.evaluation.block, part).take(study.evaluation.blocks)
    return eval_batches(lm, blocks, study.evaluation.batch, study.evaluation.mask_rate)


__all__ = ["Finetune", "StudyPlan", "fill_constant", "load_study_task", "resolve_study"]
