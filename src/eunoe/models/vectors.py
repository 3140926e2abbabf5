"""Pretrained word vectors: text files as GloVe and fastText give them, and one table that a Python package brings.

A text file has a line a word: the word, then its numbers, separated by spaces (GloVe's first words may hold spaces themselves:
numbers are counted from the right). fastText's first line, how many words of what width, is recognised. Only the words that are
asked for are kept. A word that is not there is looked for in small letters; where that fails its vector is zero.

``wordllama`` is the table of the package wordllama 0.4.0.post1 (MIT): 32,000 word pieces of Llama 2's tokenizer, 256 wide, trained
as sentence embeddings. A word is the mean of its pieces, so none is unknown. None of the package's code is run.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from eunoe import stop
from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.models.files import digest, stamp
from eunoe.recipe import expand

WORDLLAMA = "wordllama"
INSTALL = "pip install 'eunoe[vectors]'"
_TABLE = ("weights/l2_supercat_256.safetensors", "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5")
_PIECES = (
    "tokenizers/l2_supercat_tokenizer_config.json",
    "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
)
HEADER = re.compile(r"\d+ \d+")
"""fastText's first line: how many words of what width."""
_SIGNS = b"0123456789+-.eE "
"""What numbers are made of."""
_NUMBERS = re.compile(rb"(?:[-+]?+(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?+\d++)?+(?: |$))++")
"""Numbers, with one space between."""
LINE = 2**20
"""Bytes that a line of a text file may have."""


@dataclass
class WordVectors:
    """Vectors by word: ``width`` numbers each; ``identity`` says which vectors these are."""

    name: str
    width: int
    identity: str
    rows: dict[str, NDArray[np.float32]] = field(repr=False)

    def look_up(self, words: Sequence[str]) -> NDArray[np.float32]:
        """(words, width); a word is taken as it stands, else in small letters, else zero."""
        out = np.zeros((len(words), self.width), np.float32)
        for i, word in enumerate(words):
            row = self.rows.get(word)
            row = self.rows.get(word.lower()) if row is None else row
            if row is not None:
                out[i] = row
        return out

    def known(self, words: Iterable[str]) -> float:
        """The share of different words that have a vector."""
        different = set(words)
        return sum(w in self.rows or w.lower() in self.rows for w in different) / max(1, len(different))


def load_vectors(name: str, words: Iterable[str], where: str = "word_vectors") -> WordVectors:
    """The vectors of ``words`` from ``wordllama`` or a text file (plain or .gz); raises ``EunoeError`` naming file and line.

    >>> load_vectors("glove.6B.300d.txt", ["rain", "Sun"])  # doctest: +SKIP
    WordVectors(name='glove.6B.300d.txt', width=300, identity='5ce1...')
    """
    if name == WORDLLAMA:
        return _wordllama(set(words))
    path = Path(expand(name))
    if not path.is_file():
        raise EunoeError(f"{where}: {visible(name)!r} is not a file. Give a text file of word vectors (GloVe, fastText .vec), or "
                         f"{WORDLLAMA}.")  # fmt: skip
    wanted = set(words)
    rows, width = _text_file(path, wanted | {word.lower() for word in wanted})
    return WordVectors(name, width, digest(path, stamp(path)), rows)


def vectors_identity(name: str, where: str = "word_vectors") -> str:
    """The SHA-256 of the file of word vectors; raises as ``load_vectors``. A file is checked once a process."""
    if name == WORDLLAMA:
        return _wordllama(set()).identity
    path = Path(expand(name))
    return _checked(name, where, stamp(path))


@lru_cache(maxsize=16)
def _checked(name: str, where: str, _stamp: tuple[int, int] | None) -> str:
    return load_vectors(name, (), where).identity


