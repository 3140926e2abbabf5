"""Labelled rows as data sets' official files hold them: RACE, Story Cloze, SNLI and SciTail, the tasks of GPT-1 that GLUE has not.

``layout: race`` in a task says how ``train`` and ``test`` are read; columns and kind are then known.

- RACE (https://arxiv.org/abs/1704.04683): a folder (``RACE/train``, or ``RACE/train/high``) of one JSON object a ``.txt`` file, with
  an ``article`` and lists of ``questions``, ``options`` (four each) and ``answers`` (A to D).
- Story Cloze (https://arxiv.org/abs/1604.01696): CSV with ``InputSentence1`` to ``4``, ``RandomFifthSentenceQuiz1`` and ``2`` and
  ``AnswerRightEnding`` (1 or 2).
- SNLI (https://arxiv.org/abs/1508.05326): ``.jsonl``, or the same columns tab-separated in a ``.txt`` with a header: ``sentence1``,
  ``sentence2``, ``gold_label``; rows labelled ``-``, of which the annotators did not agree, are left out and counted.
- SciTail (AAAI 2018): ``.tsv`` without a header (premise, hypothesis, ``entails`` or ``neutral``; one more column in ``dgem_format``), or
  ``snli_format``: JSON lines in a ``.txt``.
- CoNLL's column files of words with tags, whatever the data set: ``data/tagging.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eunoe import stop
from eunoe.data.encoding import LINE_LIMIT, lines_of, too_long
from eunoe.data.files import resolve
from eunoe.data.records import Record, cell, read_rows, shown_value, text_cell
from eunoe.data.tagging import read_conll
from eunoe.errors import EunoeError
from eunoe.foreign import first_line, visible
from eunoe.progress import say
from eunoe.recipe import expand

Placed = Iterator[tuple[str, Record]]
"""Rows, each with where it stands: ``text``, ``label``, and ``pair`` or ``choices``."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files of a data set are read."""

    kind: str
    """Kind of task: ``classification`` or ``choice`` or ``tagging``."""
    read: Callable[[str, str | None, int], Placed]
    """(source, encoding, bytes of a line) -> rows with the columns ``text``, ``pair``, ``label`` and ``choices``."""


def _race(source: str, encoding: str | None, limit: int) -> Placed:
    for path in resolve(source, None if Path(expand(source)).is_file() else "**/*.txt", labelled=False):
        stop.check(f"reading {visible(source)}")
        shown, lines, size = visible(path), [], 0
        for _, line in lines_of(path, encoding, limit=limit):
            lines.append(line)
            size += len(line)
            if size > limit:
                raise too_long(shown, limit, "the file")
        passage = _object(
            "\n".join(lines), shown, "a RACE file holds one JSON object: article, questions, options, answers"
        )
        article = text_cell(passage, "article", shown)
        questions, options, answers = (_list(passage, key, shown) for key in ("questions", "options", "answers"))
        if not len(questions) == len(options) == len(answers):
            raise EunoeError(f"{shown}: {len(questions)} questions, {len(options)} options and {len(answers)} answers; RACE has one list "
                             "of options and one answer for each question. Fetch the file again.")  # fmt: skip
        for i, (question, offered, answer) in enumerate(zip(questions, options, answers, strict=True), 1):
            yield f"{shown}, question {i}", {"text": article, "pair": question, "choices": offered, "label": answer}


def _story_cloze(source: str, encoding: str | None, limit: int) -> Placed:
    for where, row in read_rows(source, encoding=encoding, line_limit=limit, labelled=True):
        given = cell(row, "AnswerRightEnding", where)
        if str(given).strip() not in ("1", "2"):
            raise EunoeError(f"{where}: AnswerRightEnding is {shown_value(given)}; Story Cloze has 1 or 2. A test file without "
                             "answers cannot be scored here.")  # fmt: skip
        story = " ".join(text_cell(row, f"InputSentence{i}", where).strip() for i in range(1, 5))
        endings = [text_cell(row, f"RandomFifthSentenceQuiz{i}", where) for i in (1, 2)]
        yield where, {"text": story, "choices": endings, "label": int(given) - 1}


