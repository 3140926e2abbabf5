"""What each method costs: a step's arithmetic, memory in training, bytes of a domain's checkpoint and beside the model, and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import fsum

from eunoe.report import html
from eunoe.report.beside import Facts, Sizes, Time
from eunoe.report.metrics import typeset
from eunoe.report.summary import Summary
from eunoe.report.tradeoff import main_lines

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


def time_text(seconds: float) -> str:
    """
    >>> [time_text(s) for s in (0.4, 59.6, 90, 3599, 7_000)]
    ['0.4 s', '1.0 min', '1.5 min', '1.0 h', '1.9 h']
    """
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 0.99 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def on_disk(sizes: Sequence[Sizes]) -> int:
    """Bytes of a domain's checkpoint: of the last one, the largest of all orders and seeds."""
    return _largest(sizes, last=True).checkpoint


def costs_section(
    summary: Summary, facts: Mapping[str, Facts], sizes: Mapping[str, Sequence[Sizes]], times: Mapping[str, Sequence[Time]],
    *, asked: bool,
) -> str:  # fmt: skip
    """A line for each method, with what it reached beside what it costs; empty where nothing is known. ``asked``: with times."""
    lines = {line.label: line for line in main_lines(summary)}
    labels = [label for label in dict.fromkeys([*lines, *facts, *sizes]) if label in facts or label in sizes]
    if not labels:
        return ""
    metric = next(iter(lines.values())).metric if lines else None
    columns = ["Method", *([f"At the end, {metric.unit}", "Forgotten"] if metric else [])]
    columns += ["Step, naive = 1", "Memory in training"] if facts else []
    columns += ["On disk, a domain", "Beside the model"] if sizes else []
    columns += ["Learnt in"] if times else []
    rows = []
    for label in labels:
        cells: list[html.Cell | str] = [escape(label)]
        if metric:
            line = lines.get(label)
            cells += [
                html.estimate(line.final if line else None, metric),
                html.estimate(line.forgetting if line else None, metric),
            ]
        if facts:
            known = facts.get(label)
            cells.append(html.Cell(f"{known.arithmetic:g}", known.arithmetic) if known else html.NONE)
            cells.append(escape(known.memory.replace("- ", "\u2212 ")) if known else html.NONE)
        if sizes:
            cells += _bytes(sizes.get(label, ()))
        if times:
            cells.append(_time(times.get(label, ())))
        rows.append(cells)
    words = (columns.index("Memory in training"),) if facts else ()
    note = []
    if facts:
        note.append("Step and memory in training: against naive training, by the table of methods at default settings; "
                    "“−” is less memory, “+” more.")  # fmt: skip
    if sizes:
        note.append("On disk: the checkpoint of the last domain. Beside the model: what the method keeps, in memory or on disk, while it "
                    "learns the next domain; optimizers and activations are not counted. Measured, the largest of all orders and "
                    "seeds.")  # fmt: skip
    if times:
        note.append("Learnt in: all domains of one sequence, the mean over its sequences; on this machine, and slower where several ran "
                    "at once.")  # fmt: skip
    elif not asked:
        note.append(
            "Times differ from run to run, so they are shown where they are asked for: eunoe report RUN --times."
        )
    return html.section(
        "What it costs",
        html.table(columns, rows, words=words, sort=True),
        f'<p class="note">{escape(typeset(" ".join(note)))}</p>',
        _parts(sizes),
    )


def _bytes(sizes: Sequence[Sizes]) -> list[html.Cell | str]:
    if not sizes:
        return [html.NONE, html.NONE]
    last = _largest(sizes, last=True)
    beside = sum(last.beside.values())
    return [html.Cell(bytes_text(last.checkpoint), last.checkpoint), html.Cell(bytes_text(beside), beside)]


def _time(times: Sequence[Time]) -> html.Cell | str:
    """Sums over the stages of a sequence, their mean."""
    by_sequence: dict[tuple[str, int], list[float]] = {}
    for time in times:
        by_sequence.setdefault((time.order, time.seed), []).append(time.seconds)
    if not by_sequence:
        return html.NONE
    mean = fsum(fsum(seconds) for seconds in by_sequence.values()) / len(by_sequence)
    return html.Cell(time_text(mean), mean)


def _parts(sizes: Mapping[str, Sequence[Sizes]]) -> str:
    """What grows with the domains, and of what it is made."""
    lines = []
    for label, kept in sizes.items():
        first, last = _largest(kept, last=False), _largest(kept, last=True)
        named = [f"{name} {bytes_text(size)}" for name, size in sorted(last.beside.items(), key=lambda part: -part[1])]
        parts = ", ".join([*named[:PARTS], *([f"{len(named) - PARTS} more"] if len(named) > PARTS else [])])
        lines.append([escape(label), *(bytes_text(one.checkpoint) for one in (first, last)),
                      *(bytes_text(sum(one.beside.values())) for one in (first, last)), escape(parts) or html.NONE])  # fmt: skip
    if not lines:
        return ""
    columns = ("Method", "Checkpoint, first domain", "Last", "Beside the model, first", "Last", "Of this")
    table = html.table(columns, lines, words=(5,))
    return f"<details><summary>From the first to the last domain, and what it is</summary>{table}</details>"


def _largest(sizes: Sequence[Sizes], *, last: bool) -> Sizes:
    place = (max if last else min)(one.place for one in sizes)
    return max((one for one in sizes if one.place == place), key=lambda one: (sum(one.beside.values()), one.checkpoint))


__all__ = ["bytes_text", "costs_section", "on_disk", "time_text"]
