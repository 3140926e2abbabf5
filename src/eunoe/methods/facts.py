"""METHODS for people: the columns of ``eunoe list methods``, and the table of docs/methods.md."""

from __future__ import annotations

from eunoe.errors import EunoeError
from eunoe.methods import METHODS, Entry

MARKS = (
    "<!-- made from METHODS: python -m eunoe.methods docs/methods.md -->\n",
    "<!-- end of what is made from METHODS -->\n",
)
"""Lines of a page between which the table stands."""


def rows() -> list[tuple[str, ...]]:
    """A line of headings, then one for each method: what decides a choice, short enough for a terminal."""
    head = ("method", "forgets", "domain at use", "reads again", "x ncl", "what it does")
    return [head, *((name, *_chooses(entry), _summary(entry)) for name, entry in METHODS.items())]


def table() -> str:
    """All facts of every row of eunoe's own, as Markdown."""
    head = ("method", "what it does", "forgets", "domain at use", "reads again", "keeps of earlier domains",
            "arithmetic, ncl = 1", "memory beyond ncl's", "source")  # fmt: skip
    lines = [head, ("---",) * len(head)]
    for name, entry in METHODS.items():
        if entry.package:  # the page is the same wherever it is made
            continue
        forgets, domain, reads, arithmetic = _chooses(entry)
        lines.append(
            (
                f"`{name}`",
                entry.summary,
                forgets,
                domain,
                reads,
                entry.keeps,
                arithmetic,
                entry.memory,
                entry.paper or "common practice",
            )
        )
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def in_page(page: str) -> str:
    """``page`` with the table as it is now between its marks; raises ``EunoeError`` where the marks are not there."""
    before, start, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not start or not end:
        raise EunoeError(
            f"the page does not say where the table of methods stands: put the lines {MARKS[0]!r} and {MARKS[1]!r} into it."
        )
    return before + start + table() + end + after


def _summary(entry: Entry) -> str:
    """What it does, and whose package brings it."""
    return f"{entry.summary} [{entry.package}]" if entry.package else entry.summary


def _chooses(entry: Entry) -> tuple[str, str, str, str]:
    """Whether it forgets, whether text is read by its domain, which text it reads again, its arithmetic."""
    method = entry.method
    return (
        "yes" if method.forgets else "no",
        "needed" if method.needs_domain else "no",
        " and ".join(sorted(entry.reads)) or "nothing",
        f"{entry.arithmetic:g}",
    )


__all__ = ["MARKS", "in_page", "rows", "table"]
