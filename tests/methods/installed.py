"""Packages that are installed as far as Python can tell: modules and a dist-info in a folder that stands on ``sys.path``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method"


def install(folder: Path, name: str, version: str, points: Mapping[str, str] | str, **modules: str) -> Path:
    """A package with entry points of eunoe.methods (or the text of its entry_points.txt) and ``modules``; returns ``folder``."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = points if isinstance(points, str) else "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[eunoe.methods]\n{lines}")
    for module, code in modules.items():
        (folder / f"{module}.py").write_text(code)
    return folder


def install_example(folder: Path, version: str | None = None) -> Path:
    """examples/own_method, as its pyproject.toml says; another ``version`` if given."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    modules = {file.stem: file.read_text() for file in EXAMPLE.glob("*.py")}
    return install(
        folder, project["name"], version or project["version"], project["entry-points"]["eunoe.methods"], **modules
    )
