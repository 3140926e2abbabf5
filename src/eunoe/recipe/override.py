"""``--a.b.c value``: one key of plain data set in place, before the data becomes typed settings."""

from __future__ import annotations

from typing import Any

from eunoe.errors import EunoeError
from eunoe.recipe.settings import LoopSettings, Recipe


def override(data: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` of plain data in place, in mappings and lists (``domains.0.name``; ``domains.*.name`` and ``systems.*.lr`` set all).

    Where a name may stand for a mapping (a method, a transfer, an optimizer), a key below it makes it one.
    """
    *path, last = key.split(".")
    targets: list[Any] = [data]
    for depth, part in enumerate(path):
        step: list[Any] = []
        for target in targets:
            if isinstance(target, list):
                if not target or (part != "*" and not (part.isdecimal() and int(part) < len(target))):
                    there = (
                        f"there are {len(target)}: 0 to {len(target) - 1}, or * for all"
                        if target
                        else "the list is empty"
                    )
                    raise EunoeError(f"--{key}: {part!r} picks no entry; {there}.")
                for i in range(len(target)) if part == "*" else [int(part)]:
                    if isinstance(target[i], str):
                        target[i] = {"name": target[i]}
                    step.append(target[i])
            elif not isinstance(target, dict):
                raise EunoeError(f"--{key}: {part!r} would stand below {target!r}, which has no key of its own.")
            else:
                if part == "*" and not target:
                    raise EunoeError(f"--{key}: '*' picks no entry; there are none.")
                for name in list(target) if part == "*" else [part]:
                    step.append(_below(target, [*path[:depth], name], key))
        targets = step
    for target in targets:
        if not isinstance(target, dict):
            raise EunoeError(f"--{key}: give the whole list, or a key of one of its entries.")
        target[last] = value


def _below(target: dict[str, Any], path: list[str], key: str) -> Any:
    """The mapping or list at the last name of ``path`` in ``target``, made if a name or nothing stands there."""
    here, name = ".".join(path), path[-1]
    inner = target.get(name)
    if isinstance(inner, str) and (name in ("transfer", "optimizer") or path[:-1] == ["systems"]):
        inner = {"name": inner}
    if inner is None:
        default = {"transfer": Recipe.transfer, "training.optimizer": LoopSettings.optimizer, "optimizer": "adamw"}
        inner = {"name": default[here]} if here in default else {}
    if not isinstance(inner, dict | list):
        raise EunoeError(f"--{key}: {name!r} is {inner!r} and has no key of its own.")
    target[name] = inner
    return inner
