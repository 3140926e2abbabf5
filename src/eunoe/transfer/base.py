"""The contract of a transfer: how a pretrained language model is brought to a labelled end task.

``Start`` is what a transfer gets, ``Tuned`` what it leaves. A transfer works on copies: the model, the tokenizer and the
method of ``Start`` are as they were when it returns. Whoever calls it knows neither its settings nor its trunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from eunoe.data.tasks import Example, Task
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import Score
from eunoe.methods.base import Method
from eunoe.models.load import LanguageModel
from eunoe.optim.advice import Point
from eunoe.train import Trained


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a transfer starts from."""

    lm: LanguageModel
    method: Method
    domain: str | None
    """Whose masks, prompts or expert the model reads the task with; None: the model without them."""
    task: Task
    seed: int
    """The classifier's start, the order of the rows and dropout depend on it alone, so equal models get equal scores."""
    batch: int
    """Labelled rows that pass the model at once when they are scored."""
    folder: Path | None = None
    """For checkpoints on the way; None: none are written, and a stopped transfer starts over."""
    shared: Path | None = None
    """A folder that the fine-tunings of a study have in common, gone when it ends: what several do to the bit alike is done once
    and kept there, as a language model that is tuned on a task's text. None: each does it by itself."""
    name: str = ""
    """Shown on the progress bar and in errors."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What this fine-tuning is (run, cell, what it starts from): checkpoints of another are refused."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a transfer leaves."""

    scores: list[Score]
    """On the task's test rows, after the last step."""
    phases: dict[str, Trained]
    """Each phase's training, in order."""
    predict: Callable[[Sequence[Example]], list[Any]]
    """Rows -> for each a class's name, a number, a list of tags, or the index of a choice."""
    trunk: nn.Module | None
    """The fine-tuned trunk under the base model's own names; None where there is none (features of a frozen model)."""
    best: list[Score] = field(default_factory=list)
    """The scores of the evaluation with the best first metric, the earliest of equals; [] where there was one evaluation."""
    best_step: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps over all phases."""
        return sum(trained.steps for trained in self.phases.values())

    @property
    def tokens(self) -> int:
        return sum(trained.tokens for trained in self.phases.values())

    def curve_csv(self) -> str:
        """The curves of all phases, steps counted on, as ``curve.csv`` holds them."""
        joined, before = Trained(0), 0
        for trained in self.phases.values():
            joined.curve += [(before + step, loss, lr, norm) for step, loss, lr, norm in trained.curve]
            before += trained.steps
        return joined.curve_csv()

    def observed_csv(self) -> str:
        """What was observed on the way, steps counted on."""
        lines, before = ["step,metric,value\n"], 0
        for trained in self.phases.values():
            lines += [f"{before + step},{metric},{value!r}\n" for step, metric, value in trained.observed]
            before += trained.steps
        return "".join(lines)


@dataclass(frozen=True)
class Course:
    """What the settings will do in a run of ``steps``, before it starts: RecAdam's annealing, and what will not work."""

    steps: int
    curve: list[Point]
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of TRANSFERS."""

    transfer: Callable[[Start, Any], Tuned]
    settings: type[Any]
    check: Callable[[LanguageModel, Task, Any, str], None]
    """(model, task, settings, where): raises ``EunoeError`` for all that can be refused before anything is written."""
    summary: str
    resolve: Callable[[Any, str], Any]
    """(settings, where) -> the settings with names looked up and options written out; raises ``EunoeError``."""
    course: Callable[[Any, int], Course | None] = lambda settings, rows: None
    """(settings, training rows) -> what the optimizer's annealing will do; None where there is none."""
    scorings: Callable[[Any, int], int] = lambda settings, steps: 1
    """(settings, steps) -> how often it scores the test rows."""
    composed: Mapping[str, Any] = field(default_factory=dict)
    """Options that ``eunoe finetune`` and ``eunoe glue`` set where the user sets none."""
    drafted: Callable[[int, int], dict[str, Any]] = lambda epochs, tokens: {}
    """(passes over the rows, tokens of a row) -> the options that stand in a recipe of ``eunoe new``."""
    unlabelled: bool = False
    """Does it read ``Task.unlabelled``? A task's ``unlabelled`` that no transfer of the recipe reads is refused."""
    no_best: Callable[[Any], str | None] = lambda settings: "this transfer scores once: choose another one"
    """settings -> why ``Tuned.best`` will be empty, and what to set; None where there are several evaluations."""
    reads: Callable[[Any], Mapping[str, str]] = lambda settings: {}
    """settings that ``check`` let pass -> what it reads beside the model and the task, and the SHA-256 of that: a run that is
    resumed with other files is refused."""
    kinds: tuple[str, ...] = ("classification", "regression", "choice")
    """Kinds of tasks that it is for."""

    def refuse(self, lm: LanguageModel, task: Task, settings: Any, where: str) -> None:
        """Raise ``EunoeError`` for a task that is not of ``kinds``, and for all that ``check`` refuses."""
        if task.kind not in self.kinds:
            raise EunoeError(f"{where}: the task {task.name!r} is of kind {task.kind}, and this transfer is for {', '.join(self.kinds)}. "
                             "Choose another transfer: eunoe list transfers.")  # fmt: skip
        self.check(lm, task, settings, where)


__all__ = ["Course", "Entry", "Start", "Tuned"]
