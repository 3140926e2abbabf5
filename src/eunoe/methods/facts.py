"""METHODS for people: the columns of ``eunoe list methods``, the table of docs/methods.md, the choices of docs/choose.md, and
what a report is told of a run's methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eunoe.errors import EunoeError
from eunoe.methods import METHODS, Chosen, Entry

MARKS = (
    "<!-- made from METHODS: python -m eunoe.methods docs/methods.md -->\n",
    "<!-- end of what is made from METHODS -->\n",
)
"""Lines of a page between which the table stands."""
CHOICES = ("<!-- made from METHODS: python -m eunoe.methods docs/choose.md -->\n", MARKS[1])
"""Lines of a page between which the choices stand."""


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


def choices() -> str:
    """What somebody has and wants, and eunoe's own methods that fit, as Markdown."""
    own = {name: entry for name, entry in METHODS.items() if not entry.package}
    stages = {name: len(entry.method.stages(("a", "b"), entry.settings())) for name, entry in own.items()}

    def those(fits: Callable[[Entry], bool]) -> list[str]:
        """Methods that learn one domain after another, and fit."""
        return [name for name, entry in own.items() if stages[name] == 2 and fits(entry)]

    lines = (
        ("nothing may be forgotten, and the domain is known at use", those(lambda e: not e.method.forgets and e.method.needs_domain)),
        ("nothing may be forgotten, and nobody names the domain", those(lambda e: not e.method.forgets and not e.method.needs_domain)),
        ("the domain is known at use, and some forgetting is accepted", those(lambda e: e.method.forgets and e.method.needs_domain)),
        ("nobody names the domain, and earlier corpora are not read again; some forgetting is accepted",
         those(lambda e: e.method.forgets and not e.method.needs_domain and not e.reads)),
        ("text of earlier domains is still there", those(lambda e: "earlier" in e.reads)),
        ("general text is there and may be learnt from", those(lambda e: "general" in e.reads)),
        ("less memory in training than all weights take", those(lambda e: e.memory.startswith("-"))),
        ("many domains that may be learnt side by side", those(lambda e: e.method.starts_from == "base")),
        ("a step's arithmetic stays within 1.2 times that of ncl", those(lambda e: e.arithmetic <= 1.2)),
        ("all domains are there at once", [name for name in own if stages[name] == 1]),
        ("no text to learn from, only labels: lines to compare with", [name for name in own if not stages[name]]),
    )  # fmt: skip
    return "| you have, or want | methods |\n| --- | --- |\n" + "".join(
        f"| {what} | {', '.join(f'`{name}`' for name in names) or 'none yet'} |\n" for what, names in lines
    )


def in_page(page: str) -> str:
    """``page`` with the table, or the choices, as they are now between their marks; raises ``EunoeError`` where no marks are."""
    for (begin, finish), made in ((MARKS, table), (CHOICES, choices)):
        before, start, rest = page.partition(begin)
        _, end, after = rest.partition(finish)
        if start and end:
            return before + start + made() + end + after
    raise EunoeError(
        f"the page does not say where the table of methods stands: put the lines {MARKS[0]!r} and {MARKS[1]!r} into it."
    )


def facts_for_report(chosen: Chosen, domains: Sequence[str]) -> dict[str, Any]:
    """What ``methods.json`` says of a method as a recipe chose it, for domains in this order: the facts by which a report picks one.

    What ``arithmetic`` and ``memory`` say is METHODS' at default settings; of several that are combined what each adds is added.
    """
    stages = chosen.stages(domains)
    at_once = any(len(stage) > 1 for stage in stages)
    return {
        "methods": list(chosen.names),
        "naive": all(row.method.naive for row in chosen.rows),
        "in_turn": bool(stages) and not at_once,
        "forgets": chosen.forgets,
        "needs_domain": chosen.needs_domain,
        "old_text": at_once or "earlier" in chosen.reads or any(row.method.keeps_text for row in chosen.rows),
        "keeps": "; ".join(dict.fromkeys(row.keeps for row in chosen.rows)),
        "arithmetic": round(1 + sum(row.arithmetic - 1 for row in chosen.rows), 3),
        "memory": "; ".join(dict.fromkeys(row.memory for row in chosen.rows)),
    }


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


__all__ = ["CHOICES", "MARKS", "choices", "facts_for_report", "in_page", "rows", "table"]
