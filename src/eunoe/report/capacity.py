"""The capacity that plug-ins have left after each domain: units used, shared with each earlier domain, and free.

A finished domain keeps the units that its masks chose; a later one reads them but cannot change them. What is left shrinks
with each domain, in each mask by itself (a plug-in has one between its two maps, and one after them). When it runs out is
said by the rule of ``plugins/capacity_report.py``, and what to do then in the words that the run itself used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import fsum
from typing import Any, NamedTuple

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from eunoe.plugins.capacity_report import ADVICE, capacity_report
from eunoe.report import draw, html
from eunoe.report.draw import RULE
from eunoe.report.lines import layer_name
from eunoe.report.read import Capacity, Run

# None is nearly white, all is orange; as dark as black text on it allows.
TAKEN = LinearSegmentedColormap.from_list("taken", ["#f4f3f0", "#f0953f"])


class Side(NamedTuple):
    """One kind of mask: in the plug-ins of one part of the layers, inner (between the maps) or outer (after them)."""

    part: str
    units: str

    def __str__(self) -> str:
        return f"{self.part.replace('_', '-')}, {self.units}"


def sides(states: Sequence[Capacity]) -> list[Side]:
    """The kinds of masks, as they come."""
    return list(dict.fromkeys(Side(mask["part"], mask["units"]) for state in states for mask in state.masks))


def free_shares(states: Sequence[Capacity], side: Side) -> dict[str, list[float]]:
    """Layer -> the share of free units after each domain, mean over the sequences (all of one method and order)."""
    by_layer: dict[str, dict[int, list[float]]] = {}
    for state in states:
        for mask in state.masks:
            if Side(mask["part"], mask["units"]) == side:
                by_layer.setdefault(mask["layer"], {}).setdefault(state.place, []).append(mask["free"] / mask["size"])
    return {
        layer: [fsum(by_place[place]) / len(by_place[place]) for place in sorted(by_place)]
        for layer, by_place in by_layer.items()
    }


def warning(states: Sequence[Capacity], label: str) -> tuple[str, str]:
    """What to say when capacity runs out in the last state of a method's sequences, and what to do; both empty where there is enough.

    ``states`` are of one method and order. Of several seeds the one with the least capacity speaks.
    """
    ends = {state.seed: state for state in sorted(states, key=lambda state: state.place)}
    reports = {seed: capacity_report(state.masks) for seed, state in ends.items()}
    least = {
        seed: min(kind["free"] / kind["size"] for kind in report["kinds"])
        for seed, report in reports.items()
        if report["warning"]
    }
    if not least:
        return "", ""
    first, *others = sorted(least, key=lambda seed: (least[seed], seed))
    last = reports[first]["domains"][-1]
    inner = "; ".join(
        f"{kind['part'].replace('_', '-')} {_percent(kind['free'] / kind['size'])} free, "
        f"{last} newly took {_percent(kind['new'].get(last, 0) / kind['size'])}"
        for kind in reports[first]["kinds"]
        if kind["units"] == "inner"
    )
    also = f" ({', '.join(map(str, sorted(others)))} too)" if others else ""
    return f"{label} · seed {first}{also}: {inner}", ADVICE


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


class Use(NamedTuple):
    """Units of one kind of mask after one domain: sums over layers, means over sequences."""

    domain: str
    size: float
    used: float
    """By this domain."""
    new: float
    """Of these, how many no domain before it had used."""
    shared: dict[str, float]
    """Earlier domain -> how many of these it uses too."""
    free: float
    """Used by no domain so far."""


def uses(states: Sequence[Capacity], side: Side, layer: str | None = None) -> list[Use]:
    """What each domain took, in order; ``layer``: in that one alone. ``states`` are of one method and order."""
    domain_uses = []
    for place in sorted({state.place for state in states}):
        here = [state for state in states if state.place == place]
        masks = [
            mask
            for state in here
            for mask in state.masks
            if Side(mask["part"], mask["units"]) == side and layer in (None, mask["layer"])
        ]
        if masks:
            domain = here[0].domain
            size, free = (sum(mask[key] for mask in masks) / len(here) for key in ("size", "free"))
            used, new = (sum(mask[key].get(domain, 0) for mask in masks) / len(here) for key in ("domains", "new"))
            earlier = dict.fromkeys(name for mask in masks for name in mask["shared_with"])
            shared = {name: sum(mask["shared_with"].get(name, 0) for mask in masks) / len(here) for name in earlier}
            domain_uses.append(Use(domain, size, used, new, shared, free))
    return domain_uses


def capacity_section(runs: Sequence[Run], names: Mapping[tuple[str, str], str]) -> str:
    """Warnings, maps for each kind of mask, tables by domain and by layer; empty where no run has a capacity."""
    groups: dict[tuple[str, str], list[Capacity]] = {}
    for run in runs:
        for state in run.capacity:
            groups.setdefault((names.get((run.name, state.method), state.method), state.order), []).append(state)
    parts, warnings, lines = [], [], []
    orders = {order for _, order in groups}
    for k, ((label, order), states) in enumerate(groups.items()):
        title = label + (f", order {order}" if len(orders) > 1 else "")
        warnings += [warned for warned in [warning(states, title)] if warned[0]]
        domains = list({state.place: state.domain for state in sorted(states, key=lambda state: state.place)}.values())
        seeds = len({state.seed for state in states})
        figures = []
        for i, side in enumerate(sides(states)):
            svg = _free_map(free_shares(states, side), domains, f"capacity-{k}-{i}")
            alt = f"{title}: share of free units in {side} masks, by layer and domain"
            figures.append(html.figure(svg, str(side), alt))
        note = f" <small>mean of {seeds} seeds</small>" if seeds > 1 else ""
        body = f"<h3>{escape(title)}{note}</h3>{_row('Free units, %', figures)}{_by_domain(states, title, k)}"
        parts.append(body if k == 0 else f"<details><summary>{escape(title)}</summary>{body}</details>")
        lines += _lines(title, states, domains)
    if not parts:
        return ""
    columns = ("Method", "After", "Masks", "Units", "Used", "Shared", "Free", "Least free of any seed, %", "In layer")
    table = html.table(columns, lines, text_columns=3)
    note = (
        "Free: units that no finished domain uses. Shared: used by two domains or more; those are read by a later domain, and never "
        "changed. Inner: between a plug-in’s two maps; outer: after them. All maps are in percent of a mask’s units; layers go "
        "upward from the first, domains as they were learnt. The maps of used, shared and free units have one row a domain: what it "
        "shares with each earlier domain, on the diagonal all that it uses, in the last column what it left free."
    )
    return html.section(
        "Capacity",
        _warned(warnings),
        f'<p class="note">{note}</p>',
        f'<div class="legend">{draw.colour_bar(TAKEN, ("no unit taken", "half", "all taken"), "capacity-scale")}</div>',
        *parts,
        f"<details><summary>All methods and orders: units used, shared and free</summary>{table}</details>",
    )


def _warned(warnings: Sequence[tuple[str, str]]) -> str:
    """What to do, once; then a line a method and order."""
    if not warnings:
        return ""
    listed = "".join(f"<li>{escape(line)}</li>" for line, _ in warnings)
    sentence = (
        f"Capacity runs out. {warnings[0][1]} Inner units after the last domain, with the seed that has least left:"
    )
    return f'<div class="warning"><p>{escape(sentence)}</p><ul>{listed}</ul></div>'


def _by_domain(states: Sequence[Capacity], title: str, k: int) -> str:
    """Maps and a table of what each domain uses and shares, over all layers and layer by layer; all folded but the first maps."""
    by_side = {side: uses(states, side) for side in sides(states)}
    earlier = list(dict.fromkeys(name for side_uses in by_side.values() for use in side_uses for name in use.shared))
    figures = []
    for i, (side, side_uses) in enumerate(by_side.items()):
        alt = f"{title}: units in {side} masks that each domain uses, shares with each earlier domain, and leaves free"
        figures.append(html.figure(_shared_map(side_uses, f"shared-{k}-{i}"), str(side), alt))
    columns = ("Masks", "Domain", "Units", "Used by it", "Newly", *(f"Shared with {name}" for name in earlier), "Free")
    by_domain = html.table(
        columns,
        ([escape(str(side)), *_cells(use, earlier)] for side, side_uses in by_side.items() for use in side_uses),
        text_columns=2,
    )
    layers = list(dict.fromkeys(mask["layer"] for state in states for mask in state.masks))
    layered = {side: {layer: uses(states, side, layer) for layer in layers} for side in by_side}
    by_layer = html.table(
        ("Layer", *columns),
        (
            [escape(layer_name(layer)), escape(str(side)), *_cells(use, earlier)]
            for layer in layers
            for side in by_side
            for use in layered[side][layer]
        ),
        text_columns=3,
    )
    maps = "".join(
        _layer_maps(side_uses, side, title, f"layers-{k}-{i}") for i, (side, side_uses) in enumerate(layered.items())
    )
    return (
        f"{_row('Used, shared and free units, %', figures)}"
        f"<details><summary>Units by domain: used, shared with each earlier domain, free</summary>{by_domain}</details>"
        f"<details><summary>The same layer by layer</summary>{maps}{by_layer}</details>"
    )


def _layer_maps(layer_uses: Mapping[str, Sequence[Use]], side: Side, title: str, name: str) -> str:
    """A row of maps, one a domain: what it shares, uses and leaves free in each layer."""
    by_domain: dict[str, dict[str, Use]] = {}
    for layer, domain_uses in layer_uses.items():
        for use in domain_uses:
            by_domain.setdefault(use.domain, {})[layer] = use
    figures = []
    for j, (domain, by) in enumerate(by_domain.items()):
        alt = f"{title}: units in {side} masks after learning {domain}, layer by layer: shared, used, free"
        figures.append(html.figure(_layer_map(by, f"{name}-{j}"), domain, alt))
    return _row(f"{side}: used, shared and free units after each domain, %", figures)


def _row(title: str, figures: Sequence[str]) -> str:
    return f'<h4>{escape(title)}</h4><div class="row">{"".join(figures)}</div>'


def _cells(use: Use, earlier: Sequence[str]) -> list[str]:
    shared = [_count(use.shared[name]) if name in use.shared else html.NONE for name in earlier]
    return [escape(use.domain), _count(use.size), _count(use.used), _count(use.new), *shared, _count(use.free)]


def _count(units: float) -> str:
    """A count, or a mean of counts that is none.

    >>> _count(1234.0), _count(2.5)
    ('1,234', '2.5')
    """
    return f"{units:,.0f}" if units == round(units) else f"{units:,.1f}"


def _lines(title: str, states: Sequence[Capacity], domains: Sequence[str]) -> list[list[str]]:
    """One line a domain and kind of mask: sums over the layers, means over the sequences; the least of all masks."""
    lines = []
    for place in sorted({state.place for state in states}):
        here = [state for state in states if state.place == place]
        for i, side in enumerate(sides(states)):
            masks = [m for state in here for m in state.masks if Side(m["part"], m["units"]) == side]
            if not masks:
                continue
            total = sum(m["size"] for m in masks)
            least: dict[str, Any] = min(masks, key=lambda m: m["free"] / m["size"])
            cells = [f"{100 * sum(m[key] for m in masks) / total:.1f} %" for key in ("used", "shared", "free")]
            lines.append([
                escape(title) if i == 0 and place == min(one.place for one in states) else "", escape(here[0].domain) if i == 0 else "",
                escape(str(side)), f"{total // len(here):,}", *cells, f"{100 * least['free'] / least['size']:.1f}",
                escape(layer_name(least["layer"])),
            ])  # fmt: skip
    return lines


# -- maps -------------------------------------------------------------------------------------------------------
class Share(NamedTuple):
    """A part of a mask's units. ``free``: it is of free units, of which many mean that little is taken."""

    share: float
    free: bool = False


