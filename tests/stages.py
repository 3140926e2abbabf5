"""Stages made on the spot, for tests that call a method's hooks by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from eunoe.data.collate import Batch
from eunoe.methods.base import Stage, restore, trainable


class Many:
    """So many steps that a method's annealing has whole epochs; none of them is asked for."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, step: int) -> list[Batch]:
        raise AssertionError("these steps are only counted")


def stage(name: str, **change: Any) -> Stage:
    """The stage of one domain; ``change`` sets other fields."""
    return Stage(**{"name": name, "domains": (name,), "batches": Many(), **change})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of ``model`` that training may change, by name."""
    return {name: p.detach() for name, p in trainable(model)}


def put_back(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Saved weights back into those of ``model`` that train."""
    restore(weights(model), tensors, where)
