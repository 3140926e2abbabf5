"""Words with a tag each: CoNLL's column files, and rows whose columns hold lists.

A column file has a word a line, its columns separated by tabs or spaces: the word first, its tag last (CoNLL 2000: word, part of
speech, chunk; CoNLL 2003: word, part of speech, chunk, entity). An empty line ends a sentence, and so does a ``-DOCSTART-`` line, which is
left out as comments are: lines that begin with ``# `` where a sentence would begin, unless they have the columns of the rows before (of
two columns: a tag that was there before). Tags may be spans (IOB1, IOB2, IOBES) or stand alone (parts of speech).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eunoe import stop
from eunoe.data.encoding import lines_of
from eunoe.data.records import Record, cell, shown_value
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.progress import say
from eunoe.recipe import expand


def read_conll(source: str, encoding: str | None, limit: int) -> Iterator[tuple[str, Record]]:
    """The sentences of a column file, each with where it begins: ``text`` the words, ``label`` the tags; raises ``EunoeError``
    naming the line for a row with more or fewer columns than the first."""
    path = Path(expand(source))
    if not path.is_file():
        raise EunoeError(
            f"{visible(path)} is not a file; a tagging task is read from CoNLL column files, or from rows with lists."
        )
    columns = begins = number = comments = 0
    words: list[str] = []
    tags: list[str] = []
    seen: set[str] = set()
    tabs = False
    for number, line in lines_of(path, encoding, limit=limit):
        if not number % 10_000:
            stop.check(f"reading {visible(path)}")
        row = line.split("\t") if "\t" in line else re.split(" +", line.strip(" \r\n"))
        if not line.strip() or row[0] == "-DOCSTART-":
            if words:
                yield f"{visible(path)}, line {begins}", {"text": words, "label": tags}
            words, tags = [], []
            continue
        like_a_row = len(row) == columns and tabs == ("\t" in line) and (columns > 2 or row[-1] in seen)
        if line.startswith("# ") and not words and not like_a_row:
            comments += 1
            continue
        if not columns:
            columns, tabs = len(row), "\t" in line
        if columns < 2 or len(row) != columns or not row[0] or not row[-1].strip():
            expected = (
                f"{columns} columns as the first row"
                if columns > 1
                else "a word and its tag, separated by a tab or spaces"
            )
            raise EunoeError(f"{visible(path)}, line {number}: {len(row)} column{'s' * (len(row) != 1)} ({visible(line, 60)!r}), expected "
                             f"{expected}. Correct the line; an empty line ends a sentence.")  # fmt: skip
        begins = begins if words else number
        words.append(row[0])
        tags.append(row[-1].strip())
        seen.add(tags[-1])
    if words:
        yield f"{visible(path)}, line {begins}", {"text": words, "label": tags}
    if comments:
        say(f"{visible(path)}: {comments:,} lines that begin with '# ' are comments, and left out")


def words_and_tags(record: Record, text: str, label: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lists of a row's columns; raises ``EunoeError`` unless both are lists of one length, of words and of tags."""
    words, tags = (_strings(cell(record, column, where), column, where) for column in (text, label))
    if len(words) != len(tags):
        raise EunoeError(
            f"{where}: {len(words)} words in column {text!r} and {len(tags)} tags in {label!r}; each word needs one tag."
        )
    if not words:
        raise EunoeError(f"{where}: the row has no words. Leave it out.")
    return words, tags


def _strings(value: Any, column: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise EunoeError(f"{where}: column {column!r} holds {shown_value(value)}, not a list. A tagging row has a list of words and a list "
                         "of tags (columns text and label); for a column file set layout: conll.")  # fmt: skip
    strange = [v for v in value if isinstance(v, bool) or not isinstance(v, str | int) or not str(v).strip()]
    if strange:
        raise EunoeError(
            f"{where}: column {column!r} holds {shown_value(strange[0])} among its words or tags. Each is text that is not empty."
        )
    return tuple(str(v) for v in value)


__all__ = ["read_conll", "words_and_tags"]
