"""*Pick one*: for each situation the method of this run that ends best in it, with what speaks for it.

What a situation asks for is read from the methods' facts, which the run wrote beside its rows; which method ends best is read from the
scores. Nothing here knows a method by name, and where a run cannot tell, it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from eunoe.report import html
from eunoe.report.beside import Facts, Sizes
from eunoe.report.costs import bytes_text, on_disk
from eunoe.report.metrics import LM_LOSS, shown, typeset
from eunoe.report.summary import AT_ONCE, Line, Summary
from eunoe.report.tradeoff import ahead, distinct, main_lines, ranked

FEWEST = 3
"""Methods that one picks from: of two, the heading has said all."""
NAMED = 4
"""Methods that are named as no worse."""
STEP, DISK = 1.2, 0.25
"""Of naive training's arithmetic, and of what the largest checkpoint takes."""


@dataclass(frozen=True)
class Choice:
    """The method to pick where ``when`` holds."""

    when: str
    best: Line
    alike: list[str]
    """Methods that fit as well and cannot be distinguished from ``best`` at the end."""
    rivals: int
    """How many fit as well."""
    unsure: bool
    """Is there only one sequence, so that nobody can say who is ahead?"""


def choices(
    summary: Summary, facts: Mapping[str, Facts], sizes: Mapping[str, Sequence[Sizes]]
) -> tuple[list[Choice], list[str]]:
    """What to pick in each situation, and the situations in which no method of this run fits."""
    lines = [line for line in ranked(main_lines(summary)) if line.label in facts and facts[line.label].in_turn]
    if len(lines) < FEWEST:
        return [], []
    disk = {label: on_disk(kept) for label, kept in sizes.items() if kept}
    largest = max(disk.values(), default=0)

    def fits(test: Callable[[Facts], bool]) -> list[Line]:
        return [line for line in lines if test(facts[line.label])]

    situations = [
        ("Anything goes: the domain is named at use, old text is kept, time and memory do not matter", lines),
        ("Nothing learnt may change, which eunoe verify holds to the bit", fits(lambda f: not f.forgets)),
        ("Nobody names the domain at use", fits(lambda f: not f.needs_domain)),
        ("Nobody names the domain at use, and no old text is kept or read again", fits(lambda f: not f.needs_domain and not f.old_text)),
        ("No old text is kept or read again; the domain may be named at use", fits(lambda f: not f.old_text)),
        (f"A training step costs at most {STEP:g} times that of naive training", fits(lambda f: f.arithmetic <= STEP)),
        ("Training has less memory than all weights, gradients and moments take", fits(lambda f: f.memory.startswith("-"))),
    ]  # fmt: skip
    if len(disk) > 1:
        most = f"A domain takes at most {bytes_text(int(DISK * largest))} on disk, a quarter of the largest"
        situations.append((most, [line for line in lines if line.label in disk and disk[line.label] <= DISK * largest]))
    return [_choice(when, fitting) for when, fitting in situations if fitting], [
        when for when, fitting in situations if not fitting
    ]


def _choice(when: str, fitting: Sequence[Line]) -> Choice:
    best, *others = fitting
    gaps = {line.label: ahead(best, line) for line in others}
    alike = [label for label, gap in gaps.items() if distinct(gap) is False]
    return Choice(when, best, alike, len(others), any(distinct(gap) is None for gap in gaps.values()))


def pick_section(summary: Summary, facts: Mapping[str, Facts], sizes: Mapping[str, Sequence[Sizes]]) -> str:
    """The table of choices; empty where the run has too few methods to pick from, or does not say what they are."""
    chosen, none = choices(summary, facts, sizes)
    if not chosen:
        return ""
    metric = chosen[0].best.metric
    items = "".join(f"<div><dt>{escape(choice.when)}</dt><dd>{_evidence(choice)}</dd></div>" for choice in chosen)
    notes = ["Picked: of the methods that fit, the one that is best at the end over all domains "
             f"({'lower' if metric is LM_LOSS else 'higher'} is better). The best of several is chosen by the scores that it is shown "
             "with, which flatters it: the smaller the lead, the more."]  # fmt: skip
    both = [line for line in main_lines(summary) if line.no_rate == AT_ONCE and line.final]
    if both:
        ends = ", ".join(f"{line.label} ends at {shown(line.final, metric)}" for line in both)
        notes.append(f"If the text of all domains is there at once, learn it at once: {ends}.")
    if none:
        notes.append(f"No method of this run fits: {'; '.join(when[0].lower() + when[1:] for when in none)}.")
    return html.section(
        "Pick one",
        f'<dl class="picks">{items}</dl>',
        f'<p class="note">{escape(typeset(" ".join(notes)))}</p>',
    )


def _evidence(choice: Choice) -> str:
    """The method with its numbers, and how sure the choice is."""
    best = choice.best
    metric = best.metric
    learnt = f"learnt {html.estimate(best.forward, metric)}, " if best.forward else ""
    return (
        f"<b>{escape(best.label)}</b>: ends at {html.estimate(best.final, metric)} {metric.unit}; {learnt}"
        f"forgot {html.estimate(best.forgetting, metric)}; {_rivals(choice)}"
    )


def _rivals(choice: Choice) -> str:
    """How sure the choice is."""
    if not choice.rivals:
        return "the only one"
    if choice.unsure:
        return f"first of {choice.rivals + 1}; one sequence, no interval"
    if choice.alike:
        named = ", ".join(choice.alike[:NAMED]) + (
            f" and {len(choice.alike) - NAMED} more" if len(choice.alike) > NAMED else ""
        )
        return f"first of {choice.rivals + 1}; cannot be distinguished from {escape(named)}"
    return f"ahead of all {choice.rivals} others" if choice.rivals > 1 else "ahead of the other one"


__all__ = ["Choice", "choices", "pick_section"]
