"""fastai's rules for text as words, without its dependencies: what a reader sees in the look of a text becomes tokens of its own.

After fastai 2.8 (text/core.py) and ULMFiT (arXiv 1801.06146, section 4: special tokens for upper-case words, elongation and
repetition). ``xxup`` stands before a word in capitals, ``xxmaj`` before a capitalised one, both of which are then lower case;
``xxrep 4 !`` for ``!!!!`` and ``xxwrep 3 no`` for ``no no no``; ``xxunk`` for a word outside the vocabulary, ``xxbos`` opens a document.

What we do differently: fastai cuts text into words by spaCy's English rules, which are a package of their own; here one
regular expression does (``split``), with the same treatment of contractions (``do n't``, ``it 's``), of punctuation and of hyphens inside
words. ``spacy: true`` of the tokenizer cuts as fastai does, where spaCy is installed; published weights were trained on that.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable

SPECIAL = ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
"""In the order of their ids, from 0."""
UNK, PAD, BOS, EOS, FLD, REP, WREP, UP, MAJ = SPECIAL

_HTML = (("#39;", "'"), ("amp;", "&"), ("#146;", "'"), ("nbsp;", " "), ("#36;", "$"), ("\\n", "\n"), ("quot;", "'"), ("<br />", "\n"),
         ('\\"', '"'), ("<unk>", UNK), (" @.@ ", "."), (" @-@ ", "-"), ("...", " …"))  # fmt: skip
_SPECIAL_MARKS = re.compile(r"([/#\\])")
_SPACES = re.compile(" {2,}")
_REP = re.compile(r"(\S)(\1{2,})")
_WREP = re.compile(r"(?:\s|^)(\w+)\s+((?:\1\s+)+)\1(\s|\W|$)")
_CAPS = re.compile(r"(\s|^)([A-Z]+[^a-z\s]*)(?=(\s|$))")
_CAPITAL = re.compile(r"(\s|^)([A-Z][^A-Z\s]*)(?=(\s|$))")


def prepared(text: str) -> str:
    """The text after fastai's rules, still in one piece.

    >>> prepared("GREAT film!!!! No no no. See it")
    'xxup great film xxrep 4 !  xxmaj no no no. xxmaj see it'
    """
    for old, new in _HTML:
        text = text.replace(old, new)
    text = html.unescape(text)
    text = _REP.sub(lambda m: f" {REP} {len(m[2]) + 1} {m[1]} ", text)
    text = _WREP.sub(lambda m: f" {WREP} {len(m[2].split()) + 2} {m[1]} {m[3]}", text)
    text = _SPACES.sub(" ", _SPECIAL_MARKS.sub(r" \1 ", text))
    text = _CAPS.sub(lambda m: f"{m[1]}{f'{UP} ' if len(m[2]) > 1 else ''}{m[2].lower()}", text)
    text = _CAPITAL.sub(lambda m: f"{m[1]}{f'{MAJ} ' if len(m[2]) > 1 else ''}{m[2].lower()}", text)
    return text.lower().strip()


_WORD = re.compile(
    r"""
    xx(?:unk|pad|bos|eos|fld|rep|wrep|up|maj)\b         # our own marks
    | https?://\S*[\w/] | [\w.+-]{1,64}@[\w-]+\.[\w.]+   # addresses; no more is looked at from each place
    | \d+(?:[.,:]\d+)*                                   # 3, 1,000.5, 10:30
    | n['’]t\b | ['’](?:s|re|ve|ll|d|m)\b                 # what contractions leave
    | (?:[^\W\d_]\.){2,}                                # u.s.
    | [^\W\d_]+?(?=n['’]t\b) | [^\W\d_]+\d* | _+        # words, up to n't
    | \n+ | [^\s\w]                                      # line ends count, as a document's form does
    """,
    re.VERBOSE,
)


def split(text: str) -> list[str]:
    """Prepared text as words and marks.

    >>> split("it's a well-made u.s. film , isn't it ? 1,000.5")
    ['it', "'s", 'a', 'well', '-', 'made', 'u.s.', 'film', ',', 'is', "n't", 'it', '?', '1,000.5']
    """
    return _WORD.findall(text)


def vocabulary(documents: Iterable[list[str]], largest: int = 60_000, least: int = 2) -> list[str]:
    """The special tokens, then words seen ``least`` times or more, most frequent first, ``largest`` tokens in all.

    >>> vocabulary([["b", "a", "b"], ["b", "a", "c"]])[len(SPECIAL):]
    ['b', 'a']
    """
    counts: Counter[str] = Counter()
    for words in documents:
        counts.update(words)
    ranked = sorted(
        (word for word, n in counts.items() if n >= least and word not in SPECIAL), key=lambda w: (-counts[w], w)
    )
    return [*SPECIAL, *ranked[: max(0, largest - len(SPECIAL))]]


__all__ = ["BOS", "PAD", "SPECIAL", "UNK", "prepared", "split", "vocabulary"]
