"""Text -> words with their places, and words -> characters as ELMo's released models read them.

A word is a run of letters and digits with the marks on them (an apostrophe or hyphen inside belongs to it), one Han, Hiragana or Katakana
character, or one other sign. ELMo's training text was split by the rules of the Penn Treebank, which cut "don't" into "do n't"; this rule
needs no list of words. Thai and other scripts that put no space between words and are not named are one word from space to space.
Whoever has split text of another rule gives a tagging task, whose tokens are taken as they are.

A character is a byte of UTF-8. Numbers are those of bilm-tf (https://github.com/allenai/bilm-tf, Apache-2.0): each byte b is
b + 1, 0 is padding, and five more stand for the begin and end of a sentence and of a word, and for the rest of a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHARACTERS = 262
"""Numbers that a character may have, padding among them."""
LONGEST_WORD = 50
"""Characters of a word in the released models, its begin and end among them; the rest of a longer word is not read."""
_BEGIN_SENTENCE, _END_SENTENCE, _BEGIN_WORD, _END_WORD, _REST = 257, 258, 259, 260, 261
_ALONE = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han, Hiragana and Katakana."""
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+(?:['’\-][^\W{_ALONE}]+)*|[^\w\s]")
_JOINERS = "\u200c\u200d"
"""Zero width, between letters of one word."""


@dataclass(frozen=True)
class Words:
    """A text and where its words are: ``places[i]`` is (start, end) of word i in ``text``."""

    text: str
    places: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return (self.text[start:end] for start, end in self.places)


def split_words(text: str) -> Words:
    """The words of a text, in order.

    >>> list(split_words("It's half-open (since 9.30)!"))
    ["It's", 'half-open', '(', 'since', '9', '.', '30', ')', '!']
    """
    if text.isascii():
        return Words(text, tuple(match.span() for match in _WORD.finditer(text)))
    places: list[tuple[int, int]] = []
    goes_on = False  # the last character is a mark or a joiner inside a word
    for match in _WORD.finditer(text):
        start, end = match.span()
        mark = unicodedata.category(text[start]).startswith("M") or text[start] in _JOINERS
        link = goes_on and text[start] in "'’-" and text[end : end + 1].isalnum()
        if places and places[-1][1] == start and (mark or link or (goes_on and text[start].isalnum())):
            start = places.pop()[0]
        places.append((start, end))
        goes_on = (mark or link) and text[start].isalnum()
    return Words(text, tuple(places))


def join_words(words: Sequence[str]) -> Words:
    """Words that somebody else split, as a text with one space between them.

    >>> join_words(["do", "n't"]).places
    ((0, 2), (3, 6))
    """
    places, start = [], 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return Words(" ".join(words), tuple(places))


def characters(word: str, longest: int = LONGEST_WORD) -> list[int]:
    """The ``longest`` character numbers of a word: begin, its bytes as far as they fit, end, and the filler of the rest.

    >>> characters("at", 6)
    [259, 98, 117, 260, 261, 261]
    """
    return _filled([b + 1 for b in word.encode("utf-8", "ignore")[: longest - 2]], longest)


def _filled(inside: list[int], longest: int) -> list[int]:
    numbers = [_BEGIN_WORD, *inside, _END_WORD]
    return numbers + [_REST] * (longest - len(numbers))


def bounds(longest: int = LONGEST_WORD) -> tuple[list[int], list[int]]:
    """The characters of the two words that stand around each sentence: its begin and its end."""
    return _filled([_BEGIN_SENTENCE], longest), _filled([_END_SENTENCE], longest)


def character_rows(sentences: Sequence[Sequence[str]], longest: int = LONGEST_WORD) -> NDArray[np.int64]:
    """Sentences of words -> (sentences, T + 2, longest): each between its bounds, 0 after it."""
    begin, end = bounds(longest)
    length = max(len(sentence) for sentence in sentences) + 2
    rows = np.zeros((len(sentences), length, longest), dtype=np.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence) + 2] = [begin, *(characters(word, longest) for word in sentence), end]
    return rows


__all__ = ["CHARACTERS", "LONGEST_WORD", "Words", "bounds", "character_rows", "characters", "join_words", "split_words"]
