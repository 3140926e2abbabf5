"""What a run over domains found, in plain words: the two methods that end best, the naive one, and how sure that is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from eunoe.report.matrices import BASE
from eunoe.report.metrics import LM_LOSS, Estimate, Metric, shown
from eunoe.report.summary import Line, Summary
from eunoe.report.tradeoff import ahead, distinct, main_lines, ranked

NAMED = 6
"""Methods without a forgetting rate that are named."""


def answer(summary: Summary, naive: Collection[str] = ()) -> str:
    """Both parts of ``heading_and_doubts`` as one text."""
    return "".join(heading_and_doubts(summary, naive))


def heading_and_doubts(summary: Summary, naive: Collection[str] = ()) -> tuple[str, str]:
    """What the two methods that end best learnt and forgot, and the naive one; and how sure that is, which begins with a space.

    The best of those that forgot exactly nothing is named too. For example "Best at the end of 4 methods is cpt, which learnt
    0.345 ± 0.012 nats of its domains' language and forgot exactly 0; next comes ewc, which learnt 0.441 ± 0.010 and forgot 0.112 ±
    0.020; naive training (ncl) learnt 0.471 ± 0.015 and forgot 0.571 ±
    0.031.", and "At the end cpt is 0.081 ± 0.030 nats ahead of ewc." Where a number is missing, the run is unfinished or has one
    domain, a sentence says so. ``naive``: the labels of naive training.
    """
    learners = [line for line in summary.lines if line.method != BASE]
    if not learners:
        if any(general.after for general in summary.general):
            return "Only general text was scored after learning, so forgetting of the domains is not known.", ""
        return "No domain has been learnt yet, so nothing can be said about forgetting.", ""
    lines = main_lines(summary)
    unsaid = _without_a_rate(learners)
    rated = ranked(lines) or [line for line in lines if line.forgetting]
    if not rated:
        return _nothing_compared(summary), unsaid
    plain = next((line for line in rated if line.label in naive), None)
    named = [line for k, line in enumerate(rated) if k < 2 or line is plain]
    parts = [_said(line, _called(line, plain), k, named) for k, line in enumerate(named)]
    if len(rated) > 1:
        parts[0] = f"Best at the end{f' of {len(rated)} methods' if len(rated) > 2 else ''} is {parts[0]}"
    ends = _ends(learners) if lines[0].metric is LM_LOSS else {}
    points = [(line.label, ends[line.label]) for line in named if line.label in ends]
    figures = [line.forgetting for line in [*named, *(end for _, end in points)]]
    doubts = {_doubt(figure) for figure in figures if figure}
    sure = _sure(named, rated) + _on_end_tasks(points)
    sure += "".join(f" {means}" for doubt, means in DOUBTS.items() if doubt in doubts)
    return f"{'; '.join(parts)}.{_kept(rated, named)}", sure + unsaid + _unfinished(summary)


def _kept(rated: Sequence[Line], named: Sequence[Line]) -> str:
    """The best of those that forgot exactly nothing, where none of them is named yet: what full retention costs in learning."""
    kept = [line for line in rated if line.forgetting and line.forgetting.exact]
    if not kept or any(line in named for line in kept):
        return ""
    best, more = kept[0], len(kept) - 1
    others = f" (like {more} other{'' if more == 1 else 's'})" if more else ""
    learnt = "" if best.forward is None else f" and learnt {shown(best.forward, best.metric)}"
    return f" {best.label} forgot exactly 0{others}{learnt}."


def _called(line: Line, plain: Line | None) -> str:
    if line is not plain:
        return line.label
    return f"naive training ({line.label})"


def _said(line: Line, name: str, k: int, named: Sequence[Line]) -> str:
    """What the ``k``-th method learnt and forgot; the first says of what, and the others are read like it."""
    metric = line.metric
    unit = (
        " nats of its domains' language" if metric is LM_LOSS else f" {_score(metric)} points on its domains' end tasks"
    )
    unit = "" if k else unit
    forgot = _figure(line.forgetting, metric)
    if line.forward is None:
        numbers = f"forgot {forgot}{unit}"
    else:
        numbers = f"learnt {shown(line.forward, metric)}{unit} and forgot {forgot}"
    if len(named) == 1:
        return f"{name} {numbers}"
    return f"{'next comes ' if k == 1 else ''}{name}{', which' if k < 2 else ''} {numbers}"


def _on_end_tasks(points: Sequence[tuple[str, Line]]) -> str:
    """What the same methods forgot there."""
    said = [(label, _figure(end.forgetting, end.metric)) for label, end in points if end.forgetting]
    if not said:
        return ""
    first, *rest = said
    score = _score(points[0][1].metric)
    more = "".join(f", {label} {figure}" for label, figure in rest)
    return f" On the end tasks {first[0]} forgot {first[1]} {score} points{more}."


def _ends(learners: Sequence[Line]) -> dict[str, Line]:
    """Label -> its line on the first metric of the end tasks."""
    ends = [line for line in learners if line.metric is not LM_LOSS]
    return {line.label: line for line in ends if (line.metric, line.transfer) == (ends[0].metric, ends[0].transfer)}


def _figure(estimate: Estimate | None, metric: Metric) -> str:
    """
    >>> _figure(Estimate((0.02, -0.01)), LM_LOSS), _figure(Estimate((0.0,), exact=True), LM_LOSS)
    ('0.005 ± 0.191 (interval contains 0)', 'exactly 0')
    """
    if estimate and estimate.exact:
        return "exactly 0"
    return shown(estimate, metric) + (" (interval contains 0)" if estimate and _doubt(estimate) == "around" else "")


def _sure(named: Sequence[Line], rated: Sequence[Line]) -> str:
    """By how much the best is ahead of the others that are named, and of how many more it is not distinguished."""
    best = rated[0]
    if len(rated) < 2 or best.final is None:
        return ""
    apart: list[str] = []
    close: list[str] = []
    metric, gaps = best.metric, {line.label: ahead(best, line) for line in rated[1:]}
    unit = metric.unit if metric is LM_LOSS else f"{_score(metric)} {metric.unit}"
    for line in named[1:]:
        gap = gaps[line.label]
        if gap is None:
            close.append(f"{best.label} and {line.label} have no common sequence, so they are not compared.")
        elif gap.exact:
            close.append(f"{best.label} and {line.label} end exactly alike.")
        elif distinct(gap) is False:
            close.append(f"{best.label} and {line.label} cannot be distinguished at the end: {shown(gap, metric)} {unit} apart, "
                         "the interval contains 0.")  # fmt: skip
        else:
            apart.append(f"{shown(gap, metric)}{'' if apart else f' {unit}'} ahead of {line.label}")
    paired = max((len(gap.values) for gap in gaps.values() if gap), default=0)
    sentences = [f"At the end {best.label} is {' and '.join(apart)}."] if apart else []
    sentences += close
    also = sum(distinct(gaps[line.label]) is False for line in rated[1:] if line not in named)
    if also:
        sentences.append(f"{also} more cannot be distinguished from {best.label} either." if close else
                         f"{also} more cannot be distinguished from {best.label}.")  # fmt: skip
    if paired > 1:
        sentences.append(f"Each ± is half of the 95 % interval; differences are over {paired} paired sequences.")
    return " " + " ".join(sentences) if sentences else ""


def _without_a_rate(learners: Sequence[Line]) -> str:
    """How the methods end that can forget nothing: "At the end joint (learnt all domains at once) has 3.012 nats." """
    text = {line.label: line for line in learners if line.metric is LM_LOSS}
    end, parts = _ends(learners), []
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


def _unfinished(summary: Summary) -> str:
    if not summary.lacking:
        return ""
    one = summary.lacking == 1
    return f" Unfinished: {summary.lacking:,} sequence{'' if one else 's'} still lack{'s' if one else ''} scores."


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


DOUBTS = {
    "below": "Clearly below 0: later domains helped.",
    "around": "Where the interval contains 0, it cannot be distinguished from 0.",
    "alone": "Without ±: one sequence, so nothing says how much another seed would change.",
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


__all__ = ["answer", "heading_and_doubts"]
