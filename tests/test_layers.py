"""Nothing above ``methods/`` knows a method by name, and nothing above ``transfer/`` a transfer, its settings or its trunk."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import eunoe
from eunoe.methods import METHODS
from eunoe.transfer import TRANSFERS

SRC = Path(eunoe.__file__).parent
ABOVE = sorted(
    [*SRC.glob("*.py"), *(f for part in ("evaluate", "report", "recipe") for f in (SRC / part).rglob("*.py"))]
)


SAY = {
    "cli.py": {"finetune", "cpt", "ncl"},  # a command's name; whose checkpoints are imported; an example in a help text
    "compose.py": {
        "finetune",
        "max_length",
        "evaluate_every",
    },  # composes a recipe from options, and recipes name transfers
    "draft.py": {
        "finetune",
        "cpt",
        "ncl",
        "max_length",
    },  # writes a recipe for people, and recipes name methods and transfers
    "recipe/settings.py": {"finetune", "cpt"},  # a recipe's default; CPT's rule of how many rows a few-shot task has
}
"""What files above may say, and why."""


def code_names(file: Path) -> set[str]:
    """Every name, attribute, argument, part of an import, string and word of a message of a file, its docstrings aside."""
    found: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
            found |= set((getattr(node, "module", None) or "").split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found |= {node.value, *re.findall(r"\w+", node.value)}  # names in messages too
    return found


def test_the_files_above_are_there() -> None:
    assert {"plan.py", "engine.py", "study.py", "sequence.py", "train.py"} <= {f.name for f in ABOVE}


@pytest.mark.parametrize("file", ABOVE, ids=lambda f: str(f.relative_to(SRC)))
def test_no_code_above_names_a_method_or_a_transfer(file: Path) -> None:
    names = {*METHODS, *TRANSFERS} | {entry.method.__name__ for entry in METHODS.values()}
    names |= {entry.settings.__name__ for table in (METHODS, TRANSFERS) for entry in table.values()}
    assert not names & code_names(file) - SAY.get(str(file.relative_to(SRC)), set())


def test_code_that_names_one_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "made.py"
    for text in ("from eunoe.methods import cpt", "x.Ncl()", "if name == 'finetune': pass", "run(cpt=1)"):
        file.write_text(text)
        assert {"cpt", "Ncl", "finetune"} & code_names(file), text


@pytest.mark.parametrize("file", ABOVE, ids=lambda f: str(f.relative_to(SRC)))
def test_no_code_above_knows_one_transfers_settings(file: Path) -> None:
    """Fields that a transfer adds to what every training loop has, unless another table has a key of the same name."""
    from eunoe import recipe

    common = {
        field.name
        for made in vars(recipe).values()
        if isinstance(made, type) and dataclasses.is_dataclass(made)
        for field in dataclasses.fields(made)
    }
    own = (
        {f.name for entry in TRANSFERS.values() for f in dataclasses.fields(entry.settings)} - common - {"start"}
    )  # a common verb
    assert {"evaluate_every", "observe_every", "pooling"} <= own
    assert not own & code_names(file) - SAY.get(str(file.relative_to(SRC)), set())
