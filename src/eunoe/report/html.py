"""The pieces a report page is put together from: sections, figures, tables, numbers, and the style sheet.

Whatever comes from data is escaped here or by the caller, as each docstring says; the page around it forbids the browser
to load anything.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import NamedTuple

from eunoe.report.draw import LOOKS, Style
from eunoe.report.files import clean
from eunoe.report.metrics import Estimate, Metric, number, shown, typeset
from eunoe.report.schema import Row

WIDE = 480
NONE = '<span class="none">–</span>'


@dataclass(frozen=True)
class Part:
    """What one kind of run puts on the page. ``sections`` are HTML; empty ones are left out."""

    answer: str
    """The heading."""
    sure: str
    """How sure that is; may be empty."""
    unfinished: list[str]
    sections: list[str]
    reading: str
    """How to read its numbers."""
    compact: bool = False
    """Does it print only what is open on the screen? Else what is folded is printed too."""


def section(title: str, *parts: str) -> str:
    """A section with its heading; ``parts`` are HTML, empty ones are left out."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def figure(svg: str, caption: str, alt: str, note: str = "") -> str:
    """A plot below its caption; ``alt`` tells in words what it shows."""
    labelled = svg.replace("<svg ", f'<svg aria-label="{escape(alt)}" ', 1)
    small = f" <small>{escape(note)}</small>" if note else ""
    top = f"<figcaption>{escape(caption)}{small}</figcaption>" if caption else ""
    # A plot wider than a phone keeps its size and scrolls in its own box: shrunk, its text could not be read.
    width = float(svg.split(' width="', 1)[1].split('"', 1)[0])
    return f'<figure>{top}<div class="plot{" wide" if width > WIDE else ""}">{labelled}</div></figure>'


class Cell(NamedTuple):
    """A cell of a table (HTML) whose text does not say the number that it is sorted by."""

    content: str
    value: float


def table(
    columns: Sequence[str], lines: Iterable[Sequence[str | Cell]], title: str = "", text_columns: int = 1, *,
    words: Collection[int] = (), sort: bool = False,
) -> str:  # fmt: skip
    """A table in a box that scrolls by itself, its title outside of it. Cells are HTML; the first ``text_columns``, and those of
    ``words``, hold words. ``sort``: with the page's script each heading is a button that sorts the lines by its column."""

    def cell(tag: str, i: int, content: str | Cell) -> str:
        kind = "" if i < text_columns else ' class="w"' if i in words else ' class="n"'
        if isinstance(content, Cell):
            return f'<{tag}{kind} data-v="{content.value:g}">{content.content}</{tag}>'
        return f"<{tag}{kind}>{content}</{tag}>"

    head = "".join(cell("th", i, escape(name)) for i, name in enumerate(columns))
    body = "".join("<tr>" + "".join(cell("td", i, c) for i, c in enumerate(line)) + "</tr>\n" for line in lines)
    above = f"<h3>{escape(typeset(title))}</h3>\n" if title else ""
    mark = " data-sort" if sort and body.count("<tr>") > 1 else ""
    return (
        f'{above}<div class="scroll"><table{mark}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    )


SCRIPT = """for (const table of document.querySelectorAll("table[data-sort]")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => {
    const cell = row.cells[i], text = (cell.dataset.v ?? cell.textContent).trim();
    if (!heads[i].classList.contains("n")) return text.toLowerCase();
    const number = parseFloat(text.replace("−", "-").replaceAll(",", ""));
    return Number.isNaN(number) ? null : number;
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(one => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => (up ? 1 : -1) * (typeof a === "number" ? a - b : a.localeCompare(b));
      [...body.rows].map(row => [key(row, i), row])
        .sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : order(a, b))
        .forEach(([, row]) => body.append(row));
    });
  });
}
"""
"""Sorts tables. It reads and moves what stands in the page, and nothing else; a line without a number comes last either way. Without
it the page has everything in the order of the recipe."""


def script_hash() -> str:
    """What a content security policy lets run: this script, and no other."""
    return f"sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}"


def estimate(average: Estimate | None, metric: Metric, *, signed: bool = False) -> str:
    """A mean with half of its interval, or what stands for none."""
    if average is None:
        return NONE
    if average.exact:
        return '<b class="exact">0</b> <small>(exactly)</small>'
    mean, mark, half = typeset(shown(average, metric, signed=signed)).partition(" ± ")
    return f"{mean}<small> ± {half}</small>" if mark else mean


MARKS = {
    "circle": '<circle cx="17" cy="7" r="4.5"/>',
    "square": '<path d="M13 3h8v8h-8z"/>',
    "up": '<path d="M17 2l5 9h-10z"/>',
    "diamond": '<path d="M17 1.5l5.5 5.5-5.5 5.5-5.5-5.5z"/>',
    "down": '<path d="M17 12l5-9h-10z"/>',
    "plus": '<path d="M15 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    "cross": '<path d="M14 1.5l3 3 3-3 2.5 2.5-3 3 3 3-2.5 2.5-3-3-3 3-2.5-2.5 3-3-3-3z"/>',
    "star": '<path d="M17 1l1.5 4h4.2l-3.4 2.6 1.3 4.2-3.6-2.6-3.6 2.6 1.3-4.2-3.4-2.6h4.2z"/>',
    "left": '<path d="M12 7l9-5v10z"/>',
    "right": '<path d="M22 7l-9-5v10z"/>',
    "thin": '<path d="M17 1l3.3 6-3.3 6-3.3-6z"/>',
    "bow": '<path d="M12 3l10 8v-8l-10 8z"/>',
    "glass": '<path d="M13 2l8 10h-8l8-10z"/>',
}
"""The shapes of ``draw.STYLES``, as a key shows them."""


def swatch(look: Style, *, line: bool = True, mark: bool = False) -> str:
    """A bit of the method's line, or its mark, or both, for a key."""
    colour = f"var(--{look.name})"
    dash = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in look.dash)}"' if look.dash else ""
    drawn = f'<line x1="0" y1="7" x2="34" y2="7" stroke="{colour}" stroke-width="2.5"{dash}/>' if line else ""
    if mark:
        fill = (
            f'fill="{"var(--page)" if line else "none"}" stroke="{colour}" stroke-width="1.5"'
            if look.open
            else f'fill="{colour}"'
        )
        drawn += f"<g {fill}>{MARKS[look.shape]}</g>"
    left, width = (0, 34) if line else (9, 16)
    return f'<svg width="{width}" height="14" viewBox="{left} 0 {width} 14" aria-hidden="true">{drawn}</svg>'


