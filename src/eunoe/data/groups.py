"""Which files of a folder belong together: a subfolder's, or those of one name but for train, dev and test.

Whatever is left out is named with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from eunoe.data.columns import Look, look
from eunoe.data.files import TABLES, ending, resolve, what_to_do
from eunoe.errors import EunoeError
from eunoe.foreign import visible

PROSE = frozenset(
    [
        ".txt",
        ".text",
        ".md",
        ".markdown",
        ".rst",
        ".adoc",
        ".org",
        ".tex",
        ".html",
        ".htm",
        ".xhtml",
        ".xml",
        ".srt",
        ".vtt",
    ]
)
"""Endings of single files that are a domain; of a subfolder every text is read, code and settings too."""
NOTES = ("readme", "license", "licence", "changelog", "notes", "citation", "copying")
"""Files that speak of the data and are none of it."""
ROLES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("dev", "val", "valid", "validation", "eval"), "dev"
)


@dataclass
class Group:
    """Files that belong together, by their name or by the subfolder they lie in."""

    name: str
    folder: Path | None = None
    plain: list[Path] = field(default_factory=list)
    tables: list[Look] = field(default_factory=list)

    @property
    def labelled(self) -> list[Look]:
        return [table for table in self.tables if table.label is not None]

    @property
    def is_domain(self) -> bool:
        """A subfolder is one, whatever it holds; single files are one where they hold text without labels."""
        return (
            self.folder is not None
            or bool(self.plain)
            or any(table.text is not None and table.label is None for table in self.tables)
        )


def groups_of(folder: Path, left_out: list[str]) -> list[Group]:
    """A group for each subfolder, and for the files that share a name but for train, dev and test."""
    groups: dict[str, Group] = {}
    for path in sorted(folder.iterdir()):
        shown = visible(path.name, 80)
        if path.name.startswith("."):
            continue
        if not _utf8(path.name):
            left_out.append(f"{shown}: its name is not UTF-8, which a recipe is. Rename it.")
        elif path.is_dir():
            _add_folder(groups, path, left_out)
        elif path.stem.lower().split(".")[0] in NOTES:
            left_out.append(f"{shown}: taken for words about the data.")
        elif ending(path) in TABLES or ending(path) in PROSE:
            name = _base(path)
            group = groups.setdefault(name.lower(), Group(name))
            _add(group, path, left_out)
        else:
            left_out.append(f"{shown}: not a text by its ending ({ending(path) or 'none'}). {_advice(path)}")
    return _match(list(groups.values()), left_out)


def _advice(path: Path) -> str:
    try:
        return what_to_do(path)
    except EunoeError as error:
        return str(error)


def _add_folder(groups: dict[str, Group], path: Path, left_out: list[str]) -> None:
    if any(path.glob("recipe.yaml")) or any(path.glob("*/recipe.yaml")):
        left_out.append(f"{visible(path.name, 80)}: a folder of runs.")
        return
    try:
        files = resolve(source(path))
    except EunoeError as error:
        left_out.append(str(error))
        return
    group = groups.setdefault(path.name.lower(), Group(path.name))
    if group.folder is not None:
        raise EunoeError(f"{visible(path)} and {visible(group.folder)} differ in case alone. Rename one.")
    group.folder = path
    for file in files:
        _add(group, file, left_out)


def _add(group: Group, path: Path, left_out: list[str]) -> None:
    if ending(path) not in TABLES:
        group.plain.append(path)
        return
    try:
        table = look(path)
    except EunoeError as error:
        left_out.append(str(error))
        return
    if table.text is None:
        left_out.append(
            f"{visible(path)}: {'; '.join(table.said)}. Its columns: {', '.join(visible(c, 40) for c in table.columns)}."
        )
    else:
        group.tables.append(table)


def _match(groups: list[Group], left_out: list[str]) -> list[Group]:
    """Labelled rows go to the domain of their name, or to the only one; without any other text they are domains themselves."""
    domains = [group for group in groups if group.is_domain and not is_general(group)]
    if not domains:
        return [group for group in groups if group.tables]
    for group in groups:
        if group.is_domain or not group.tables:
            continue
        if len(domains) == 1:
            domains[0].tables += group.tables
        else:
            files = ", ".join(visible(table.path) for table in group.tables)
            names = ", ".join(domain.name for domain in domains)
            left_out.append(
                f"{files}: labelled rows, but of which domain? Name them after one of {names}, as in {domains[0].name}_train.csv."
            )
    return [group for group in groups if group.is_domain]


def is_general(group: Group) -> bool:
    """Is it general text, by its name?"""
    return group.name.lower().startswith("general")


def _base(path: Path) -> str:
    """A file's name without its endings and without train, dev or test."""
    parts = [p for p in re.split(r"[\W_]+", _stem(path)) if p]
    return "_".join(p for p in parts if p.lower() not in ROLES) or "text"


def role(path: Path) -> str | None:
    roles = {ROLES[p.lower()] for p in re.split(r"[\W_]+", _stem(path)) if p.lower() in ROLES}
    return roles.pop() if len(roles) == 1 else None


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def source(path: Path) -> str:
    """A path as recipes name it: one that looks like a hub or package source is told apart by ``./``."""
    text = str(path)
    return f"./{text}" if text.startswith(("hub:", "package:", "~")) else text


def _utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def listed(paths: Iterable[Path], most: int = 6) -> str:
    names = [visible(path.name, 60) for path in paths]
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


__all__ = ["Group", "groups_of", "is_general", "listed", "role", "source"]
