"""eunoe: teach a pretrained language model new domains without it forgetting, measure what was forgotten, show it.

The public names below are loaded on first use; importing the package does nothing else.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "EunoeError": "eunoe.errors",
    "RecAdam": "eunoe.optim.recadam",
    "anchored_groups": "eunoe.optim.groups",
    "load_recipe": "eunoe.recipe",
    "load_plugins": "eunoe.plugins.inject",
    "run": "eunoe.run",
    "set_domain": "eunoe.plugins.inject",
    "verify": "eunoe.verify",
    "write_report": "eunoe.report.page",
}
__all__ = [
    "EunoeError", "RecAdam", "__version__", "anchored_groups", "load_plugins", "load_recipe", "run", "set_domain", "verify",
    "write_report",
]  # fmt: skip


TYPE_CHECKING = False  # as in typing, whose import would cost more than all the rest here
if TYPE_CHECKING:
    from eunoe.errors import EunoeError
    from eunoe.optim.groups import anchored_groups
    from eunoe.optim.recadam import RecAdam
    from eunoe.plugins.inject import load_plugins, set_domain
    from eunoe.recipe import load_recipe
    from eunoe.report.page import write_report
    from eunoe.run import run
    from eunoe.verify import verify


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'eunoe' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
