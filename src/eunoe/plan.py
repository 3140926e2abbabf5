"""A recipe made ready: names looked up, options typed, every score that the run owes listed.

All that a recipe alone can get wrong is refused here, before any text is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eunoe import methods, transfer
from eunoe.data.tasks import draw_seed, draws
from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.optim.schedules import SCHEDULES
from eunoe.recipe import LoopSettings, Recipe, TrainingSettings, build, check_names, named
from eunoe.train import optimizer_settings

BASE = "base"
"""Stands for the pretrained model, before any domain, wherever rows name a method."""


@dataclass(frozen=True)
class Sequence:
    """One way through the domains: a method, an order, a seed. ``method`` None: the pretrained model itself."""

    label: str
    method: methods.Entry | None
    settings: Any
    training: TrainingSettings
    order_name: str
    order: tuple[str, ...]
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.label}.{self.order_name}.seed{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One measurement that becomes rows: the LM loss of a domain's held-out text (or of general text), or an end task."""

    learnt: tuple[str, ...]
    task: str
    end_task: bool
    shots_seed: int | None = None
    """Seed of the few-shot draw that an end task is fine-tuned on; None: of all rows, or no end task."""


@dataclass(frozen=True)
class Plan:
    """A resolved recipe. ``recipe`` has every option of methods, transfer and optimizers written out."""

    recipe: Recipe
    transfer_name: str
    transfer: transfer.Entry
    transfer_settings: Any
    sequences: tuple[Sequence, ...]
    repeated: dict[str, str]
    """Orders that are another one once more, with its name. They make no sequences: their scores would be the other's to the
    bit, and counted twice would make an interval narrower than it is."""

    def cells(self, sequence: Sequence) -> Iterator[Cell]:
        """All measurements a sequence owes, in the order they are made."""
        general = ("general",) if self.recipe.general else ()
        tasks = {d.name: [draw_seed(t) for t in draws(d.task)] for d in self.recipe.domains if d.task}
        if sequence.method is None:
            yield from (Cell((), name, False) for name in [*sequence.order, *general])
            if self.recipe.evaluation.base:
                yield from (Cell((), name, True, seed) for name in sequence.order for seed in tasks.get(name, ()))
            return
        for i in range(len(sequence.order)):
            learnt = sequence.order[: i + 1]
            yield from (Cell(learnt, name, False) for name in [*learnt, *general])
            ends = self.recipe.evaluation.matrix == "full" or i == len(sequence.order) - 1
            for name in learnt if ends else learnt[-1:]:
                yield from (Cell(learnt, name, True, seed) for seed in tasks.get(name, ()))


def resolve(recipe: Recipe) -> Plan:
    """Look up every name and type every option; raises ``EunoeError`` (close matches given) for what is unknown."""
    _check_schedule(recipe.training, "recipe.training")
    sequences: list[Sequence] = []
    kept: list[dict[str, Any]] = []
    orders = {k: tuple(v) for k, v in recipe.orders.items()} or {"given": tuple(d.name for d in recipe.domains)}
    chosen: list[tuple[str, methods.Entry | None, Any, TrainingSettings]] = [(BASE, None, None, recipe.training)]
    for i, value in enumerate(recipe.methods):
        name, options = named(value, f"recipe.methods[{i}]")
        entry = lookup(methods.METHODS, name, "method")
        label = options.pop("label", name)
        training = dataclasses.replace(recipe.training)
        if "training" in options:
            if not isinstance(options["training"], dict):
                raise EunoeError(
                    f"recipe.methods[{i}].training: expected keys with values, received {options['training']!r}."
                )
            merged = {**dataclasses.asdict(recipe.training), **options.pop("training")}
            training = build(TrainingSettings, merged, f"recipe.methods[{i}].training")
            _check_schedule(training, f"recipe.methods[{i}].training")
            if training.block != recipe.training.block:
                raise EunoeError(f"recipe.methods[{i}].training.block is {training.block}, but all methods read the same blocks: set "
                                 f"recipe.training.block (now {recipe.training.block}).")  # fmt: skip
        training.optimizer = optimizer_settings(training.optimizer, f"recipe.methods[{i}].training.optimizer")[2]
        settings = build(entry.settings, options, f"recipe.methods[{i}] ({name})")
        chosen.append((label, entry, settings, training))
        kept.append(
            {"name": name, "label": label, **dataclasses.asdict(settings), "training": dataclasses.asdict(training)}
        )
    check_names([label for label, *_ in chosen[1:]], "method label")
    first: dict[tuple[str, ...], str] = {}
    for order_name, order in orders.items():
        first.setdefault(order, order_name)
    for order, order_name in first.items():
        for seed in recipe.seeds:
            if recipe.domains:
                sequences += [Sequence(label, entry, settings, training, order_name, order, seed)
                              for label, entry, settings, training in chosen]  # fmt: skip
    transfer_name, options = named(recipe.transfer, "recipe.transfer")
    held = lookup(transfer.TRANSFERS, transfer_name, "transfer")
    settings = build(held.settings, options, f"recipe.transfer ({transfer_name})")
    _check_schedule(settings, f"recipe.transfer ({transfer_name})")
    settings.optimizer = optimizer_settings(settings.optimizer, "recipe.transfer.optimizer")[2]
    full = dataclasses.replace(
        recipe, methods=kept, orders={k: list(v) for k, v in orders.items()}, scales={},
        transfer={"name": transfer_name, **dataclasses.asdict(settings)},
        training=dataclasses.replace(recipe.training,
                                     optimizer=optimizer_settings(recipe.training.optimizer, "recipe.training.optimizer")[2]),
    )  # fmt: skip
    repeated = {name: first[order] for name, order in orders.items() if first[order] != name}
    return Plan(full, transfer_name, held, settings, tuple(sequences), repeated)


def _check_schedule(loop: LoopSettings, where: str) -> None:
    lookup(SCHEDULES, loop.schedule, f"schedule in {where}")
