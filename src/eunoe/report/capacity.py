"""How much room CPT's plug-ins have left after each domain: the share of free units by layer, and when to do something.

A finished domain keeps the units that its masks chose; a later one reads them but cannot change them. What is left shrinks
with each domain, in each mask by itself (a plug-in has one between its two maps, and one after them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import fsum
from typing import Any, NamedTuple

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from eunoe.report import draw, html
from eunoe.report.draw import RULE
from eunoe.report.lines import layer_name
from eunoe.report.read import Room, Run

SCARCE = 0.1
"""A mask with a smaller share of free units is warned about."""
# Free is nearly white, full is orange; as dark as black text on it allows.
FREE = LinearSegmentedColormap.from_list("free", ["#f0953f", "#f4f3f0"])


class Side(NamedTuple):
    """One kind of mask: in the plug-ins of one part of the layers, inner (between the maps) or outer (after them)."""

    part: str
    units: str

    def __str__(self) -> str:
        return f"{self.part.replace('_', '-')}, {self.units}"


def sides(rooms: Sequence[Room]) -> list[Side]:
    """The kinds of masks, as they come."""
    return list(dict.fromkeys(Side(mask["part"], mask["units"]) for room in rooms for mask in room.masks))


def free_shares(rooms: Sequence[Room], side: Side) -> dict[str, list[float]]:
    """Layer -> the share of free units after each domain, mean over the sequences (all of one method and order)."""
    found: dict[str, dict[int, list[float]]] = {}
    for room in rooms:
        for mask in room.masks:
            if Side(mask["part"], mask["units"]) == side:
                found.setdefault(mask["layer"], {}).setdefault(room.place, []).append(mask["free"] / mask["size"])
    return {layer: [fsum(of[place]) / len(of[place]) for place in sorted(of)] for layer, of in found.items()}


def scarce(rooms: Sequence[Room], label: str) -> str:
    """What to say when room runs out in the last state of a method's sequences; empty where there is enough.

    ``rooms`` are of one method and order.
    """
    ends = {room.seed: room for room in sorted(rooms, key=lambda room: room.place)}
    low = sorted(
        (mask["free"] / mask["size"], seed, i, mask, room)
        for seed, room in ends.items()
        for i, mask in enumerate(room.masks)
        if mask["free"] < SCARCE * mask["size"]
    )  # fmt: skip
    if not low:
        return ""
    _, seed, _, mask, room = low[0]
    masks = sum(len(room.masks) for room in ends.values())
    side = Side(mask["part"], mask["units"])
    return (
        f"{label}: after {room.domain}, {len(low)} of {masks} masks have less than {100 * SCARCE:.0f} % of their units free; least layer "
        f"{layer_name(mask['layer'])} ({side}), {mask['free']:,} of {mask['size']:,} (seed {seed}). A further domain can change little "
        "there. Wider plug-ins leave more room, and so does a regulariser that keeps the masks sparse."
    )


def capacity_section(runs: Sequence[Run], names: Mapping[tuple[str, str], str]) -> str:
    """Warnings, a map of the free share for each kind of mask, a table; empty where no run has a capacity."""
    groups: dict[tuple[str, str], list[Room]] = {}
    for run in runs:
        for room in run.rooms:
            groups.setdefault((names.get((run.name, room.method), room.method), room.order), []).append(room)
    parts, warned, lines = [], [], []
    orders = {order for _, order in groups}
    for k, ((label, order), rooms) in enumerate(groups.items()):
        title = label + (f", order {order}" if len(orders) > 1 else "")
        warned += [text for text in [scarce(rooms, title)] if text]
        domains = list({room.place: room.domain for room in sorted(rooms, key=lambda room: room.place)}.values())
        seeds = len({room.seed for room in rooms})
        figures = []
        for i, side in enumerate(sides(rooms)):
            svg = _map(free_shares(rooms, side), domains, f"room-{k}-{i}")
            alt = f"{title}: share of free units in {side} masks, by layer and domain"
            figures.append(html.figure(svg, str(side), alt))
        note = f" <small>mean of {seeds} seeds</small>" if seeds > 1 else ""
        body = f'<h3>{escape(title)}{note}</h3><div class="row">{"".join(figures)}</div>'
        parts.append(body if k == 0 else f"<details><summary>{escape(title)}</summary>{body}</details>")
        lines += _lines(title, rooms, domains)
    if not parts:
        return ""
    warning = "".join(f"<li>{escape(text)}</li>" for text in warned)
    table = html.table(
        ("Method", "After", "Masks", "Units", "Used", "Shared", "Free", "Least free, %", "In layer"),
        lines,
        text_columns=3,
    )
    note = (
        "Free: units that no finished domain uses. Shared: used by two domains or more; those are read by a later domain, and never "
        "changed. Inner: between a plug-in’s two maps; outer: after them. The maps show the free share in percent: layers upward "
        "from the first, domains as they were learnt."
    )
    return html.section(
        "Room left in the plug-ins",
        f'<ul class="warning">{warning}</ul>' if warning else "",
        *parts,
        f"<details><summary>Units used, shared and free</summary>{table}</details>",
        f'<p class="note">{note}</p>',
    )


def _lines(title: str, rooms: Sequence[Room], domains: Sequence[str]) -> list[list[str]]:
    """One line a domain and kind of mask: sums over the layers, means over the sequences."""
    lines = []
    for place in sorted({room.place for room in rooms}):
        here = [room for room in rooms if room.place == place]
        for i, side in enumerate(sides(rooms)):
            masks = [m for room in here for m in room.masks if Side(m["part"], m["units"]) == side]
            if not masks:
                continue
            total = sum(m["size"] for m in masks)
            least: dict[str, Any] = min(masks, key=lambda m: m["free"] / m["size"])
            cells = [f"{100 * sum(m[key] for m in masks) / total:.1f} %" for key in ("used", "shared", "free")]
            lines.append([
                escape(title) if i == 0 and place == min(r.place for r in rooms) else "", escape(here[0].domain) if i == 0 else "",
                escape(str(side)), f"{total // len(here):,}", *cells, f"{100 * least['free'] / least['size']:.1f}",
                escape(layer_name(least["layer"])),
            ])  # fmt: skip
    return lines


def _map(shares: Mapping[str, Sequence[float]], domains: Sequence[str], name: str) -> str:
    """Layers (the first at the bottom) by domains; a cell says how many percent of its units are free."""
    wide, high, left, top = 60.0, 22.0, 34.0, 30.0
    layers = list(shares)
    width = max(left + wide * len(domains) + 4, 150.0)
    figure, ax = draw.canvas(width, top + high * len(layers) + 4)
    for j, domain in enumerate(domains):
        draw.text(ax, left + wide * (j + 0.5), top - 10, draw.short(domain, 9), size=10)
    for row, layer in enumerate(reversed(layers)):
        y = top + high * row
        draw.text(ax, left - 8, y + high / 2, layer_name(layer), ha="right", size=10)
        for j, share in enumerate(shares[layer]):
            ax.add_patch(Rectangle((left + wide * j + 1, y + 1), wide - 2, high - 2, facecolor=FREE(share), edgecolor=RULE,
                                   linewidth=0.4))  # fmt: skip
            draw.text(ax, left + wide * (j + 0.5), y + high / 2, f"{100 * share:.0f}", size=10.5, color="#0c0d0e")
    return draw.svg(figure, name)


__all__ = ["SCARCE", "Side", "capacity_section", "free_shares", "scarce", "sides"]
