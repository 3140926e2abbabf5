"""How much of the pretrained model is preserved, from the rows: LM loss of general text, distance of the weights, CKA.

``eunoe.evaluate.retention`` says what is measured. The unit of averages is one fine-tuning; where several few-shot samples
were drawn for one seed, their mean counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from eunoe.report.files import is_number
from eunoe.report.matrices import domain_orders
from eunoe.report.metrics import CKA, DISTANCE, LM_LOSS, Estimate, is_retention
from eunoe.report.schema import Row


@dataclass(frozen=True)
class TextLoss:
    """LM loss (nats) of one general text before and after fine-tuning; ``change`` above 0 is worse."""

    before: Estimate
    after: Estimate
    change: Estimate


@dataclass(frozen=True)
class Kept:
    """What one system or method kept of the model when it was fine-tuned on one task. Layers are means over repeats."""

    label: str
    task: str
    texts: dict[str, TextLoss]
    distance: Estimate | None
    cka: dict[str, Estimate]
    distance_layers: dict[str, float]
    cka_layers: dict[str, dict[str, float]]

    @property
    def change(self) -> float | None:
        """The mean rise of LM loss (nats) over all texts."""
        return fsum(t.change.mean for t in self.texts.values()) / len(self.texts) if self.texts else None


def kept(rows: Sequence[Row], label: Callable[[Row], str]) -> list[Kept]:
    """By task and label, in the order of the rows; [] where nothing was measured."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if is_retention(row.metric):
            groups.setdefault((row.task, label(row)), []).append(row)
    tasks = list(dict.fromkeys(task for task, _ in groups))
    return [
        _kept(name, task, group) for (task, name), group in sorted(groups.items(), key=lambda g: tasks.index(g[0][0]))
    ]


def kept_by_domains(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> list[Kept]:
    """Of runs over domains: each end task after the last domain that its sequence had learnt when it was measured."""
    orders = domain_orders(rows)
    measured = [row for row in rows if is_retention(row.metric)]

    def sequence(row: Row) -> tuple[object, ...]:
        return (row.run, row.method, row.transfer, row.order, row.seed, row.task)

    last: dict[tuple[object, ...], int] = {}
    for row in measured:
        last[sequence(row)] = max(last.get(sequence(row), 0), len(row.learnt))
    several = len({row.transfer for row in measured}) > 1
    ends = [row for row in measured if len(row.learnt) == last[sequence(row)]]
    places = {name: i for domains in reversed(orders.values()) for i, name in enumerate(domains)}
    ends.sort(key=lambda row: places.get(row.task, len(places)))
    return kept(ends, lambda row: names[(row.run, row.method)] + (f", {row.transfer}" if several else ""))


def _kept(label: str, task: str, rows: Sequence[Row]) -> Kept:
    values: dict[str, dict[tuple[object, ...], list[tuple[float, float]]]] = {}
    layers: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        detail = row.detail or {}
        before = detail.get("before", None if row.metric.startswith(LM_LOSS.name) else 0.0)
        if not is_number(before):
            continue  # a loss that nothing can be compared with
        values.setdefault(row.metric, {}).setdefault((row.run, row.order, row.seed), []).append((row.value, before))
        by_name = detail.get("layers")
        for name, value in by_name.items() if isinstance(by_name, dict) else ():
            if is_number(value):
                layers.setdefault(row.metric, {}).setdefault(str(name), []).append(float(value))
    means = {m: [(_mean([a for a, _ in v]), _mean([b for _, b in v])) for v in by.values()] for m, by in values.items()}
    by_layer = {m: {name: _mean(v) for name, v in layer_values.items()} for m, layer_values in layers.items()}

    def texts(kind: str) -> dict[str, str]:
        return {m.removeprefix(f"{kind}@"): m for m in means if m.startswith(f"{kind}@")}

    losses = {}
    for text, m in texts(LM_LOSS.name).items():
        change = tuple(after - before + 0.0 for after, before in means[m])
        losses[text] = TextLoss(
            Estimate(tuple(b for _, b in means[m])), Estimate(tuple(a for a, _ in means[m])),
            Estimate(change, all(value == 0 for value in change)),
        )  # fmt: skip
    distance = means.get(DISTANCE.name)
    return Kept(
        label, task, losses, Estimate(tuple(value for value, _ in distance)) if distance else None,
        {text: Estimate(tuple(value for value, _ in means[m])) for text, m in texts(CKA.name).items()},
        by_layer.get(DISTANCE.name, {}),
        {text: by_layer[m] for text, m in texts(CKA.name).items() if m in by_layer},
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


__all__ = ["Kept", "TextLoss", "kept", "kept_by_domains"]
