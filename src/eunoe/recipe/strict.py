"""YAML as data, never as code, and never more of it than a recipe can hold.

A key may stand once; ``1e-4`` is a number (YAML 1.1 wants ``1.0e-4``). Aliases may be used, but what they expand to is
counted before it is built: 700 bytes of them can stand for billions of values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from eunoe.errors import EunoeError
from eunoe.foreign import first_line

MOST_VALUES = 100_000
MOST_DEEP = 50


class _Loader(yaml.SafeLoader):
    """Safe YAML with the bounds and the two rules above."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}
        """Node -> values and depth of what it stands for, aliases expanded; a node that is not closed yet is missing."""
        self._open = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._open += 1
        if self._open > MOST_DEEP:
            self._refuse(f"it is nested more than {MOST_DEEP} levels deep")
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        assert node is not None  # an event that opens no node is an error of the line above
        self._open -= 1
        if alias and node not in self._sizes:
            self._refuse("an alias holds itself")
        if node not in self._sizes:
            entries = [] if isinstance(node, yaml.ScalarNode) else node.value  # of a mapping they are pairs
            parts = [part for entry in entries for part in (entry if isinstance(entry, tuple) else (entry,))]
            values = 1 + sum(self._sizes[part][0] for part in parts)
            deep = 1 + max((self._sizes[part][1] for part in parts), default=0)
            if values > MOST_VALUES:
                self._refuse(f"it stands for more than {MOST_VALUES:,} values, aliases expanded")
            if deep > MOST_DEEP:
                self._refuse(f"its aliases nest more than {MOST_DEEP} levels deep")
            self._sizes[node] = (values, deep)
        return node

    def _refuse(self, why: str) -> None:
        raise yaml.YAMLError(why)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag.endswith(":merge"):
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML as data; raises ``EunoeError`` naming ``where`` and the place of the fault."""
    try:
        return unshared(yaml.load(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise EunoeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except Exception as error:  # PyYAML's own constructors raise what comes: a date such as 2022-99-99, `!!int ""`
        raise EunoeError(f"{where} is not valid YAML: {first_line(error)}") from None


def read_yaml(file: Path) -> Any:
    """The data of a YAML file; raises ``EunoeError`` for one that cannot be read, is not UTF-8, or is not valid YAML."""
    return parse_yaml(read_text(file), str(file))


def read_text(file: Path) -> str:
    """The text of a UTF-8 file; raises ``EunoeError`` for one that cannot be read or is of other bytes."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EunoeError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    except OSError as error:
        raise EunoeError(f"{file} cannot be read: {error.strerror or error}.") from None


def unshared(data: Any) -> Any:
    """A copy in which no part is shared, so that an override below one YAML alias leaves the others alone."""
    if isinstance(data, dict):
        return {key: unshared(value) for key, value in data.items()}
    return [unshared(value) for value in data] if isinstance(data, list) else data
