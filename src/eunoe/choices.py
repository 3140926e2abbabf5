"""A recipe's choice (a name, or a name with options) -> the table's entry and its typed settings.

One function for methods, transfers and optimizers: what is unknown is answered with close matches, in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.lookup import lookup
from eunoe.optim.table import OPTIMIZERS
from eunoe.recipe import build, named


class HasSettings(Protocol):
    """A table's row: it says which dataclass types its options."""

    @property
    def settings(self) -> type[Any]: ...


Row = TypeVar("Row", bound=HasSettings)


def choose(table: Mapping[str, Row], choice: Any, where: str, kind: str) -> tuple[str, Row, Any]:
    """``choice`` of a recipe at ``where`` -> its name, the row of ``table`` and the settings; raises ``EunoeError``.

    >>> choose(OPTIMIZERS, {"name": "adamw", "weight_decay": 0.1}, "recipe.training.optimizer", "optimizer")[2].weight_decay
    0.1
    """
    name, options = named(choice, where)
    row = lookup(table, name, kind)
    return name, row, build(row.settings, options, f"{where} ({name})")


def written_out(choice: Any, where: str) -> dict[str, Any]:
    """A choice of optimizer with every option written out, as ``recipe.yaml`` holds it."""
    name, _, settings = choose(OPTIMIZERS, choice, where, "optimizer")
    return {"name": name, **asdict(settings)}


def make_optimizer(
    choice: Any, model: nn.Module, lr: float, steps: int, anchor: Mapping[str, Tensor] | None = None
) -> Optimizer:
    """The optimizer that a recipe chose, over the weights of ``model`` that train; ``anchor``: what RecAdam recalls."""
    _, row, settings = choose(OPTIMIZERS, choice, "optimizer", "optimizer")
    built: Optimizer = row.build(model, settings, lr, steps=steps, anchor=anchor)
    return built


__all__ = ["choose", "make_optimizer", "written_out"]
