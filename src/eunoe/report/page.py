"""The report as one HTML file that needs nothing else: no network, no font; style, plots and a few lines that sort tables are
inside.

The same run folders give the same bytes: the page holds no clock, no path and, unless it is asked for, no time. Everything
that comes from data is escaped, and a content security policy forbids the browser to load anything or to run any other
script, whatever a name in the data may say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from eunoe import stop
from eunoe.atomic import write_bytes
from eunoe.errors import EunoeError
from eunoe.recipe import as_path
from eunoe.report import domains, html, study_page
from eunoe.report.files import clean
from eunoe.report.metrics import typeset
from eunoe.report.read import Run, existing, read_runs
from eunoe.report.summary import LISTED


def write_report(
    runs: str | Path | Iterable[str | Path], out: str | Path | None = None, *, times: bool = False
) -> Path:
    """Write the report of one run folder, or the comparison of several, and return where it stands.

    ``out`` defaults to ``report.html`` in the run folder, or in the current folder if there are several. ``times``: with how
    long each method took, which differs from run to run. Raises ``EunoeError`` if a folder has no scores or ``out`` cannot be
    written. Optional files that are missing or damaged are named in the page. Runs over domains are compared with each other;
    a fine-tuning study has a part of its own.

    >>> write_report("runs/demo")  # doctest: +SKIP
    PosixPath('runs/demo/report.html')
    """
    each = runs if isinstance(runs, Iterable) and not isinstance(runs, str | os.PathLike) else [runs]
    given = [as_path(run, "a run folder") for run in each]
    if not given:
        raise EunoeError("no run folder was given. Name one or more: eunoe report RUN [RUN ...]")
    folders = list({existing(run).resolve(): run for run in given}.values())
    loaded = read_runs(folders, times=times)
    if out is None:
        path = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    else:
        path = as_path(out, "out")
        path = path / "report.html" if path.is_dir() else path
    write_bytes(path, render(loaded).encode("utf-8", "replace"))
    return path


def render(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    over_domains = [run for run in runs if run.study is None]
    parts: list[tuple[Sequence[Run], html.Part]] = [(over_domains, domains.part(over_domains))] if over_domains else []
    for run in runs:
        if run.study is not None:
            parts.append(([run], study_page.part(run, run.study, f"study-{len(parts)}")))
    title = " and ".join(run.name for run in runs)
    stop.check("making the report")
    compact = ' class="compact"' if any(part.compact for _, part in parts) else ""
    body = "\n".join(_part(shown, part, several=len(runs) > 1) for shown, part in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src '{html.script_hash()}'\">\n"
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>eunoe: {escape(title)}</title>\n<style>\n{html.css()}</style>\n</head>\n<body>\n<main{compact}>\n"
        f"{body}\n</main>\n<script>{html.SCRIPT}</script>\n</body>\n</html>\n"
    )


def _part(runs: Sequence[Run], part: html.Part, *, several: bool) -> str:
    """Its answer, what is unfinished, and its sections; the settings of its runs come before how to read it."""
    names = " and ".join(run.name for run in runs)
    faults = [sentence if len(runs) == 1 else f"{run.name}: {sentence}" for run in runs for sentence in run.damaged]
    if len(faults) > LISTED:
        faults = [*faults[:LISTED], f"and {len(faults) - LISTED:,} more damaged files"]
    warnings = "".join(f"<li>{escape(sentence)}</li>" for sentence in [*part.unfinished, *faults])
    warning = f'<ul class="warning">{warnings}</ul>\n' if warnings else ""
    answer = escape(_together(part.answer))
    sure = f'<p class="sure">{escape(_together(part.sure.strip()))}</p>\n' if part.sure.strip() else ""
    sections = [*part.sections, *(_settings(run, several=several) for run in runs), part.reading]
    return (
        f'<header>\n<p class="run">eunoe · {escape(names)}</p>\n<h1>{answer}</h1>\n{sure}{warning}</header>\n'
        + "\n".join(section for section in sections if section)
    )  # fmt: skip


def _together(text: str) -> str:
    """Words for the heading, in which no line ends inside a number and its interval."""
    return typeset(text).replace(" ± ", "\u00a0±\u00a0")


def _settings(run: Run, *, several: bool) -> str:
    parts = []
    environment = dict(run.environment or {})
    command = environment.pop("command", None)
    if command:
        parts.append(f"<h3>How to repeat it</h3><pre>{escape(clean(str(command)))}</pre>")
    elif run.environment is None:
        parts.append(
            '<p class="note">There is no environment.json that can be read: versions and the command are not known.</p>'
        )
    else:
        parts.append('<p class="note">environment.json names no command.</p>')
    if run.recipe is None:
        parts.append('<p class="note">There is no recipe.yaml that can be read: the settings are not known.</p>')
    else:
        parts.append(
            f"<details><summary>Settings (recipe.yaml, as resolved)</summary><pre>{escape(run.recipe)}</pre></details>"
        )
    if environment:
        lines = (
            (escape(clean(k)), escape(clean(v if isinstance(v, str) else json.dumps(v))))
            for k, v in sorted(environment.items())
        )
        table = html.table(("What", "Value"), lines, text_columns=2)
        parts.append(f"<details><summary>Versions and machine</summary>{table}</details>")
    return html.section(f"Settings of {run.name}" if several else "Settings", *parts)


__all__ = ["render", "write_report"]
