"""``--a.b.c value``: one key of plain data set in place, before the data becomes typed settings."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.recipe.settings import LoopSettings, Recipe
from eunoe.recipe.strict import parse_yaml

Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]


def pairs(overrides: Any) -> list[tuple[str, Any]]:
    """Overrides as (dotted key, plain value): text is read as YAML, as on the command line; other values are taken as they are.

    Raises ``EunoeError`` for what is neither a mapping nor pairs, and for values that no recipe can hold.
    """
    given = overrides.items() if isinstance(overrides, Mapping) else overrides
    parsed: list[tuple[str, Any]] = []
    for pair in [given] if isinstance(given, str) or not isinstance(given, Iterable) else given:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise EunoeError(f"overrides: expected keys with values, as in {{'training.steps': 8}} or [('training.steps', 8)]; "
                             f"received {visible(repr(pair))}.")  # fmt: skip
        key, value = pair
        parsed.append((key, parse_yaml(value, f"--{key}") if isinstance(value, str) else _plain(value, key)))
    return parsed


def _plain(value: Any, key: str) -> Any:
    """A Python value as YAML would have given it: paths are text, tuples are lists, numpy's numbers are numbers."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_plain(name, key): _plain(inner, key) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, key) for inner in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise EunoeError(f"{key}: a recipe cannot hold {type(value).__name__}; received {visible(repr(value))}. Give text, numbers, true, "
                     "false, None, lists or mappings.")  # fmt: skip


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
