"""The sections with every domain's scores and every class's, and how to read the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from html import escape

from eunoe.evaluate.matrix import drops
from eunoe.evaluate.scores import wilson_interval
from eunoe.report import html
from eunoe.report.classes import class_counts
from eunoe.report.matrices import Scores
from eunoe.report.metrics import LM_LOSS, Estimate, Metric
from eunoe.report.schema import Row
from eunoe.report.summary import Summary


def by_domain(summary: Summary, names: dict[tuple[str, str], str]) -> str:
    parts = []
    orders = {(s.key.run, s.key.order) for s in summary.matrices}
    several = len(orders) > len({run for run, _ in orders})
    for title, lines in summary.sections():
        metric, transfer = lines[0].metric, lines[0].transfer
        sure = metric.name == "accuracy"
        group = [s for s in summary.matrices if (s.key.metric, s.key.transfer) == (metric.name, transfer)]
        table = []
        for scores in group:
            label = names[(scores.key.run, scores.key.method)] + (f" ({scores.key.order})" if several else "")
            mean, before, ends, last = scores.mean(), scores.mean_before(), scores.mean_end(), len(scores.domains) - 1
            for j in scores.tasks:
                end, at = ends[j], scores.learnt_at[j]
                after = mean[at][j] if scores.seeds else None
                cells = [
                    escape(label),
                    escape(scores.domains[j]),
                    *(html.value(v, metric) for v in (before[j], after, end)),
                ]
                why = "learns none" if not scores.seeds else "learnt last" if at == last else ""
                cells.append(
                    f'<span class="none">{why}</span>' if why else html.estimate(_drop(scores, j, metric), metric)
                )
                cells.append(f"{scores.n[j]:,}" if j in scores.n else "–")
                if sure:
                    cells.append(_wilson(end, scores.n.get(j)))
                table.append(cells)
        columns = [
            "Method",
            "Domain",
            "Before",
            "Right after",
            "At the end",
            "Forgotten",
            "Tokens" if metric is LM_LOSS else "Test rows",
        ]
        parts.append(html.table(columns + (["95 % at the end"] if sure else []), table, title, text_columns=2))
    if not parts:
        return ""
    note = (
        "Means over seeds. The 95 % interval (Wilson) of an accuracy says how far this test set of n rows may be from the task; "
        "it knows nothing of the spread over seeds, which is in the column before."
    )
    note = note if any(line.metric.name == "accuracy" for line in summary.lines) else "Means over seeds."
    return html.section(
        "Domain by domain",
        f'<details><summary>Every domain’s scores</summary>{"".join(parts)}<p class="note">{note}</p></details>',
    )


def _drop(scores: Scores, j: int, metric: Metric) -> Estimate | None:
    values = []
    for R in scores.seeds.values():
        with suppress(ValueError):
            values.append(drops(R, tasks=[j], higher_is_better=metric.higher_is_better, learnt_at=scores.learnt_at)[j])
    return Estimate(tuple(values), all(value == 0 for value in values)) if values else None


def _wilson(share: float | None, n: int | None) -> str:
    if share is None or not n or not 0 <= share <= 1:
        return html.NONE
    low, high = wilson_interval(round(share * n), n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


WHEN = {"before": "before any domain", "learnt": "right after its domain", "end": "at the end"}


def per_class(rows: Sequence[Row], *, several: bool) -> str:
    counts = class_counts(rows)
    if not counts:
        return ""
    transfers = {transfer for _, transfer, _ in counts}
    parts = []
    for (run, transfer, task), states in counts.items():
        lines = []
        for (label, when), classes in states.items():
            for i, (name, c) in enumerate(classes.items()):
                recall = c["correct"] / c["support"] if c["support"] else None
                both = c["support"] + c["predicted"]
                f1 = 2 * c["correct"] / both if both else 0.0
                lines.append((
                    escape(f"{label}, {WHEN[when]}") if i == 0 else "", escape(str(name)), f"{c['support']:,}", f"{c['predicted']:,}",
                    f"{c['correct']:,}", "–" if recall is None else f"{100 * recall:.1f}", f"{100 * f1:.1f}",
                ))  # fmt: skip
        title = " · ".join([*([run] if several else []), task, *([transfer] if len(transfers) > 1 else [])])
        table = html.table(
            ("Model", "Class", "Test rows", "Predicted", "Correct", "Recall, %", "F1, %"), lines, text_columns=2
        )
        parts.append(f"<details><summary>{escape(title)}</summary>{table}</details>")
    note = ('<p class="note">Counts are summed over orders, seeds and few-shot draws. A class that is never predicted is a model that '
            "has not learnt it.</p>")  # fmt: skip
    return html.section("End tasks, class by class", *parts, note)


READING = """<section>
<h2>How to read the numbers</h2>
<p>R[i][j] is the score of domain j after learning domains 0 to i, of T domains.</p>
<dl class="terms">
<div><dt>At the end</dt><dd>mean over j of R[T−1][j]: how good the model is at every domain once all are learnt.</dd></div>
<div><dt>Forgotten</dt><dd>mean over i &lt; T−1 of R[i][i] − R[T−1][i], for a loss with the sign turned round: how much worse
each domain but the last is at the end than right after it was learnt. Below 0, it is better.</dd></div>
<div><dt>–</dt><dd>there is no such number: what was learnt last, or all at once, cannot be forgotten yet, and a method that
learns no domain stands here for reference.</dd></div>
<div><dt>Backward transfer</dt><dd>minus “forgotten”.</dd></div>
<div><dt>Forward transfer</dt><dd>mean over i of what R[i][i] is better than the pretrained model that learnt no domain.</dd></div>
<div><dt>LM loss</dt><dd>mean cross-entropy of a scored token of held-out text, in nats.</dd></div>
<div><dt>Macro-F1</dt><dd>unweighted mean of F1 over all classes of the task; a class that never occurs counts as 0.</dd></div>
</dl>
</section>"""


__all__ = ["READING", "by_domain", "per_class"]
