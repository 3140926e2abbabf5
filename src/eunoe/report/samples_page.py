"""The section of what the model answered, before the first domain and after the last."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from eunoe.report import html
from eunoe.report.files import clean
from eunoe.report.samples import Sample, plain


def samples_section(name: str, samples: list[Sample], labels: Mapping[tuple[str, str], str]) -> str:
    """What the model said before and after, a table a prompt, as a section of the page; empty where nothing was asked.

    Of several orders and seeds the first is shown. ``labels``: (run, method) -> what the page calls it.
    """
    after = [sample for sample in samples if sample.learnt]
    if not after:
        return ""
    shown = [s for s in samples if not s.learnt or (s.order, s.seed) == (after[0].order, after[0].seed)]
    by_prompt: dict[str, list[Sample]] = {}
    for sample in shown:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    tables = []
    for prompt, answers in by_prompt.items():
        lines = [
            (escape(_state(sample, labels.get((name, sample.method), sample.method))), escape(plain(sample.answer)))
            for sample in answers
        ]
        tables.append(html.table(("Model", "Answer"), lines, plain(prompt), text_columns=2))
    others = {(sample.order, sample.seed) for sample in after} - {(after[0].order, after[0].seed)}
    note = (
        f"Order {after[0].order}, seed {after[0].seed}, one of {len(others) + 1} sequences; samples.jsonl has all. "
        if others
        else ""
    )
    note += "A word to fill in is answered with the likeliest words and their probabilities; else with the likeliest continuation."
    return html.section("What it answers, before and after", *tables, f'<p class="note">{escape(clean(note))}</p>')


def _state(sample: Sample, label: str) -> str:
    if not sample.learnt:
        return "before, as pretrained"
    read = f", read as {sample.reads_as}" if sample.reads_as else ""
    return clean(f"{label}, after {sample.learnt[-1]}{read}")


__all__ = ["samples_section"]