def keys(looks: Mapping[str, Style], *, lines: bool = True, marks: bool = False) -> str:
    """What each line or mark of the plots beside it is."""
    listed = "".join(
        f"<li>{swatch(look, line=lines, mark=marks)} {escape(label)}</li>" for label, look in looks.items()
    )
    return f'<ul class="keys">{listed}</ul>'


def value(score: float | None, metric: Metric) -> str:
    """One number in its metric's unit, or what stands for none."""
    return NONE if score is None else typeset(number(score, metric))


def listed(title: str, sentences: Sequence[str]) -> str:
    """Sentences below a heading; empty where there are none."""
    items = "".join(f"<li>{escape(typeset(sentence))}</li>" for sentence in sentences)
    return f'<h3>{escape(title)}</h3><ul class="notes">{items}</ul>' if items else ""


def short_shots(rows: Iterable[Row]) -> str:
    """A line for each few-shot draw that took fewer rows of a class than were asked for; empty where all took enough."""
    draws: dict[str, None] = {}
    for row in rows:
        if row.short_shots:
            taken = ", ".join(f"{clean(name)} {n:,}" for name, n in row.short_shots.items())
            draw = "" if row.shots_seed is None else f" (draw {row.shots_seed})"
            draws[f"{row.task}{draw}: fewer rows than asked for of {taken}"] = None
    return listed("Few-shot rows taken", [*draws])


def one_order(row: str, order: str, i: int, orders: int) -> str:
    """The plots of the ``i``-th of several orders: the first in sight, the others folded."""
    if i == 0:
        return (f'<p class="note">Order {escape(order)}</p>' if orders > 1 else "") + row
    return f"<details><summary>Order {escape(order)}</summary>{row}</details>"


def css() -> str:
    """The style sheet with the colours of the plots' lines."""
    light = "".join(f" --{look.name}: {look.light};" for look in LOOKS)
    dark = "".join(f" --{look.name}: {look.dark};" for look in LOOKS)
    return CSS.replace("/*light*/", light).replace("/*dark*/", dark)


