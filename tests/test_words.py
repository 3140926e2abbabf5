"""Plain English, one word for one thing: whoever reads "resume" on a page must not meet "go on" in a message.

Looked through are the READMEs, the docs, recipes and examples whole, and of the package and the benchmarks every string,
docstring and comment, and the names that their code gives to variables.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "eunoe"
PAGES = [*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/*.rst"), *PACKAGE.rglob("*.md")]
RECIPES = [*ROOT.glob("recipes/*.*"), *ROOT.glob("examples/**/*.py"), *ROOT.glob("examples/**/*.toml")]
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *ROOT.glob("benchmarks/*.py")]

INSTEAD = {
    r"(go|goes|going|went|gone) on": "resume; continue",
    r"(take|takes|taken|took) up(?! to)": "resume, resumed from",
    r"passed over": "skipped",
    r"ask(s|ed)? for nothing|asked (tokens?|positions?)": "target tokens, target positions",
    r"(the|an?|its|their|full|own|first|highest|best|small|low|high|larger|smaller|same|one) rates?(?! per step)": "learning rate",
    r"(batch|for) \w+, rate": "learning rate",
    r"stands? (twice|two times)": "duplicate",
    r"(?<!there )(is|are) no (\w+ )?(folder|directory|directories)s?": "is not a folder",
    r"mend(s|ed|ing)?": "fix, correct",
    r"(is|are|be|were|was) at (work|it)": "running, in progress",
    r"unclear": "cannot be distinguished from 0; the interval contains 0",
    r"(can ?not|can't|could not) be told": "cannot be distinguished; or say what is not known",
    r"(what|how much) (is|was) left of the (pretrained )?model|left of the pretrained model": "how much of it is preserved",
    r"what (that|it|this) left of": "how much of it is preserved",
    r"weights? that (trains?|stays?)": "trainable weights; frozen weights",
    r"room": "capacity of plug-ins; space on a disk or a page",
}
"""Words that tire a reader, as patterns, and what says it instead (the project's table of words)."""

EMPTY_NAMES = {"of", "found", "held", "told", "mine"}
"""Names of variables that do not say what they hold: `metric`, `rows`, `loaded`, `existing` do."""

ALLOWED = {
    ("src/eunoe/models/rate.py", "rate"): "the file is about dropout, and says so in its first line",
    ("src/eunoe/models/dropout.py", "rate"): "the file is about dropout, and says so in its first line",
}
"""(file, the last word of what stands there) -> why it may."""


def wrapped(text: str) -> str:
    """Text without line breaks, and without the marks of comments and quotations that begin a line."""
    return re.sub(r"\s+", " ", re.sub(r"\n\s*[#>|]+", " ", text))


def page_text(file: Path) -> str:
    """A page without the addresses of its links, which may be anybody's."""
    return wrapped(re.sub(r"\]\([^)\s]+\)|https?://\S+", "]", file.read_text(encoding="utf-8")))


def strings(tree: ast.AST) -> Iterator[str]:
    """Strings and docstrings; of an f-string its text, with ``{}`` for what is filled in."""
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def comments(source: str) -> str:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)


def texts(file: Path) -> list[str]:
    if file not in SOURCES:
        return [page_text(file)]
    source = file.read_text(encoding="utf-8")
    return [wrapped(text) for text in (*strings(ast.parse(source)), comments(source))]


def tired(text: str) -> Iterator[tuple[str, str]]:
    """What should be said otherwise, with some words around it, and how."""
    for pattern, instead in INSTEAD.items():
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
            yield match[0], f"...{text[max(0, match.start() - 40) : match.end() + 30]}... say: {instead}"


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each variable, argument, attribute and function that the code makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            yield node.lineno, node.name or ""


@pytest.mark.parametrize("file", [*PAGES, *RECIPES, *SOURCES], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_people_read_is_in_plain_words(file: Path) -> None:
    place = str(file.relative_to(ROOT))
    advices = [
        advice
        for text in texts(file)
        for words, advice in tired(text)
        if (place, words.split()[-1].lower().removesuffix("s")) not in ALLOWED
    ]
    assert not advices, f"{place}:\n" + "\n".join(advices)


def test_names_of_variables_say_what_they_hold() -> None:
    empty = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in SOURCES
        for line, name in names(ast.parse(file.read_text(encoding="utf-8")))
        if name.strip("_") in EMPTY_NAMES
    ]
    assert not empty, "name what is in them (metric, rows, loaded, existing, ...):\n" + "\n".join(empty)


def test_what_is_allowed_is_still_there() -> None:
    for place, word in ALLOWED:
        present = {
            words.split()[-1].lower().removesuffix("s") for text in texts(ROOT / place) for words, _ in tired(text)
        }
        assert word in present, f"{place} no longer needs an exception for {word!r}"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The run goes on where it stopped, at the highest rate.", 2),
        ("a damaged checkpoint was passed over; mend the file", 2),
        ("domain names stand twice, and it cannot be told which", 2),
        ("runs/a is no run folder; somebody is at it", 2),
        ("resumed from step 120 at the learning rate 1e-4; up to the dropout rate", 0),
        ("a method of your own is found in the folder, as told above", 0),
    ],
)
def test_the_words_are_seen(text: str, count: int) -> None:
    assert len(list(tired(text))) == count


def test_strings_are_seen_across_the_pieces_they_are_written_in() -> None:
    tree = ast.parse(
        'raise ValueError(f"{file}: the run goes "\n    "on; " f"{n} rows")\ndef f(told): self.mine = told'
    )
    assert [words for text in strings(tree) for words, _ in tired(text)] == ["goes on"]
    assert {name for _, name in names(tree)} == {"f", "told", "mine"}
