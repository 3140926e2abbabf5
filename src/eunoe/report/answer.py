"""What was forgotten, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eunoe.report.matrices import BASE
from eunoe.report.metrics import LM_LOSS, Estimate, Metric, shown
from eunoe.report.summary import Line, Summary

NAMED = 6
"""Methods that the sentence names: those that forgot least, and the one that forgot most."""


def answer(summary: Summary) -> str:
    """What was forgotten, in one sentence, the method that forgot least first.

    For example "cpt forgot exactly 0 nats of its domains' language (exactly 0 accuracy points on their end tasks), ncl
    0.214 ± 0.031 nats (6.3 ± 2.5 points)." What follows says which figures cannot be distinguished from 0 or are of one
    sequence, and how methods that can have no such figure end, as they learn all at once or nothing. Runs that are unfinished,
    have one domain or no end tasks get a sentence that says so.
    """
    learners = [line for line in summary.lines if line.method != BASE]
    if not learners:
        if any(general.after for general in summary.general):
            return "Only general text was scored after learning, so forgetting of the domains is not known."
        return "No domain has been learnt yet, so nothing can be said about forgetting."
    text = {line.label: line for line in learners if line.metric is LM_LOSS}
    ends = [line for line in learners if line.metric is not LM_LOSS]
    first = (ends[0].metric, ends[0].transfer) if ends else None
    end = {line.label: line for line in ends if (line.metric, line.transfer) == first}
    tail = _without_a_rate(text, end)
    forgot = []
    for label in dict.fromkeys(line.label for line in learners):
        nats = text[label].forgetting if label in text else None
        points = end[label].forgetting if label in end else None
        if nats is not None or points is not None:
            forgot.append((label, nats, points))
    if not forgot:
        return _nothing_compared(summary) + tail
    forgot.sort(key=lambda one: (_rank(one[1]), _rank(one[2])))
    score = _score(first[0]) if first else ""
    parts: list[str] = []
    groups = _alike(forgot)
    for labels, nats, points in groups:
        full = not parts  # the first says of what; the others are read like it
        whose = "its domains'" if len(labels) == 1 else "their domains'"
        said = []
        if nats:
            said.append(_said(nats, LM_LOSS, f"nats of {whose} language" if full else "nats"))
        if points:
            owner = "their" if nats else whose
            said.append(
                _said(points, end[labels[0]].metric, f"{score} points on {owner} end tasks" if full else "points")
            )
        parts.append(
            f"{_listed(labels)} {'forgot ' if full else ''}{said[0]}" + "".join(f" ({more})" for more in said[1:])
        )
    if len(parts) > NAMED:
        between = sum(len(labels) for labels, *_ in groups[NAMED - 1 : -1])
        parts = [*parts[: NAMED - 1], f"{between} more in between", parts[-1]]
    doubts = {_doubt(estimate) for _, *both in forgot for estimate in both if estimate}
    tail = "".join(f" {means}" for doubt, means in DOUBTS.items() if doubt in doubts) + tail
    if summary.lacking:
        one = summary.lacking == 1
        tail += f" Unfinished: {summary.lacking:,} sequence{'' if one else 's'} still lack{'s' if one else ''} scores."
    return ", ".join(parts) + "." + tail


def _alike(
    forgot: Sequence[tuple[str, Estimate | None, Estimate | None]],
) -> list[tuple[list[str], Estimate | None, Estimate | None]]:
    """The same with those in one entry that forgot exactly nothing, as of them the same is said."""
    groups: list[tuple[list[str], Estimate | None, Estimate | None]] = []
    exact: dict[tuple[bool, bool], list[str]] = {}
    for label, nats, points in forgot:
        kind = (nats is not None, points is not None)
        if kind in exact and all(one.exact for one in (nats, points) if one):
            exact[kind].append(label)
            continue
        groups.append(([label], nats, points))
        if all(one.exact for one in (nats, points) if one):
            exact[kind] = groups[-1][0]
    return groups


def _listed(labels: Sequence[str]) -> str:
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def _without_a_rate(text: Mapping[str, Line], end: Mapping[str, Line]) -> str:
    """How the methods end that can forget nothing: "At the end joint (learnt all domains at once) has 3.012 nats." """
    parts = []
    for label in dict.fromkeys([*text, *end]):
        both = [lines[label] for lines in (text, end) if label in lines and lines[label].no_rate and lines[label].final]
        if both:
            scores = " and ".join(f"{shown(line.final, line.metric)} {_unit(line.metric)}" for line in both)
            parts.append(f"{label} ({both[0].no_rate}) has {scores}")
    if len(parts) > NAMED:
        parts = [*parts[:NAMED], f"{len(parts) - NAMED} more"]
    return f" No forgetting rate: at the end {', '.join(parts)}." if parts else ""


def _unit(metric: Metric) -> str:
    return metric.unit if metric is LM_LOSS else f"{_score(metric)} {metric.unit}"


def _score(metric: Metric) -> str:
    return "macro-F1" if metric.name == "macro_f1" else metric.title.lower()


def _nothing_compared(summary: Summary) -> str:
    """Why no method has a figure of what it forgot."""
    single = next((scores.domains for scores in summary.matrices if len(scores.domains) == 1), None)
    if single and all(len(scores.domains) == 1 for scores in summary.matrices):
        return f"One domain was learnt ({single[0]}), so nothing could be forgotten yet: forgetting needs at least two."
    if summary.lacking:
        return "Unfinished: no method has all the scores that forgetting is counted from."
    if all(line.no_rate for line in summary.lines if line.method != BASE):
        return "No method of this run learns one domain after another, so nothing could be forgotten."
    return "Forgetting is not known: only the domain learnt last was scored."


def _rank(estimate: Estimate | None) -> float:
    return estimate.mean if estimate else float("inf")


DOUBTS = {
    "below": "Clearly below 0: later domains helped.",
    "around": "Where the interval contains 0, it cannot be distinguished from 0.",
    "alone": "Without ±: one sequence.",
    "equal": "Without ±: equal in all sequences.",
}
"""What may have to be said of forgotten figures, and the sentence that says it."""


def _doubt(estimate: Estimate) -> str:
    """Which of ``DOUBTS`` holds, if any.

    >>> _doubt(Estimate((-0.1, -0.11))), _doubt(Estimate((0.02, -0.01))), _doubt(Estimate((-0.1,))), _doubt(Estimate((0.1, 0.11)))
    ('below', 'around', 'alone', '')
    """
    if estimate.exact:
        return ""
    if estimate.interval is None:
        return "alone"
    low, high = estimate.interval
    if low == high:
        return "equal"
    return "below" if high < 0 else "around" if low <= 0 else ""


def _said(estimate: Estimate, metric: Metric, what: str) -> str:
    """
    >>> _said(Estimate((0.02, -0.01)), LM_LOSS, "nats")
    '0.005 ± 0.191 nats, interval contains 0'
    """
    value = "exactly 0" if estimate.exact else shown(estimate, metric)
    return f"{value} {what}" + (", interval contains 0" if _doubt(estimate) == "around" else "")


__all__ = ["answer"]