def _snli(source: str, encoding: str | None, limit: int) -> Placed:
    left_out = 0
    txt = Path(source).name.removesuffix(".gz").endswith(".txt")
    rows = (
        _tabbed(source, encoding, limit)
        if txt
        else read_rows(source, encoding=encoding, line_limit=limit, labelled=True)
    )
    for where, row in rows:
        label = cell(row, "gold_label", where)
        if label == "-":
            left_out += 1
            continue
        yield where, {"text": cell(row, "sentence1", where), "pair": cell(row, "sentence2", where), "label": label}
    if left_out:
        say(
            f"{visible(source)}: {left_out:,} rows have no gold label, as the annotators did not agree, and are left out"
        )


def _scitail(source: str, encoding: str | None, limit: int) -> Placed:
    for where, line in _lines(source, encoding, limit):
        if line.startswith("{") and "\t" not in line:  # in JSON a tab is written out
            row = _object(line, where, "SciTail's snli_format has one JSON object a line")
            texts = [cell(row, key, where) for key in ("sentence1", "sentence2", "gold_label")]
        else:
            texts = line.split("\t")
            if not 3 <= len(texts) <= 4:
                raise EunoeError(f"{where}: {len(texts)} columns; SciTail's tsv_format has premise, hypothesis and label separated by "
                                 "tabs. Correct the line or fetch the file again.")  # fmt: skip
        label = {"entails": "entailment"}.get(texts[2], texts[2])  # the formats call one class by two names
        if label not in ("entailment", "neutral"):
            raise EunoeError(f"{where}: the label is {shown_value(texts[2])}; SciTail has entails and neutral.")
        yield where, {"text": texts[0], "pair": texts[1], "label": label}


LAYOUTS: dict[str, Layout] = {
    "race": Layout(kind="choice", read=_race),
    "story_cloze": Layout(kind="choice", read=_story_cloze),
    "snli": Layout(kind="classification", read=_snli),
    "scitail": Layout(kind="classification", read=_scitail),
    "conll": Layout(kind="tagging", read=read_conll),
}


def read_layout(layout: Layout, source: str, encoding: str | None, limit: int | None) -> Placed:
    """The rows of ``source``, each with where it stands; raises ``EunoeError`` for what is not of this layout."""
    return layout.read(source, encoding, LINE_LIMIT if limit is None else limit)


def _lines(source: str, encoding: str | None, limit: int) -> Iterator[tuple[str, str]]:
    path = Path(expand(source))
    if not path.is_file():
        raise EunoeError(f"{visible(path)} is not a file; this layout is read from one of the data set's own files.")
    for number, line in lines_of(path, encoding, limit=limit):
        if number % 1000 == 0:
            stop.check(f"reading {visible(path)}")
        if line.strip():
            yield f"{visible(path)}, line {number}", line


def _tabbed(source: str, encoding: str | None, limit: int) -> Placed:
    """Rows of a tab-separated file with a header, whatever its ending."""
    lines = _lines(source, encoding, limit)
    header = next(lines, ("", ""))[1].split("\t")
    for where, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise EunoeError(f"{where}: {len(cells)} columns, but the header has {len(header)}. Fetch the file again.")
        yield where, dict(zip(header, cells, strict=True))


def _object(text: str, where: str, expected: str) -> Record:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EunoeError(f"{where}: not JSON ({first_line(error).rstrip('.')}); {expected}.") from None
    if not isinstance(value, dict):
        raise EunoeError(f"{where}: {type(value).__name__}; {expected}.")
    return value


def _list(record: Record, key: str, where: str) -> list[Any]:
    value = cell(record, key, where)
    if not isinstance(value, list):
        raise EunoeError(f"{where}: {key} holds {shown_value(value)}, expected a list. Fetch the file again.")
    return value


__all__ = ["LAYOUTS", "Layout", "read_layout"]
