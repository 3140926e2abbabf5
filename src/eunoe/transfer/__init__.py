"""The one table of transfer recipes: how a post-trained model is brought to an end task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eunoe.transfer.finetune import Finetuned, FinetuneSettings, finetune


@dataclass(frozen=True)
class Entry:
    """A transfer recipe, the dataclass of its settings, and what it does in one line."""

    transfer: Callable[..., Finetuned]
    settings: type[Any]
    summary: str


TRANSFERS: dict[str, Entry] = {
    "finetune": Entry(finetune, FinetuneSettings, "fresh classifier, everything trains; optimizer adamw or recadam"),
}

__all__ = ["TRANSFERS", "Entry"]
