"""eunoe: teach a pretrained language model new domains without it forgetting, measure what was forgotten, show it.

The public names below are loaded on first use; importing the package does nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "EunoeError": "eunoe.errors",
    "RecAdam": "eunoe.optim.recadam",
    "anchored_groups": "eunoe.optim.groups",
    "load_recipe": "eunoe.recipe",
    "run": "eunoe.run",
    "write_report": "eunoe.report.page",
    "verify": "eunoe.run",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'eunoe' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
