"""eunoe: teach a pretrained language model new domains without it forgetting, measure what was forgotten, show it.

The public names below are loaded on first use; importing the package does nothing else.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.2.0"

_PUBLIC = {
    "EunoeError": "eunoe.errors:EunoeError",
    "RecAdam": "eunoe.optim.recadam:RecAdam",
    "anchored_groups": "eunoe.optim.groups:anchored_groups",
    "load_plugins": "eunoe.plugins.files:load_plugins",
    "load_recipe": "eunoe.recipe:load_recipe",
    "run_recipe": "eunoe.engine:run",
    "set_domain": "eunoe.plugins.inject:set_domain",
    "verify_run": "eunoe.verify:verify",
    "write_report": "eunoe.report.page:write_report",
}
"""Public name -> where it lives. None is the name of a submodule: importing that would take the name over."""
__all__ = [
    "EunoeError", "RecAdam", "__version__", "anchored_groups", "load_plugins", "load_recipe", "run_recipe", "set_domain",
    "verify_run", "write_report",
]  # fmt: skip


TYPE_CHECKING = False  # as in typing, whose import would cost more than all the rest here
if TYPE_CHECKING:
    from eunoe.engine import run as run_recipe
    from eunoe.errors import EunoeError
    from eunoe.optim.groups import anchored_groups
    from eunoe.optim.recadam import RecAdam
    from eunoe.plugins.files import load_plugins
    from eunoe.plugins.inject import set_domain
    from eunoe.recipe import load_recipe
    from eunoe.report.page import write_report
    from eunoe.verify import verify as verify_run


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'eunoe' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
