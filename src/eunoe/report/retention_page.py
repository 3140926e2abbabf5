"""The section on how much of the pretrained model is preserved: a table, and small plots over the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from eunoe.report import html
from eunoe.report.draw import Style, style
from eunoe.report.lines import over_layers
from eunoe.report.metrics import CKA, DISTANCE, LM_LOSS, metric_of
from eunoe.report.retention import Kept, TextLoss

TITLE = "How much of the pretrained model is preserved"
NOTE = (
    "The fine-tuned trunk is put back under the original LM head. LM loss: of general text that has nothing of the task, in nats, "
    "before and after fine-tuning; above 0 in “change” is forgotten. Distance: Euclidean, of the trunk’s weights to the pretrained "
    "ones. CKA: likeness of the hidden states of the two models on that text, mean over the layers; 1 is alike up to rotation and scale."
)


def retention_section(kept: Sequence[Kept], looks: Mapping[str, Style] | None = None, salt: str = "kept") -> str:
    """The whole section; empty where nothing was measured. ``looks``: of the labels, made here where not given."""
    if not kept:
        return ""
    texts = list(dict.fromkeys(text for one in kept for text in one.texts))
    likeness = list(dict.fromkeys(text for one in kept for text in one.cka))
    far = any(one.distance for one in kept)
    columns = ["Task", "System" if looks else "Method"]
    columns += [f"{text}: {what}" for text in texts for what in ("before → after", "change")]
    columns += ["Distance"] * far + [f"CKA, {text}" for text in likeness]
    lines, last_task = [], ""
    for one in kept:
        cells = [escape(one.task) if one.task != last_task else "", escape(one.label)]
        last_task = one.task
        for text in texts:
            loss = one.texts.get(text)
            cells += [_before_after(loss) if loss else html.NONE, html.estimate(loss.change if loss else None, LM_LOSS)]
        cells += [html.estimate(one.distance, DISTANCE)] * far
        cells += [html.value(one.cka[text].mean if text in one.cka else None, CKA) for text in likeness]
        lines.append(cells)
    looks = looks or {label: style(i) for i, label in enumerate(dict.fromkeys(one.label for one in kept))}
    table = html.table(columns, lines, text_columns=2)
    return html.section(TITLE, table, f'<p class="note">{NOTE}</p>', _by_layer(kept, looks, salt))


def _before_after(loss: TextLoss) -> str:
    return f"{html.value(loss.before.mean, LM_LOSS)} → {html.value(loss.after.mean, LM_LOSS)}"


def _layers(states: Mapping[str, float]) -> dict[str, float]:
    """States are counted from the embeddings' on; here layers go by the names that their weights have."""
    return {
        "embeddings" if name == "0" else str(int(name) - 1): value for name, value in states.items() if name.isdecimal()
    }


def _by_layer(kept: Sequence[Kept], looks: Mapping[str, Style], salt: str) -> str:
    parts = []
    for k, task in enumerate(dict.fromkeys(one.task for one in kept)):
        measured = [one for one in kept if one.task == task]
        figures = []
        far = {one.label: one.distance_layers for one in measured if one.distance_layers}
        if far:
            svg = over_layers(far, looks, DISTANCE, f"{salt}-far-{k}")
            figures.append(
                html.figure(svg, "Distance to the pretrained weights", f"{task}: distance of each layer’s weights")
            )
        for i, text in enumerate(dict.fromkeys(text for one in measured for text in one.cka_layers)):
            alike = {one.label: _layers(one.cka_layers[text]) for one in measured if text in one.cka_layers}
            svg = over_layers(alike, looks, metric_of(f"cka@{text}"), f"{salt}-cka-{k}-{i}")
            figures.append(html.figure(svg, f"CKA on {text}", f"{task}: likeness of each layer’s states on {text}"))
        if figures:
            keys = html.keys(
                {label: look for label, look in looks.items() if label in {one.label for one in measured}}, marks=True
            )
            body = f'{keys}<div class="row">{"".join(figures)}</div>'
            parts.append(f"<details><summary>{escape(task)}, layer by layer</summary>{body}</details>")
    return "\n".join(parts)


__all__ = ["retention_section"]
