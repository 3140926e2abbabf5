"""A row of the table of methods, and the table itself, to which installed packages add rows.

A package names an ``Entry`` under the entry point group ``eunoe.methods``; the entry point's name is the method's. In its
pyproject.toml::

    [project.entry-points."eunoe.methods"]
    near = "eunoe_near:NEAR"

What a package brings is foreign: it may not load, not be an ``Entry``, or take a name that is taken. Then it is left out with
one line that names the package, the other rows stand, and who asks for the method by name gets the reason as an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, is_dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Literal

from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.methods.base import Method
from eunoe.progress import say_once
from eunoe.recipe.names import safe_name

GROUP = "eunoe.methods"


@dataclass(frozen=True)
class Entry:
    """A method, the dataclass of its settings, and the facts by which one chooses among methods."""

    method: type[Method]
    settings: type[Any]
    summary: str
    """What it does, in one line."""
    reads: frozenset[Literal["earlier", "general"]] = frozenset()
    """``earlier``: the text of earlier domains; ``general``: the recipe's general text. A stage hands it only this, and of this what
    the settings ask for (``Method.reads_again``)."""
    paper: str = ""
    """Whose method it is, as ``Ke et al. 2022, arXiv 2210.05549``; empty: a common practice."""
    keeps: str = ""
    """What it keeps of earlier domains, in a few words: ``nothing``, ``their Fisher and weights``, ``256 of their blocks``."""
    arithmetic: float = 1.0
    """A training step's arithmetic against ncl's, at its default settings and in its dearest stage."""
    memory: str = ""
    """Memory that it needs in training beyond ncl's, or below it, in models' weights: ``+ 1 model (teacher)``, ``- 3 models``."""
    drafted: str = ""
    """How a recipe of ``eunoe new`` names it, as YAML with a comment; empty: such recipes do not propose it."""
    package: str = ""
    """The installed package and version that brought the row, as ``near 1.0``: the table sets it; empty for eunoe's own."""


class Table(MutableMapping[str, Entry]):
    """Name -> row: ``own``, and those of installed packages. A name that a package could not fill raises ``EunoeError``.

    Packages are read when the table is first asked, not when it is made: they import ``eunoe.methods`` themselves.
    """

    def __init__(self, own: Mapping[str, Entry]) -> None:
        self._rows = dict(own)
        self._refused: dict[str, str] | None = None

    def _read(self) -> dict[str, Entry]:
        if self._refused is None:
            self._refused = {}  # a package that asks the table while it is imported sees eunoe's own rows
            added, self._refused = added_rows(self._rows)
            self._rows |= added
            for reason in self._refused.values():
                say_once(f"warning: {reason}")
        return self._rows

    def __getitem__(self, name: str) -> Entry:
        rows = self._read()
        if name not in rows and self._refused and name in self._refused:
            raise EunoeError(self._refused[name])
        return rows[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._read()[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def added_rows(own: Mapping[str, Entry]) -> tuple[dict[str, Entry], dict[str, str]]:
    """What installed packages bring: name -> row, and name (or package, where that is what is damaged) -> why it is left out."""
    added: dict[str, Entry] = {}
    refused: dict[str, str] = {}
    offers: dict[str, list[tuple[str, EntryPoint]]] = defaultdict(list)
    seen: set[str] = set()
    for distribution in distributions():
        try:
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception:  # its entry_points.txt cannot be read
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            package = _package(distribution)
            refused[package] = (
                f"the methods of the package {package} are left out: its entry_points.txt is damaged. Install it again."
            )
            continue
        package = _package(distribution) if points else ""
        if points and package.split(" ")[0] not in seen:  # the first of a name on the path is the one that is imported
            seen.add(package.split(" ")[0])
            for point in points:
                offers[point.name].append((package, point))
    taken = {name.lower(): name for name in own}
    for name, offered in sorted(offers.items()):
        packages = " and ".join(package for package, _ in offered)
        what = f"the method {visible(name, 80)} of the package {packages}"
        advice = "Install a corrected version, or remove it with pip uninstall."
        try:
            safe_name(name, "method label")
            if name.lower() in taken:
                raise EunoeError(
                    f"{taken[name.lower()]} is a method of eunoe, and that is the one used. Rename the entry point."
                )
            if len(offered) > 1:
                raise EunoeError("two packages take one name. Remove one of them with pip uninstall.")
            with reading(f"its entry point {offered[0][1].value}", advice):
                added[name] = replace(_checked(offered[0][1].load()), package=packages)
        except EunoeError as error:
            refused[name] = f"{what} is left out: {error}"
        except SystemExit:
            refused[name] = f"{what} is left out: it ends the program when it is imported. {advice}"
    return added, refused


def _package(distribution: Distribution) -> str:
    """``NAME VERSION``, as far as its metadata can be read."""
    try:
        return visible(f"{distribution.name} {distribution.version}", 100)
    except Exception:
        return visible(getattr(distribution, "_path", "of unknown name"), 100)


def _checked(entry: Any) -> Entry:
    """``entry``; raises ``EunoeError`` where it is not a row that the rest can read."""
    if not isinstance(entry, Entry):
        raise EunoeError(f"it is {visible(repr(entry), 80)}, not an eunoe.methods.Entry.")
    wrong = [
        what
        for what, right in (
            (
                "method: a class on eunoe.methods.base.Method",
                isinstance(entry.method, type) and issubclass(entry.method, Method),
            ),
            ("settings: a dataclass", isinstance(entry.settings, type) and is_dataclass(entry.settings)),
            (
                "summary, paper, keeps, memory, drafted: text",
                all(isinstance(t, str) for t in (entry.summary, entry.paper, entry.keeps, entry.memory, entry.drafted)),
            ),
            ("arithmetic: a number", isinstance(entry.arithmetic, int | float)),
            (
                "reads: a set of 'earlier' and 'general'",
                isinstance(entry.reads, frozenset | set) and entry.reads <= {"earlier", "general"},
            ),
        )
        if not right
    ]
    if wrong:
        raise EunoeError(f"its Entry needs {'; '.join(wrong)}.")
    return entry


__all__ = ["Entry", "Table", "added_rows"]