def _free_map(shares: Mapping[str, Sequence[float]], domains: Sequence[str], name: str) -> str:
    """Layers by domains: how many percent of the units are free."""
    lines = [(layer_name(layer), [Share(share, free=True) for share in by_place]) for layer, by_place in shares.items()]
    return _map("layer", lines[::-1], "after learning", domains, name)


def _shared_map(domain_uses: Sequence[Use], name: str) -> str:
    """One row a domain: percent of the units shared with each earlier domain, used by itself, and free after it."""
    columns = list(dict.fromkeys(column for use in domain_uses for column in (*use.shared, use.domain)))
    lines = []
    for use in domain_uses:
        taken = {**use.shared, use.domain: use.used}
        cells = [Share(taken[column] / use.size) if column in taken else None for column in columns]
        lines.append((use.domain, [*cells, Share(use.free / use.size, free=True)]))
    return _map("after learning", lines, "shared with, or used", [*columns, "free"], name)


def _layer_map(layer_uses: Mapping[str, Use], name: str) -> str:
    """Layers, of one domain: percent of the units shared with each earlier domain, used by itself, and free after it."""
    earlier = list(dict.fromkeys(column for use in layer_uses.values() for column in use.shared))
    lines = []
    for layer, use in layer_uses.items():
        cells = [Share(units / use.size) for units in (*(use.shared.get(column, 0.0) for column in earlier), use.used)]
        lines.append((layer_name(layer), [*cells, Share(use.free / use.size, free=True)]))
    return _map("layer", lines[::-1], "shared with" if earlier else "", [*earlier, "used", "free"], name)


