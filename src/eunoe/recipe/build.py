"""Plain data -> a settings dataclass: unknown keys, wrong types and values out of range are refused by their place."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from eunoe.errors import EunoeError
from eunoe.lookup import unknown

T = TypeVar("T")


def build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A settings dataclass from plain data; unknown keys and wrong types are refused, naming the place and value."""
    if not isinstance(data, Mapping):
        raise EunoeError(f"{where}: expected keys of {cls.__name__}, received {data!r}.")
    _check_keys(cls, data, where)
    try:
        return TypeAdapter(cls).validate_python(dict(data))
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"])
            got = "" if fault["type"] == "missing" else f", received {fault['input']!r}"
            lines.append(f"{where}.{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}{got}")
        raise EunoeError("; ".join(lines) + ".") from None


def _check_keys(kind: Any, data: Any, where: str) -> None:
    """Refuse keys that no dataclass field reads, wherever they are nested; and true, nan and inf given for a number."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    allowed = set(args or (kind,)) if origin in (None, typing.Union, types.UnionType) else set()
    if isinstance(data, bool) and allowed & {int, float} and bool not in allowed:
        raise EunoeError(f"{where}: expected a number, received {str(data).lower()}.")
    if isinstance(data, float) and not math.isfinite(data):
        raise EunoeError(f"{where}: expected a finite number, received {data}.")
    if origin in (typing.Union, types.UnionType):
        for option in args:
            if dataclasses.is_dataclass(option) and isinstance(data, Mapping):
                _check_keys(option, data, where)
    elif origin is list and isinstance(data, list):
        for i, item in enumerate(data):
            _check_keys(args[0], item, f"{where}[{i}]")
    elif dataclasses.is_dataclass(kind) and isinstance(data, Mapping):
        hints = typing.get_type_hints(kind)
        for key, value in data.items():
            if key not in hints:
                raise unknown(str(key), hints, f"key in {where}")
            _check_keys(hints[key], value, f"{where}.{key}")


def named(value: Any, where: str) -> tuple[str, dict[str, Any]]:
    """``name`` or ``{name: ..., options}`` -> the name and its options."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value["name"], {k: v for k, v in value.items() if k != "name"}
    raise EunoeError(f"{where}: expected a name or a mapping with the key `name`, received {value!r}.")
