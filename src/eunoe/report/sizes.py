"""What each method keeps: bytes of a domain's checkpoint, and of what it holds beside the model while it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from eunoe.report import html
from eunoe.report.metrics import typeset
from eunoe.report.read import Run, Sizes

PARTS = 6
"""Of what a method keeps, the largest that are named."""


def bytes_text(count: int) -> str:
    """A number of bytes, to three digits.

    >>> [bytes_text(n) for n in (0, 999, 1_000, 4_237, 998_760, 999_600, 91_426_816, 12_345_678_901)]
    ['0 B', '999 B', '1.00 KB', '4.24 KB', '999 KB', '1.00 MB', '91.4 MB', '12.3 GB']
    """
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def sizes_section(runs: Sequence[Run], names: Mapping[tuple[str, str], str]) -> str:
    """A line for each method: the first and the last stage, the largest of all orders and seeds; empty where no run has sizes."""
    by_label: dict[str, dict[int, list[Sizes]]] = {}
    for run in runs:
        for sizes in run.sizes:
            label = names.get((run.name, sizes.method), sizes.method)
            by_label.setdefault(label, {}).setdefault(sizes.place, []).append(sizes)
    lines = []
    for label, places in by_label.items():
        first, last = (_largest(places[place]) for place in (min(places), max(places)))
        named = [f"{name} {bytes_text(size)}" for name, size in sorted(last.beside.items(), key=lambda part: -part[1])]
        parts = ", ".join([*named[:PARTS], *([f"{len(named) - PARTS} more"] if len(named) > PARTS else [])])
        lines.append([escape(label), *(bytes_text(one.checkpoint) for one in (first, last)),
                      *(bytes_text(sum(one.beside.values())) for one in (first, last)), escape(parts) or html.NONE])  # fmt: skip
    if not lines:
        return ""
    columns = (
        "Method",
        "Checkpoint, first domain",
        "Checkpoint, last domain",
        "Beside the model, first",
        "Beside the model, last",
        "Of this",
    )
    note = (
        "Checkpoint: what a learnt domain takes on disk. Beside the model: what the method keeps in memory or on disk, after that "
        "domain, while it learns the next one. The largest of all orders and seeds; optimizers and activations are not counted."
    )
    return html.section("Memory it keeps", html.table(columns, lines), f'<p class="note">{escape(typeset(note))}</p>')


def _largest(sizes: Sequence[Sizes]) -> Sizes:
    return max(sizes, key=lambda one: (sum(one.beside.values()), one.checkpoint))


__all__ = ["bytes_text", "sizes_section"]
