"""``eunoe new``: a recipe from the files in a folder, with comments that say what was taken for what.

Each subfolder or text file is a domain; a file with a text column and a label column is the end task of the domain that has its
name. Where two readings are possible none is chosen: what was left out stands in the recipe as a comment with the reason.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eunoe.atomic import write_text
from eunoe.data.columns import Look
from eunoe.data.corpus import texts
from eunoe.data.files import ending, not_read, resolve
from eunoe.data.groups import Group, groups_of, is_general, listed, role, source
from eunoe.data.tasks import Task, load_task
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.methods import METHODS
from eunoe.plan import resolve as resolve_recipe
from eunoe.recipe import (
    CorpusSettings,
    Recipe,
    TaskSettings,
    as_path,
    check_names,
    parse_yaml,
    recipe_of,
    refuse_inside,
)
from eunoe.transfer import TRANSFERS

LEAST = 1000
"""Characters of a domain at least: some blocks to learn, and one that is held out."""
MANY = 500
"""Rows to fine-tune or to score on above which a recipe takes fewer: it is to run in minutes, not in days."""
LOOKED_AT = 4_000_000
"""Characters of a text that are counted; more is only said to be more."""
BLOCK, BATCH, STEPS, LETTERS = 128, 16, 20, 5
"""Tokens of a block, blocks of a step, the fewest steps of a domain, and letters of a token: an estimate, for the sizes alone."""


@dataclass
class _Domain:
    """A domain as the recipe will have it; ``said``: what stands above it as comments."""

    name: str
    corpus: dict[str, Any]
    said: list[str]
    characters: int = 0
    task: dict[str, Any] | None = None
    task_said: list[str] = field(default_factory=list)
    train_rows: int = 0


def new_recipe(folder: Path, out: Path | None = None, model: str = "minilm") -> Path:
    """Write a recipe for the files in ``folder`` to ``out`` (default ``FOLDER.yaml`` here) and return its path.

    Raises ``EunoeError`` if there is nothing to learn from, if two things have one name, or if ``out`` exists.
    """
    if not os.path.isdir(folder):
        raise EunoeError(
            f"{visible(folder)} is not a folder. Give the folder that holds your texts, one file or subfolder a domain."
        )
    name = _name(folder.resolve().name, "own_data")
    out = Path(f"{name}.yaml") if out is None else as_path(out, "--out")
    if os.path.lexists(out):
        raise EunoeError(f"{visible(out)} exists and is not overwritten. Choose another --out, or delete it.")
    left_out: list[str] = []
    groups = groups_of(folder, left_out)
    general = [group for group in groups if is_general(group)]
    if len(general) > 1:
        names = ", ".join(group.name for group in general)
        raise EunoeError(
            f"{visible(folder)} holds several general texts: {names}. Put them into one subfolder `general`, or rename some."
        )
    drafted = [_domain(group, left_out) for group in groups if group not in general]
    domains = [domain for domain in drafted if domain is not None]
    if not domains:
        reasons = "".join(f"\n- {line}" for line in left_out)
        raise EunoeError(f"{visible(folder)} holds nothing to learn from. Put in a text file or a subfolder of texts for each domain."
                         f"{reasons}")  # fmt: skip
    check_names([domain.name for domain in domains], "domain")
    text = _text(folder, name, model, domains, [_domain(group, left_out) for group in general], left_out, out)
    recipe = recipe_of(parse_yaml(text, str(out)))
    assert isinstance(recipe, Recipe)
    refuse_inside(out, resolve_recipe(recipe).sources())
    write_text(out, text)
    return out


# -- one domain ---------------------------------------------------------------------------------------------------------
def _domain(group: Group, left_out: list[str]) -> _Domain | None:
    """The domain of a group, or None, and why it is left out."""
    corpus, said = _corpus(group)
    name = _name(group.name, "domain")
    if corpus is None:
        left_out.append(f"{visible(group.name)}: {'; '.join(said)}.")
        return None
    if name != group.name:
        said.append(f"called {visible(group.name)} there; names are letters, digits, - and _")
    domain = _Domain(name, corpus, said)
    try:
        domain.characters, documents = _size(corpus)
    except EunoeError as error:
        left_out.append(f"{visible(group.name)}: {error}")
        return None
    more = "more than " if domain.characters >= LOOKED_AT else ""
    said.insert(0, f"{more}{documents:,} document{'s' * (documents != 1)}, {more}{domain.characters:,} characters")
    if domain.characters < LEAST:
        left_out.append(f"{visible(group.name)}: {domain.characters:,} characters are too few to learn from and to hold some out; give at "
                        f"least {LEAST:,}.")  # fmt: skip
        return None
    if group.labelled:
        _add_task(domain, group.labelled)
    undecided = [table for table in group.tables if table.label is None and table.said]
    domain.task_said += [f"{visible(table.path.name, 80)}: {'; '.join(table.said)}" for table in undecided]
    return domain


def _corpus(group: Group) -> tuple[dict[str, Any] | None, list[str]]:
    """Where the text of a group lies, or None and why that cannot be decided."""
    unlabelled = [table for table in group.tables if table.label is None]
    files: list[Path] = group.plain or [table.path for table in unlabelled]
    said: list[str] = []
    if group.plain and unlabelled:
        said.append("not read beside the plain text: " + listed(table.path for table in unlabelled))
    if not files and not group.tables:
        return None, ["nothing in it could be taken, for the reasons above"]
    if not files:  # labelled rows alone
        train = [table for table in group.labelled if role(table.path) in (None, "train")]
        if len(train) != 1:
            return None, [
                f"{len(train) or 'none'} of its files could be the training rows: {listed(t.path for t in group.tables)}"
            ]
        said.append("there is no text beside the labelled rows: the texts of the training rows are what is learnt from")
        return {"source": source(train[0].path), **_column(train[0])}, said
    columns = {table.path: table.text for table in unlabelled}
    if len({columns.get(file) for file in files}) > 1:
        return None, [f"its files have their text in different columns: {listed(files)}"]
    column = _column(next((t for t in unlabelled if t.path == files[0]), None))
    roles = {role(file): file for file in files}
    if len(files) == 1:
        corpus = {"source": source(files[0]), **column}
    elif len(files) == 2 and set(roles) in ({"train", "dev"}, {None, "dev"}, {"train", "test"}):
        valid = roles.get("dev") or roles["test"]
        learnt = next(file for file in files if file != valid)
        corpus = {"source": source(learnt), **column, "valid": source(valid)}
        said.append(f"held out is {visible(valid.name)}")
    elif group.folder is None or not all(file.is_relative_to(group.folder) for file in files):
        return None, [f"several files have this name: {listed(files)}. Put them into a subfolder, or rename them"]
    else:
        corpus = {"source": source(group.folder), **column}
        if unread := not_read(source(group.folder)):
            said.append(f"not read there: {unread}")
        every = resolve(source(group.folder))
        if len(every) > len(files):
            (kind, count), *others = Counter(_whole_ending(file) for file in files).most_common()
            corpus["files"] = f"**/*{kind}"
            if others:
                said.append(f"of its plain text only the {count} {kind} files are read, as `files` is one pattern; not read: "
                            + ", ".join(f"{n} {k}" for k, n in others))  # fmt: skip
            if any(_whole_ending(table.path) == kind for table in group.labelled):
                return None, [
                    f"labelled and other rows end in {kind} alike: {listed(every)}. Put the text into a subfolder of its own"
                ]
    if group.plain:
        corpus |= _documents(group.plain, said)
    return corpus, said


def _documents(plain: Sequence[Path], said: list[str]) -> dict[str, str]:
    """What one document of plain text is: a file of many, a line where no blank line separates paragraphs."""
    if len(plain) > 5:
        said.append("each file is a document")
        return {"documents": "file"}
    try:
        some = [
            text
            for file in plain
            for _, text in zip(range(50), texts(CorpusSettings(source=source(file))), strict=False)
        ]
    except EunoeError:  # it is said where the text is read
        return {}
    if len(some) <= len(plain) and sum(text.count("\n") for text in some) > 5:
        said.append("no blank lines separate its parts: each line is a document")
        return {"documents": "lines"}
    said.append("blank lines separate documents")
    return {}


def _size(corpus: dict[str, Any]) -> tuple[int, int]:
    """Characters and documents of a corpus, counted to ``LOOKED_AT``; of held-out text with a source of its own too, which is not empty."""
    settings = CorpusSettings(**corpus)
    for _ in texts(settings, settings.valid) if settings.valid else ():
        break
    characters = documents = 0
    for text in texts(settings):
        characters, documents = characters + len(text), documents + 1
        if characters >= LOOKED_AT:
            break
    return characters, documents


def _add_task(domain: _Domain, tables: Sequence[Look]) -> None:
    """The end task from labelled files, or a comment that says why there is none."""
    shown = listed(table.path for table in tables)
    by_role: dict[str, list[Look]] = {}
    for table in tables:
        by_role.setdefault(role(table.path) or "train", []).append(table)
    train = by_role.get("train", [])
    if len(train) != 1 or any(len(candidates) > 1 for candidates in by_role.values()):
        domain.task_said = [f"no end task: the names do not say which of these are its training and test rows: {shown}"]
        return
    rows = train[0]
    scored = next((by_role[role][0] for role in ("test", "dev") if role in by_role), None)
    chosen = {"text": rows.text, "pair": rows.pair, "label": rows.label}
    columns = {key: name for key, name in chosen.items() if name is not None and (name != key or key == "pair")}
    task: dict[str, Any] = {"train": source(rows.path), **columns}
    if rows.regression:
        task["kind"] = "regression"
    said = list(rows.said)
    if scored is None:
        task["test_share"] = 0.2
        said.append("no test rows: a fifth of the rows is split off to score on")
    else:
        task["test"] = source(scored.path)
        if role(scored.path) == "dev":
            said.append("no test rows: scored on the development rows")
        elif "dev" in by_role:
            said.append(f"not read: {visible(by_role['dev'][0].path.name)}")
    try:
        loaded = load_task(domain.name, TaskSettings(**task), CorpusSettings(source=domain.corpus["source"]))
    except EunoeError as error:
        domain.task_said = [f"no end task: {error}", f"task: {_flow(task)}"]
        return
    if len(loaded.test) > MANY:
        task["test_rows"] = MANY
        said.append(f"scored on {MANY} of {len(loaded.test):,} test rows, spread evenly; null: on all")
    domain.train_rows = len(loaded.train)
    if len(loaded.train) > MANY and not rows.regression:
        task["shots"], domain.train_rows = "cpt", 0
        said.append("shots: cpt draws few of them, as CPT's paper does (32, or 8 a class from 5 classes on); all: every row, which "
                    "takes longer")  # fmt: skip
    domain.task, domain.task_said = task, [_described(loaded), *said]


def _described(task: Task) -> str:
    counts = Counter(str(example.label) for example in task.train)
    classes = ", ".join(f"{visible(label, 30)} ({counts[label]:,})" for label in task.labels[:10]) + ", ..." * (
        len(task.labels) > 10
    )
    what = f"{len(task.labels)} classes: {classes}" if task.labels else "the label is a number"
    return f"end task: {len(task.train):,} rows to fine-tune on, {len(task.test):,} to score; {what}"


# -- the recipe as text ---------------------------------------------------------------------------------------------------
def _text(
    folder: Path, name: str, model: str, domains: Sequence[_Domain], general: Sequence[_Domain | None], left_out: Sequence[str], out: Path
) -> str:  # fmt: skip
    smallest = min(domain.characters for domain in domains) / LETTERS
    block = next(b for b in (BLOCK, 64, 32, 16) if smallest >= 8 * b or b == 16)
    few = smallest / block / BATCH < STEPS
    rows = max((domain.train_rows for domain in domains), default=0)
    evaluation = "{blocks: 64}"
    if len(domains) > 3:
        evaluation = (
            "{blocks: 64, matrix: ends}   # end tasks right after their domain and at the end; full: after every domain"
        )
    opening = (
        f"Written by `eunoe new {visible(folder)}` from the files that lie there; docs/recipes.md has every key. "
        "Paths count from the folder in which the command runs. What it will do, and then do it:"
    )
    lines = [
        *_comment(opening),
        f"#     eunoe plan {visible(out)}",
        f"#     eunoe run {visible(out)}",
        f"name: {name}",
        f"about: {_scalar(f'The texts of {visible(folder)}, learnt one after another.')}",
        f"model: {_flow({'name': model})}   # minilm is small and quick; or a folder, or a Hugging Face name",
        "domains:   # learnt in this order",
    ]  # fmt: skip
    for domain in domains:
        lines += [
            f"  - name: {_scalar(domain.name)}",
            *_comment("; ".join(domain.said) + ".", "    "),
            f"    corpus: {_flow(domain.corpus)}",
        ]
        for line in domain.task_said:
            lines += _comment(line, "    ")
        if domain.task is None and not any(line.startswith("no end task") for line in domain.task_said):
            lines += _comment("no end task: no rows with a text and a label have its name", "    ")
        lines += [f"    task: {_flow(domain.task)}"] if domain.task else []
    if general and general[0] is not None:
        lines += [
            *_comment("; ".join(general[0].said) + ". Never trained on: forgetting is measured on it."),
            f"general: {_flow(general[0].corpus)}",
        ]
    else:
        lines += [*_comment("No general text (a file or subfolder general*): forgetting is measured on the other domains alone."),
                  "# general: {source: general.txt}"]  # fmt: skip
    steps = f"steps: {STEPS}" if few else "epochs: 1"
    least = min(domains, key=lambda domain: domain.characters).name
    why = f"a size for the domain with the least text, {least}; {'several passes' if few else 'one pass'} over it"
    lines += [
        "methods:",
        *(f"  - {row.drafted}" for row in METHODS.values() if row.drafted and not row.package),
        f"training: {{block: {block}, batch: {BATCH}, {steps}}}   # {why}",
    ]
    if any(domain.task for domain in domains):
        epochs = 20 if rows <= 500 else 5 if rows <= 5000 else 3
        options = TRANSFERS[Recipe.transfer].drafted(epochs, BLOCK)
        lines.append(f"transfer: {_flow({'name': Recipe.transfer, **options})}   # how the end tasks are learnt")
    lines += [f"evaluation: {evaluation}", "seeds: [0]   # [0, 1, 2] gives intervals, and takes three times as long"]
    if left_out:
        lines += ["", "# Left out:"]
        for line in left_out:
            lines += _comment(line, "", "#   - ")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str = "", mark: str = "# ") -> list[str]:
    """A comment of lines that fit; nothing of a foreign name can end it."""
    lines, line = [], ""
    for word in visible(" ".join(text.split()), 2000).split(" "):
        if line and len(indent) + len(mark) + len(line) + len(word) > 116:
            lines.append(line)
            line = ""
        line += f" {word}" if line else word
    return [f"{indent}{mark if i == 0 else '#' + ' ' * (len(mark) - 1)}{part}" for i, part in enumerate([*lines, line])]


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)).strip()


def _scalar(text: str) -> str:
    return _flow([text])[1:-1]


def _name(text: str, instead: str) -> str:
    """A name that recipes allow, as near to ``text`` as it can be."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")[:64]
    return f"{name}_text" if name.lower() == "base" else name or instead


def _column(table: Look | None) -> dict[str, str]:
    return {} if table is None or table.text in (None, "text") else {"column": str(table.text)}


def _whole_ending(path: Path) -> str:
    return ending(path) + (".gz" if path.name.lower().endswith(".gz") else "")


__all__ = ["new_recipe"]
