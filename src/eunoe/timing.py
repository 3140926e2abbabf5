"""How long the cells of a plan take, and what they leave on the disk: a few real steps, and the rest by their number.

The steps are taken on models that are made for it and thrown away, with training cut short (``train.trial``), so whatever a
method or a transfer does is timed without knowing it. Nothing is saved and nothing is looked up in a run's folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from eunoe import stop
from eunoe.cells import Board
from eunoe.data.collate import row_steps
from eunoe.data.shots import evenly
from eunoe.evaluate.answers import answer
from eunoe.evaluate.evaluator import lm_score
from eunoe.head import head_job
from eunoe.material import Material
from eunoe.methods.base import Method, bytes_of
from eunoe.plan import Ask, Head, Learn, Measure, Publish, RunPlan
from eunoe.progress import say
from eunoe.recipe import LoopSettings
from eunoe.sequence import Sequence as Way
from eunoe.sequence import Walk
from eunoe.study import Finetune, StudyPlan
from eunoe.train import train, trial
from eunoe.transfer import Entry, Start

SAVE, LOAD = 200e6, 600e6
"""Bytes a second of a checkpoint written through to a common disk and hashed; and of one that is read and verified."""
OPTIMIZER = 3
"""A checkpoint on the way is so many times the trainable weights: with the two moments of Adam."""
ON_THE_WAY = 3
"""Checkpoints on the way that lie side by side at most: the last two, and the one that is written."""
TRIAL = (3, 1.5)
"""Steps of a trial at most, and the seconds after which it ends sooner."""


@dataclass(frozen=True)
class Piece:
    """A cell, and what it takes."""

    key: str
    needs: tuple[str, ...]
    group: str
    kind: str
    """``learn``, ``score text``, ``end task``, ``answer prompts`` or ``LM head``."""
    what: str
    """The method or system."""
    steps: int
    seconds: float
    keeps: int = 0
    """Bytes that it leaves on the disk."""
    on_the_way: int = 0
    """Bytes on the disk until it is done."""
    restores: float = 0.0
    """Seconds to bring a model into the state that the cell starts from."""


def together(pieces: Sequence[Piece], jobs: int, build: Mapping[str, float]) -> float:
    """Seconds until ``jobs`` processes have done all pieces, each taking the next one that is ready, of its own group first.

    ``build``: seconds to make a group's model, which a process does when it comes to another group.

    >>> a, b = Piece("a", (), "x", "learn", "m", 1, 2.0), Piece("b", ("a",), "x", "learn", "m", 1, 3.0)
    >>> together([a, b, replace(a, key="c", group="y")], 2, {})
    5.0
    """
    owed, finished = list(pieces), dict[str, float]()
    free: list[tuple[float, int, str, str]] = [(0.0, k, "", "") for k in range(jobs)]
    while owed:
        now, k, group, state = min(free)
        ready = [p for p in owed if all(finished.get(need, float("inf")) <= now for need in p.needs)]
        if not ready:  # until another job is done
            later = min((t for t in finished.values() if t > now), default=None)
            if later is None:  # needs that no piece makes
                raise ValueError(f"nothing is ready of {[p.key for p in owed]}")
            free[_place(free, k)] = (later, k, group, state)
            continue
        groups = list(dict.fromkeys(p.group for p in ready))
        piece = min(ready, key=lambda p: (p.group != group, (groups.index(p.group) - k) % len(groups)))
        seconds = piece.seconds + (build.get(piece.group, 0.0) if piece.group != group else 0.0)
        if piece.needs and (piece.group, piece.needs[-1]) != (group, state):
            seconds += piece.restores
        owed.remove(piece)
        finished[piece.key] = now + seconds
        after = piece.key if piece.kind == "learn" else piece.needs[-1] if piece.needs else ""
        free[_place(free, k)] = (now + seconds, k, piece.group, after)
    return max(finished.values(), default=0.0)


def _place(free: Sequence[tuple[float, int, str, str]], k: int) -> int:
    return next(i for i, job in enumerate(free) if job[1] == k)


# -- a few steps --------------------------------------------------------------------------------------------------------
def _seconds(work: Callable[[], Any]) -> float:
    stop.check("timing a few steps")
    began = time.monotonic()
    work()
    return time.monotonic() - began


@dataclass(frozen=True)
class _Steps:
    """What a training took whose steps were cut short."""

    steps: int
    done: int
    step: float
    """Seconds a step."""
    rest: float
    """Seconds of all else, and of the steps that were taken."""

    def seconds(self, steps: int) -> float:
        return self.rest + (steps - self.done) * self.step


@dataclass(frozen=True)
class _Tuning(_Steps):
    """What fine-tuning on an end task took."""

    row: float
    """Seconds to score a row."""
    once: float
    """Seconds of what is done the first time alone: tokenising the rows."""
    settings: Any
    rows: int
    entry: Entry


def _time_steps(work: Callable[[], Any]) -> _Steps:
    with trial(*TRIAL) as tried:
        rest = _seconds(work)
    steps, done = sum(t.total for t in tried), sum(len(t.times) - 1 for t in tried)
    return _Steps(steps, done, sum(t.left_out for t in tried) / max(1, steps - done), rest)


def _time_tuning(entry: Entry, settings: Any, start: Start) -> _Tuning:
    """Fine-tune for a few steps and answer some of the test rows."""
    sample = tuple(start.task.test[i] for i in evenly(len(start.task.test), start.batch))
    start = replace(start, task=replace(start.task, test=sample), folder=None)
    tuned: list[Any] = []

    def work() -> None:
        tuned[:] = [entry.transfer(start, settings)]

    timed, once = _time_steps(work), 0.0
    if timed.rest > 3:  # tokenising many rows is kept for the next time
        again = _time_steps(work)
        timed, once = again, max(0.0, timed.rest - again.rest)
    scoring = _seconds(lambda: tuned[0].predict(sample))
    return _Tuning(timed.steps, timed.done, timed.step, max(0.0, timed.rest - scoring), scoring / len(sample), once,
                   settings, len(start.task.train), entry)  # fmt: skip


@dataclass
class _Tunings:
    """The end tasks that were timed: every task with one system, and every system with one task. The others follow from these."""

    timed: dict[tuple[str, str], _Tuning] = field(default_factory=dict)

    def lacks(self, system: str, task: str) -> bool:
        return not any(s == system for s, _ in self.timed) or not any(t == task for _, t in self.timed)

    def estimate(self, system: str, task: str, settings: Any, train_rows: int, test_rows: int) -> tuple[int, float]:
        """Optimizer steps, and seconds, of fine-tuning ``system`` on ``task`` with ``settings``."""
        like = next(t for (_, name), t in self.timed.items() if name == task)
        if (system, task) in self.timed:
            like = self.timed[system, task]
            step, rest, row = like.step, like.rest, like.row
        else:  # slower or faster than the system that was timed on this task as on the task where both were
            own_task, own = next((name, t) for (s, name), t in self.timed.items() if s == system)
            other = next(t for (s, name), t in self.timed.items() if name == own_task)
            step, rest, row = (
                like.step * own.step / other.step,
                like.rest * own.rest / other.rest,
                like.row * own.row / other.row,
            )
        steps = like.steps
        if isinstance(settings, LoopSettings) and isinstance(like.settings, LoopSettings):
            steps = round(like.steps * _loop(settings, train_rows) / _loop(like.settings, like.rows))
            step *= settings.batch / like.settings.batch
        times = next(t for (s, _), t in self.timed.items() if s == system).entry.scorings(settings, steps)
        return steps, rest + max(0, steps - like.done) * step + times * test_rows * row


def _learn(walk: Walk, i: int, material: Material) -> None:
    train(walk.job(i, material))


def _loop(settings: LoopSettings, rows: int) -> int:
    return row_steps(rows, settings.batch, settings.epochs, settings.steps)


def _saving(loop: Any, steps: int, weights: int) -> tuple[float, int]:
    """Seconds of saving checkpoints on the way, and the bytes they take."""
    times = steps // getattr(loop, "checkpoint_every", steps + 1)
    return times * OPTIMIZER * weights / SAVE, OPTIMIZER * weights * min(times, ON_THE_WAY)


class Timed:
    build: dict[str, float]
    tunings: _Tunings

    @property
    def once(self) -> float:
        """Seconds that are spent once, at the first fine-tuning of each task."""
        return sum(tuning.once for tuning in self.tunings.timed.values())

    def pieces(self) -> list[Piece]:
        raise NotImplementedError


class TimedRun(Timed):
    """A run over domains, some steps of it timed."""

    def __init__(self, plan: RunPlan) -> None:
        assert plan.material is not None
        self.plan, self.material, self.recipe = plan, plan.material, plan.recipe
        self.cells = plan.cells(Board(nowhere(), None))
        self.build = {}
        self.learning: dict[str, list[_Steps]] = {}
        self.texts: dict[str, float] = {}
        self.tunings, self.answers, self.head = _Tunings(), 0.0, None
        self.kept: dict[str, int] = {}
        self.weights: dict[str, int] = {}
        self.publishes: dict[str, bool] = {}
        if self.recipe.head is not None:
            say("timing the LM head")
            _, job = head_job(self.recipe.model, self.recipe.head, nowhere(), 0, {})
            self.head = _time_steps(lambda: train(job))
        ways = {way.label: way for way in reversed(plan.sequences)}
        for way in ways.values():  # the pretrained model last: a method is what most end tasks are timed with
            say(f"timing {way.label}")
            self._time(way)

    def _time(self, way: Way) -> None:
        walks: list[Walk] = []
        seconds = _seconds(lambda: walks.append(Walk(way, self.recipe.model, nowhere())))
        walk, label, stages = walks[0], way.label, way.stages
        cells = [cell for cell in self.cells if not isinstance(cell.work, Head) and cell.work.way.label == label]
        self.build |= {cell.group: seconds for cell in cells}
        own = [cell.work for cell in cells]
        if any(isinstance(work, Learn) for work in own):
            # what protects earlier domains costs nothing in the first stage, so a second one is timed too
            several = stages[:2] if walk.method.starts_from == "previous" else stages[:1]
            self.learning[label] = [_time_steps(partial(_learn, walk, i, self.material)) for i in range(len(several))]
        domain = stages[0][0] if stages else None
        scored = next((work.task for work in own if isinstance(work, Measure) and not work.end_task), None)
        if scored is not None:
            walk.method.activate(domain)
            batch = self.material.valid[scored][0]
            log_probs = lambda batch: walk.method.log_probs(batch, domain)  # noqa: E731 - as in a run
            seconds = _seconds(lambda: lm_score(walk.lm.model, [batch], log_probs))
            self.texts[label] = seconds / len(batch["input_ids"])
        for name in dict.fromkeys(work.task for work in own if isinstance(work, Measure) and work.end_task):
            if self.tunings.lacks(label, name):
                task = next(iter(self.material.tasks[name].values()))
                start = Start(
                    lm=walk.lm, method=walk.method, domain=domain, task=task, seed=0, batch=self.recipe.evaluation.batch
                )
                self.tunings.timed[label, name] = _time_tuning(self.plan.transfer, self.plan.transfer_settings, start)
        if self.recipe.evaluation.prompts and not self.answers:
            walk.method.activate(domain)
            asked = self.recipe.evaluation
            self.answers = _seconds(lambda: answer(walk.lm, asked.asked[0].text, asked.answer_tokens)) * len(
                asked.prompts
            )
        weights = bytes_of(walk.method.weights())
        self.kept[label] = weights + bytes_of(walk.method.state_dict())
        if scored is not None and stages:
            self.kept[label] += bytes_of(walk.read(domain, self.material.valid[scored][0]["input_ids"][:2]))
        self.weights[label] = weights
        self.publishes[label] = type(walk.method).publish is not Method.publish

    def pieces(self) -> list[Piece]:
        return [self._piece(cell.key, cell.needs, cell.group, cell.work) for cell in self.cells]

    def _piece(self, key: str, needs: tuple[str, ...], group: str, work: Any) -> Piece:
        if isinstance(work, Head):
            assert self.recipe.head is not None
            assert self.head is not None
            steps, weights = self.recipe.head.steps, 4 * self.plan.weights()
            saving, way = _saving(self.recipe.head, steps, weights)
            return Piece(key, needs, group, "LM head", "", steps, self.head.seconds(steps) + saving, weights // 4, way)
        label, restores = work.way.label, self.kept.get(work.way.label, 0) / LOAD
        if isinstance(work, Learn):
            timed, steps = self.learning[label], work.way.steps(work.i, self.material)
            saving, way = _saving(work.way.training, steps, self.weights[label])
            kept = self.kept[label]
            seconds = timed[min(work.i, len(timed) - 1)].seconds(steps) + saving + kept / SAVE + kept / LOAD
            return Piece(key, needs, group, "learn", label, steps, seconds, kept, way, restores)
        if isinstance(work, Publish):
            size = self.weights[label] if self.publishes[label] else 0
            return Piece(key, needs, group, "write plug-ins and notes", label, 0, size / SAVE, size, restores=restores)
        if isinstance(work, Ask):
            return Piece(key, needs, group, "answer prompts", label, 0, self.answers, restores=restores)
        if not work.end_task:
            seconds = self.texts[label] * held_out(self.material, work.task)
            return Piece(key, needs, group, "score text", label, 0, seconds, restores=restores)
        task, settings = self.material.tasks[work.task][work.shots_seed], self.plan.transfer_settings
        steps, seconds = self.tunings.estimate(label, work.task, settings, len(task.train), len(task.test))
        if self.recipe.evaluation.retention:
            seconds += 2 * self.texts[label] * held_out(self.material, "general")
        saving, way = _saving(settings, steps, 4 * self.plan.weights())
        return Piece(key, needs, group, "end task", label, steps, seconds + saving, 0, way, restores)


class TimedStudy(Timed):
    """A fine-tuning study, some steps of it timed."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan, self.tunings, self.build = plan, _Tunings(), {}
        self.text = 0.0
        for (name, system), points in plan.points.items():
            if not self.tunings.lacks(system, name):
                continue
            say(f"timing {system} on {name}")
            lm = plan.model(points[0].model)
            start = Start(lm=lm, method=Method(lm.model, None, []), domain=None, task=plan.tasks[name], seed=0,
                          batch=plan.recipe.evaluation.batch)  # fmt: skip
            self.tunings.timed[system, name] = _time_tuning(points[0].entry, points[0].settings, start)
        for batches in plan.texts.values():
            self.text += 2 * len(batches) * _seconds(partial(lm_score, plan.lm.model, batches[:1]))

    def pieces(self) -> list[Piece]:
        """As the study's cells; of a search, whose winner is not known yet, the first point stands for it."""
        study, pieces = self.plan.recipe, list[Piece]()
        for (name, _), points in self.plan.points.items():
            own = next(task.seeds for task in study.tasks if task.name == name)
            tried: list[Piece] = []
            chosen = points
            if study.search is not None and len(points) > 1:
                tried = [self._piece(replace(point, seed=study.search.seed), ()) for point in points]
                chosen = points[:1]
            needs = tuple(piece.key for piece in tried)
            pieces += tried
            pieces += [
                self._piece(replace(p, seed=s), needs) for p in chosen for s in (study.seeds if own is None else own)
            ]
        return pieces

    def _piece(self, work: Finetune, needs: tuple[str, ...]) -> Piece:
        task = self.plan.tasks[work.task]
        test_rows = len(task.test) + sum(len(rows) for rows in self.plan.more[work.task].values())
        steps, seconds = self.tunings.estimate(work.system, work.task, work.settings, len(task.train), test_rows)
        saving, way = _saving(work.settings, steps, 4 * self.plan.weights())
        return Piece(
            work.key, needs, work.cell.group, "end task", work.system, steps, seconds + self.text + saving, 0, way
        )


def nowhere() -> Path:
    """A folder that is not there: nothing is looked up in it or written to it."""
    return Path("runs") / f".plan-{os.getpid()}"


def held_out(material: Material, name: str) -> int:
    return sum(len(batch["input_ids"]) for batch in material.valid[name])


__all__ = ["Piece", "TimedRun", "TimedStudy", "held_out", "nowhere", "together"]