# -- text files -------------------------------------------------------------------------------------------------
def _text_file(path: Path, wanted: set[str]) -> tuple[dict[str, NDArray[np.float32]], int]:
    width, rows, checked = 0, dict[str, NDArray[np.float32]](), not wanted
    promised, words = None, 0
    for number, line in _lines(path):
        fields = line.count(" ")
        if number == 1:
            if HEADER.fullmatch(line):
                promised, width = map(int, line.split(" "))
                continue
            width = fields
        words += 1
        if width < 1 or width > LINE:
            raise EunoeError(f"{visible(path)}, line {number}: {visible(line, 60)!r} is not a word with its numbers. Is it a text file of "
                             "word vectors, as GloVe and fastText (.vec) give them?")  # fmt: skip
        if fields < width:
            raise EunoeError(f"{visible(path)}, line {number} has {fields} numbers, and line 1 says {width}: {visible(line, 60)!r}. Is the "
                             "file whole?")  # fmt: skip
        # most lines are of words that nobody asks for: their numbers are looked at when the file is checked, once a process, then counted
        word = line[: line.index(" ")] if fields == width else " ".join(line.split(" ")[: fields + 1 - width])
        if fields > width and _is_number(word.rpartition(" ")[2]):
            raise EunoeError(f"{visible(path)}, line {number} has more than {width} numbers, which line 1 says: {visible(line, 60)!r}. "
                             "Correct the line, or line 1.")  # fmt: skip
        numbers = line[len(word) + 1 :]
        if not (_NUMBERS.fullmatch(numbers.encode()) if checked else not numbers.encode().translate(None, _SIGNS)):
            raise _no_numbers(path, number, word, numbers)
        if word not in wanted or word in rows:
            continue
        try:
            values = np.array(numbers.split(" "), dtype=np.float32)
        except ValueError:
            values = np.array([np.nan], np.float32)
        if not np.isfinite(values).all():
            raise _no_numbers(path, number, word, numbers)
        rows[word] = values
    if not width:
        raise EunoeError(f"{visible(path)} is empty. Give a text file of word vectors.")
    if promised is not None and promised != words:
        whole = "Is the file whole? Fetch it again, or correct" if words < promised else "Correct"
        raise EunoeError(
            f"{visible(path)}, line 1 says {promised:,} words, and {words:,} follow. {whole} or remove line 1."
        )
    return rows, width


def _is_number(text: str) -> bool:
    return any(sign.isdigit() for sign in text) and not text.encode().translate(None, _SIGNS)


def _no_numbers(path: Path, number: int, word: str, numbers: str) -> EunoeError:
    return EunoeError(f"{visible(path)}, line {number}: the word {visible(word, 40)!r} is followed by what is not all finite numbers: "
                      f"{visible(numbers, 60)!r}. Correct the line or leave it out.")  # fmt: skip


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; those of nothing but white space are left out."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with reading(path, "Is it a text file of word vectors?"), opened(path, "rb") as file:
        number = 0
        while line := file.readline(LINE + 1):
            number += 1
            if not number % 10_000:
                stop.check(f"reading {path.name}")
            if len(line) > LINE:
                raise EunoeError(
                    f"{visible(path)}, line {number} is longer than {LINE:,} bytes, as no line of word vectors is."
                )
            try:
                text = line.decode("utf-8").rstrip("\r\n ")
            except UnicodeDecodeError as error:
                raise EunoeError(
                    f"{visible(path)}, line {number} is not UTF-8 ({error.reason}). Is it a text file, not a .bin?"
                ) from None
            if text.strip():
                yield number, text.replace("\t", " ")


# -- the embedded table -------------------------------------------------------------------------------------------
def _wordllama(words: set[str]) -> WordVectors:
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise EunoeError(
            f"the word vectors `{WORDLLAMA}` are not installed. Install them: {INSTALL}; or give a text file of word vectors."
        )
    folder, paths = Path(spec.origin).parent, list[Path]()
    for name, expected in (_TABLE, _PIECES):
        path = folder / name
        actual = digest(path, stamp(path)) if path.is_file() else "none, as it is missing"
        if actual != expected:
            raise EunoeError(f"{path} is not the expected file: SHA-256 {actual}, expected {expected}. Install it again, with "
                             f"--force-reinstall: {INSTALL}")  # fmt: skip
        paths.append(path)
    with reading(paths[0], INSTALL):
        table = load_file(paths[0])["embedding.weight"].astype(np.float32)
        pieces = Tokenizer.from_str(json.dumps(json.loads(paths[1].read_text(encoding="utf-8"))))
    ordered = sorted(words)
    coded = pieces.encode_batch(ordered, add_special_tokens=False)
    rows = {word: table[code.ids].mean(0) for word, code in zip(ordered, coded, strict=True) if code.ids}
    return WordVectors(WORDLLAMA, table.shape[1], _TABLE[1], rows)


__all__ = ["WORDLLAMA", "WordVectors", "load_vectors", "vectors_identity"]
