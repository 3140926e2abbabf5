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
    "__init__.py": {"recadam"},  # the module of the optimizer, which has the method's name
    "arguments.py": {"finetune", "cpt"},  # a command's name, and the default transfer; whose checkpoints are imported
    "cli.py": {"finetune", "cpt"},  # the same
    "draft.py": {"cpt"},  # CPT's rule of how many rows a few-shot task has
    "recipe/settings.py": {"finetune", "cpt"},  # the default of recipes, which nothing else names; the same rule
}
"""What files above may say, and why."""
WORDS = {
    "adapter",
    "classic",
    "features",
    "joint",
    "l2",
    "merge",
    "none",
    "one",
    "peft",
    "recadam",
    "replay",
    "vectors",
    "wise",
}
"""Methods whose names are also words of something else (of English, an optimizer, a library): only what code asks about a method
by its name is looked for."""


def code_names(file: Path) -> tuple[set[str], set[str]]:
    """Every name, attribute, argument, part of an import, string and word of a message of a file, its docstrings aside; and those
    strings that something is compared with or looked up by, with the names that are imported."""
    seen: set[str] = set()
    asked: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            seen.add(node.id)
        elif isinstance(node, ast.Attribute):
            seen.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            seen.add(node.arg)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            asked |= {part for alias in node.names for part in alias.name.split(".")}
            asked |= set((getattr(node, "module", None) or "").split("."))
        elif isinstance(node, ast.Compare | ast.Subscript | ast.MatchValue):
            asked |= {
                inner.value
                for inner in ast.walk(node)
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
            }
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            seen |= {node.value, *re.findall(r"\w+", node.value)}  # names in messages too
    return seen | asked, asked


def named(file: Path) -> set[str]:
    """The methods and transfers that a file's code knows by name."""
    seen, asked = code_names(file)
    classes = {row.__name__ for entry in METHODS.values() for row in (entry.method, entry.settings)}
    classes |= {entry.settings.__name__ for entry in TRANSFERS.values()}
    names = {*METHODS, *TRANSFERS, *classes}
    words = {name for name in names if name.lower() in WORDS}
    return (names - words) & seen | words & asked


def test_the_files_above_are_there() -> None:
    assert {"plan.py", "engine.py", "study.py", "sequence.py", "train.py"} <= {f.name for f in ABOVE}


@pytest.mark.parametrize("file", ABOVE, ids=lambda f: str(f.relative_to(SRC)))
def test_no_code_above_names_a_method_or_a_transfer(file: Path) -> None:
    assert not named(file) - SAY.get(str(file.relative_to(SRC)), set())


def test_code_that_names_one_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "joint", METHODS["ncl"])
    file = tmp_path / "made.py"
    for text in ("from eunoe.methods import cpt", "x.Ncl()", "if name == 'finetune': pass", "run(cpt=1)", "say('as ncl does')",
                 "from eunoe.methods import joint", "if name in ('joint', 'x'): pass", "METHODS['joint']"):  # fmt: skip
        file.write_text(text)
        assert named(file), text
    file.write_text("joint = 'one joint stage, none of it'")
    assert not named(file), "a word of English"


def test_what_may_be_said_is_said() -> None:
    for file, allowed in SAY.items():
        assert allowed <= named(SRC / file), f"{file}: take what it no longer names off the list"


SHARED_WORDS = {"start", "lm", "hidden", "backward", "alpha", "beta", "chunk", "ratio"}
"""Keys of a transfer that are words of everybody's: a verb, a language model, states, a direction, opacity."""


@pytest.mark.parametrize("file", ABOVE, ids=lambda f: str(f.relative_to(SRC)))
def test_no_code_above_knows_one_transfers_settings(file: Path) -> None:
    """Fields that a transfer adds to what every training loop has, unless another table has a key of the same name."""
    from eunoe import recipe
    from eunoe.recipe import pretraining

    common = {
        field.name
        for made in [*vars(recipe).values(), *vars(pretraining).values()]
        if isinstance(made, type) and dataclasses.is_dataclass(made)
        for field in dataclasses.fields(made)
    }
    own = {f.name for entry in TRANSFERS.values() for f in dataclasses.fields(entry.settings)} - common - SHARED_WORDS
    assert {"evaluate_every", "observe_every", "pooling"} <= own
    assert not own & code_names(file)[0] - SAY.get(str(file.relative_to(SRC)), set())
