"""What a number is: its metric's words, unit and precision, and how a mean with its interval is shown.

One table, ``NAMED``, says how each metric is read; any other metric is a score in points.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import fsum

from eunoe.evaluate.scores import mean_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Metric:
    """How a metric is read: its words, its unit, how a stored value becomes a shown one, which way is better."""

    name: str
    title: str
    unit: str
    scale: float
    decimals: int
    higher_is_better: bool


LM_LOSS = Metric("lm_loss", "LM loss", "nats", 1.0, 3, False)
DISTANCE = Metric("anchor_distance", "Distance to the pretrained weights", "", 1.0, 2, False)
LAMBDA = Metric("lambda", "Lambda: share of the task in the objective", "", 1.0, 3, True)
CKA = Metric("cka", "CKA", "", 1.0, 3, True)
# In the order they are shown; any other metric is a score in points and comes after these.
METRICS = (
    LM_LOSS,
    Metric("accuracy", "Accuracy", "points", 100.0, 1, True),
    Metric("macro_f1", "Macro-F1", "points", 100.0, 1, True),
)
NAMED = (
    *METRICS,
    Metric("matthews", "Matthews", "points", 100.0, 1, True),
    Metric("accuracy_mm", "Accuracy, mismatched", "points", 100.0, 1, True),
    Metric("span_f1", "Span F1", "points", 100.0, 1, True),
    DISTANCE,
    LAMBDA,
)


def metric_of(name: str) -> Metric:
    """How ``name`` is read; ``lm_loss@TEXT`` and ``cka@TEXT`` are measures of retention on that general text.

    >>> metric_of("pearson").title, metric_of("pearson").scale
    ('Pearson', 100.0)
    >>> metric_of("lm_loss@brown").title, metric_of("lm_loss@brown").unit, metric_of("cka@brown").higher_is_better
    ('LM loss of brown', 'nats', True)
    """
    known = {m.name: m for m in NAMED}
    kind, mark, text = name.partition("@")
    if mark and kind == LM_LOSS.name:
        return replace(LM_LOSS, name=name, title=f"LM loss of {text}")
    if mark and kind == CKA.name:
        return replace(CKA, name=name, title=f"CKA on {text}")
    return known.get(name) or Metric(name, name.replace("_", " ").capitalize(), "points", 100.0, 1, True)


def is_retention(name: str) -> bool:
    """Does the metric say how much of the pretrained model is preserved, and nothing of the task?

    >>> [is_retention(name) for name in ("lm_loss@brown", "anchor_distance", "cka@brown", "lm_loss", "accuracy")]
    [True, True, True, False, False]
    """
    return name == DISTANCE.name or name.partition("@")[:2] in ((LM_LOSS.name, "@"), (CKA.name, "@"))


@dataclass(frozen=True)
class Estimate:
    """A mean over sequences. ``exact``: it is a change, and every difference that went into it was exactly 0."""

    values: tuple[float, ...]
    exact: bool = False

    @property
    def mean(self) -> float:
        return fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean (95 %); None for a single sequence."""
        return mean_interval(self.values, CONFIDENCE)


def number(value: float, metric: Metric, *, signed: bool = False) -> str:
    """``value`` as shown: in the metric's unit and precision, never as minus zero.

    >>> number(0.21449, LM_LOSS), number(0.0634, metric_of("accuracy"), signed=True), number(-1e-9, LM_LOSS)
    ('0.214', '+6.3', '0.000')
    """
    text = f"{value * metric.scale:{'+' if signed else ''}.{metric.decimals}f}"
    return text.replace("-", "").replace("+", "") if float(text) == 0 else text


def shown(estimate: Estimate | None, metric: Metric, *, signed: bool = False) -> str:
    """An estimate with the half width of its interval; ``-`` where there is none, ``0 (exactly)`` where nothing changed.

    >>> shown(Estimate((0.0, 0.0), exact=True), LM_LOSS), shown(Estimate((0.0002, -0.0002)), LM_LOSS)
    ('0 (exactly)', '0.000 ± 0.003')
    """
    if estimate is None:
        return "-"
    if estimate.exact:
        return "0 (exactly)"
    interval = estimate.interval
    # Equal values (the pretrained model, scored once per seed) are one number measured again, not a sure one.
    half = f" ± {number((interval[1] - interval[0]) / 2, metric)}" if interval and interval[0] < interval[1] else ""
    return number(estimate.mean, metric, signed=signed) + half


def typeset(text: str) -> str:
    """Hyphens that are minus signs become minus signs (as wide as a digit), straight apostrophes curly: for pages, as a
    terminal may have neither.

    >>> typeset("its domains' loss moved by -0.2 in run-2")
    'its domains’ loss moved by −0.2 in run-2'
    """
    return re.sub(r"(?<![^\W_])-(?=\d)", "\u2212", text).replace("'", "\u2019")


__all__ = [
    "CKA", "DISTANCE", "LAMBDA", "LM_LOSS", "METRICS", "Estimate", "Metric", "is_retention", "metric_of", "number", "shown", "typeset",
]  # fmt: skip