def _map(
    down: str, lines: Sequence[tuple[str, Sequence[Share | None]]], across: str, columns: Sequence[str], name: str
) -> str:
    """Percents in lines, each with its label, and columns; ``down`` and ``across`` say what these are."""
    wide, high, top = 48.0, 22.0, 40.0
    left = 12 + 5.6 * max(len(down), *(len(draw.short(label, 11)) for label, _ in lines))
    figure, ax = draw.canvas(
        max(left + wide * len(columns), left + 2 + 5.6 * len(across)) + 4, top + high * len(lines) + 4
    )
    draw.text(ax, left - 8, top - 10, down, ha="right", size=10)
    draw.text(ax, left + 2, 9, across, ha="left", size=10)
    for j, column in enumerate(columns):
        draw.text(ax, left + wide * (j + 0.5), top - 10, draw.short(column, 8), size=10)
    for row, (label, cells) in enumerate(lines):
        y = top + high * row
        draw.text(ax, left - 8, y + high / 2, draw.short(label, 11), ha="right", size=10)
        for j, cell in enumerate(cells):
            if cell is not None:
                colour = TAKEN(1 - cell.share if cell.free else cell.share)
                ax.add_patch(Rectangle((left + wide * j + 1, y + 1), wide - 2, high - 2, facecolor=colour, edgecolor=RULE,
                                       linewidth=0.4, clip_on=False))  # fmt: skip
                draw.text(
                    ax, left + wide * (j + 0.5), y + high / 2, f"{100 * cell.share:.0f}", size=10.5, color="#0c0d0e"
                )
    return draw.svg(figure, name)


__all__ = ["Side", "Use", "capacity_section", "free_shares", "sides", "uses", "warning"]
