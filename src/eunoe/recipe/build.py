"""Plain data -> a settings dataclass: unknown keys, wrong types and values out of range are refused by their place."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.lookup import unknown

T = TypeVar("T")
_PLAIN = (
    ("Input should", "must"),
    ("greater than or equal to", "at least"),
    ("greater than", "above"),
    ("less than or equal to", "at most"),
    ("less than", "below"),
)
"""Pydantic's words -> ours."""


def build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A settings dataclass from plain data; unknown keys and wrong types are refused, naming the place and value."""
    if not isinstance(data, Mapping):
        raise EunoeError(f"{where}: expected keys of {cls.__name__}, received {visible(repr(data))}.")
    _check_keys(cls, data, where)
    try:
        built: T = _adapter(cast(Any, cls)).validate_python(dict(data))
    except ValidationError as error:
        raise EunoeError("; ".join(_faults(error, data, where)) + ".") from None
    return built


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _faults(error: ValidationError, data: Any, where: str) -> list[str]:
    """A line for each place that is wrong. Where a value may be of several types, pydantic tells each by itself: one line here."""
    by_place: dict[str, list[str]] = {}
    received: dict[str, str] = {}
    for fault in error.errors():
        place, value = where, data
        for part in fault["loc"]:  # besides keys and indices it holds names of types
            if isinstance(value, Mapping) and (part in value or fault["type"] == "missing"):
                place, value = f"{place}.{part}", value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                place, value = f"{place}.{part}", value[part]
        raised = fault.get("ctx", {}).get("error")
        if isinstance(raised, EunoeError):  # a check of ours, which names the value itself
            text = str(raised).rstrip(".")
        else:
            text = functools.reduce(lambda text, words: text.replace(*words), _PLAIN, fault["msg"])
            text = text[0].lower() + text[1:]
            text = {"dataclass_type": "must hold keys with values", "too_short": "must have at least one entry"}.get(
                fault["type"], text
            )
            if fault["type"] != "missing":
                received[place] = f", received {visible(repr(fault['input']))}"
        by_place.setdefault(place, []).append(text)
    return [
        f"{place}: {' or '.join(dict.fromkeys(texts))}{received.get(place, '')}" for place, texts in by_place.items()
    ]


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
            if isinstance(data, Mapping | list):
                _check_keys(option, data, where)
    elif origin in (list, tuple) and isinstance(data, list | tuple):
        for i, item in enumerate(data):
            _check_keys(args[0], item, f"{where}[{i}]")
    elif origin is dict and isinstance(data, Mapping):
        for key, value in data.items():
            _check_keys(args[1], value, f"{where}.{key}")
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
