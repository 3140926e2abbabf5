"""What ``precision: auto`` is: bfloat16 where the device has units for it; in a run folder what the folder says.

A run has one precision on whatever machine it is resumed, so ``auto`` is written out when a run begins. Folders of earlier versions
hold ``auto`` itself, which was float32 on every CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import torch

from eunoe import ranks
from eunoe.models.half import can_half
from eunoe.recipe import Recipe, Study, build

AnyRecipe = TypeVar("AnyRecipe", Recipe, Study)


def auto() -> Literal["float32", "bf16"]:
    """What ``auto`` is on this machine: bf16 on a GPU that has it and on a CPU with units for it, else float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if ranks.device().type == "cpu" and can_half() else "float32"


def written_out(recipe: AnyRecipe, kept: Recipe | Study | None = None) -> AnyRecipe:
    """A resolved recipe with each ``precision: auto`` as its folder has it (``kept``: that one's resolved recipe), or as it is here.

    Where the folder has ``auto`` too, an earlier version began the run: it is what ``auto`` was to that.
    """
    before = auto() if torch.cuda.is_available() else "float32"
    filled = _filled(asdict(recipe), None if kept is None else asdict(kept), {None: auto, "auto": lambda: before})
    return recipe if filled == asdict(recipe) else build(type(recipe), filled, "recipe")


def _filled(value: Any, there: Any, meanings: dict[Any, Callable[[], str]], key: str = "") -> Any:
    """``value`` with each ``auto`` under the key ``precision`` replaced; ``there``: what stands at the same place of the folder."""
    if isinstance(value, dict):
        inner = there if isinstance(there, dict) else {}
        return {k: _filled(v, inner.get(k), meanings, k) for k, v in value.items()}
    if isinstance(value, list):
        beside = there if isinstance(there, list) and len(there) == len(value) else [None] * len(value)
        return [_filled(v, t, meanings, key) for v, t in zip(value, beside, strict=True)]
    if key == "precision" and value == "auto":
        return meanings[there]() if there in meanings else there
    return value


__all__ = ["auto", "written_out"]