CSS = """:root { color-scheme: light dark; --page: #ffffff; --ink: #1c1e21; --soft: #5b616b; --rule: #8a8f98; --line: #dcdfe4;
  --box: #f5f6f8; --warn: #fff3d6;/*light*/ }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #15171a; --ink: #e8e9eb; --soft: #a4abb5; --rule: #7b828c; --line: #343940; --box: #1f2328; --warn: #3d3113;/*dark*/ }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
header { border-bottom: 1px solid var(--line); padding-bottom: 20px; }
.sure { margin: 12px 0 0; max-width: 52em; overflow-wrap: anywhere; }
.run { margin: 0 0 6px; color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
h1 { font-size: clamp(19px, 2.4vw, 25px); line-height: 1.35; font-weight: 650; margin: 0; max-width: 36em; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; margin: 40px 0 14px; }
h3 { font-size: 16px; margin: 26px 0 10px; overflow-wrap: anywhere; }
h4 { font-size: 14px; font-weight: 500; color: var(--soft); margin: 18px 0 8px; overflow-wrap: anywhere; }
p { max-width: 46em; }
.note, small { color: var(--soft); }
.note { font-size: 14px; }
small { font-size: .86em; }
.warning { background: var(--warn); border-radius: 6px; padding: 10px 14px 10px 30px; margin: 16px 0 0; font-size: 14px;
  overflow-wrap: anywhere; }
div.warning { padding-left: 14px; }
.warning p { max-width: none; margin: 0 0 6px; }
.warning ul { margin: 0; padding-left: 16px; }
dl { display: grid; gap: 6px; margin: 0; }
dl div { display: grid; grid-template-columns: 9.5em 1fr; gap: 12px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; max-width: 46em; }
.picks div { grid-template-columns: 1fr 1.3fr; padding: 7px 0; border-bottom: 1px solid var(--line); }
.picks { gap: 0; max-width: 62em; }
.row { display: flex; flex-wrap: wrap; gap: 22px 30px; align-items: flex-start; }
figure { margin: 0; max-width: 100%; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
figcaption small { font-weight: 400; }
.plot { overflow-x: auto; }
svg { max-width: 100%; height: auto; display: block; stroke-linejoin: round; stroke-linecap: butt; }
@media screen { .wide svg { max-width: none; } }
svg text { font-variant-numeric: tabular-nums; }
.names text { paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
.slim { display: none; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 14px 10px; }
.small figcaption { font-size: 14px; }
.small figcaption small { display: block; }
.legend { margin: 12px 0 8px; }
.keys { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 0 0 12px; overflow-wrap: anywhere; }
.keys svg { display: inline-block; vertical-align: middle; margin-right: 4px; }
.scroll { overflow-x: auto; margin: 0 0 20px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { text-align: left; padding: 6px 22px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; color: var(--soft); font-size: 14px; vertical-align: bottom; border-bottom-color: var(--rule); }
td:not(.n) { overflow-wrap: break-word; }
.n { text-align: right; white-space: nowrap; }
th.n { white-space: normal; }
th button { all: unset; cursor: pointer; text-decoration: underline dotted; text-underline-offset: 3px; }
th button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
[aria-sort=ascending] button::after { content: " ↑"; }
[aria-sort=descending] button::after { content: " ↓"; }
table[data-sort] td:first-child { min-width: 7.5em; }
th:last-child, td:last-child { padding-right: 4px; }
.none { color: var(--soft); }
details { border: 1px solid var(--line); border-radius: 6px; margin: 10px 0; padding: 0 14px; }
summary { margin: 0 -14px; padding: 10px 14px; cursor: pointer; overflow-wrap: anywhere; }
details > :not(summary) { margin: 4px 0 14px; }
pre { background: var(--box); border-radius: 6px; padding: 12px 14px; overflow-x: auto; margin: 0 0 12px;
  font: 13px/1.5 ui-monospace, monospace; }
.notes { margin: 0; padding-left: 18px; font-size: 14px; overflow-wrap: anywhere; max-width: 52em; }
.terms { margin-top: 10px; font-size: 15px; }
@media screen and (max-width: 820px) {
  .broad { display: none; }
  .slim { display: block; }
}
@media (max-width: 600px) {
  main { padding: 18px 16px 40px; }
  dl div, .picks div { grid-template-columns: 1fr; gap: 0; }
  dl { gap: 10px; }
  th, td { padding-right: 16px; }
  td:not(.n) { overflow-wrap: anywhere; min-width: 6.5em; }
  td.w { min-width: 13em; }
  .picks { gap: 0; }
  .plot svg { min-width: min(100%, 300px); }
}
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h1 { font-size: 15pt; max-width: none; }
  .sure { max-width: none; }
  h2 { break-after: avoid; margin-top: 22pt; font-size: 13pt; }
  h3, h4, thead, summary, figcaption { break-after: avoid; }
  figure, tr, .legend { break-inside: avoid; }
  .names svg { max-height: 112mm; width: auto; }
  .legend { break-before: avoid; }
  .row { display: grid; grid-template-columns: 1fr 1fr; gap: 12pt 16pt; }
  .small { grid-template-columns: repeat(4, 1fr); }
  th button { text-decoration: none; }
  table { font-size: 9pt; }
  th { font-size: 8.5pt; }
  th, td { padding: 3pt 12pt 3pt 0; }
  .scroll, .plot { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 8.5pt; }
  details { border: 0; padding: 0; }
  summary { margin: 0; padding: 4pt 0; font-weight: 600; list-style: none; }
  details > :not(summary) { margin: 0; }
  .compact details:not([open]) { display: none; }
  main:not(.compact) details::details-content { content-visibility: visible; block-size: auto; }
}
"""
