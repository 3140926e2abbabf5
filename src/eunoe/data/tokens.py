"""Text -> token ids, whatever the tokenizer was used for before.

A fast tokenizer of Hugging Face keeps the truncation and padding of its last call, and some tokenizer.json come with
both. So every call here says what it wants, and ``identity`` leaves out what a call can change: it names the rules a
tokenizer was loaded with, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from eunoe import stop

PIECE = 2**20
"""Characters that are tokenised at once. A longer document passes in pieces, cut before white space, so that memory stays
bounded; a tokenizer that marks the start of a text (SentencePiece) puts that mark before each piece."""
_BATCH = 256
_NO_TOKENS = {
    "name_or_path", "is_local", "local_files_only", "model_max_length", "max_length", "stride", "truncation_side",
    "truncation_strategy", "padding_side", "pad_token", "pad_token_type_id", "pad_to_multiple_of", "chat_template", "backend",
    "clean_up_tokenization_spaces", "model_input_names", "processor_class", "auto_map", "_commit_hash", "tokenizer_file",
    "special_tokens_map_file", "tokenizer_config_file", "added_tokens_file", "trust_remote_code", "verbose",
}  # fmt: skip
"""Settings of a slow tokenizer that move no token of a document: where its files lie, how calls cut and pad, how it decodes."""


def identity(tokenizer: Any) -> str:
    """SHA-256 of all that decides which ids a document becomes and which of them masking leaves alone.

    That is the class, the rules and vocabulary, the special tokens and the end token; for tokenizers without a
    ``tokenizer.json`` also their vocabulary files and every setting. Where the files lie and what the tokenizer was
    used for before change nothing.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "special": sorted(set(tokenizer.all_special_ids)),
        "end": tokenizer.eos_token_id,
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    if backward(tokenizer):  # only then, so that what is kept of other texts keeps its name
        facts["backward"] = True
    if backend is not None:
        facts["rules"] = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
    else:
        places = set(getattr(tokenizer, "vocab_files_names", {})) | _NO_TOKENS
        plain = {
            k: v for k, v in vars(tokenizer).items() if k[0] != "_" and isinstance(v, str | bool | int | float | None)
        }
        facts["settings"] = {k: v for k, v in (tokenizer.init_kwargs | plain).items() if k not in places}
        facts["marks"] = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if k not in places}
        facts["vocabulary"], facts["files"] = tokenizer.get_vocab(), _vocabulary_files(tokenizer)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()


class Named:
    """A tokenizer and what names its tokens, worked out once: for whoever reads several texts with it in a row.

    Not kept for the process: a tokenizer can be changed in place.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def identity(self) -> str:
        """``identity`` of the tokenizer."""
        return identity(self.tokenizer)

    @cached_property
    def largest(self) -> int:
        """``largest_id`` of the tokenizer."""
        return largest_id(self.tokenizer)


def _plain(value: Any) -> str:
    """An ``AddedToken`` and its like as text; of other objects the type alone, as their text may hold an address."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _vocabulary_files(tokenizer: Any) -> list[str]:
    """SHA-256 of each vocabulary file (merges, SentencePiece models) that a slow tokenizer would save."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_vocabulary(folder)
        except (NotImplementedError, ValueError, TypeError, OSError):  # it has none, and its vocabulary says it all
            return []
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob("*")) if p.is_file()]


def largest_id(tokenizer: Any) -> int:
    """The highest token id there is; it can lie above ``len(tokenizer)`` where ids are left out."""
    return max(len(tokenizer) - 1, max(tokenizer.get_vocab().values(), default=0))


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that stand before and after each document.

    They are those of the tokenizer. One that puts nothing *after* a text, though it may put something before it, has its
    end-of-text token there, where it has one: without it a model would read documents that never end.
    """
    plain, full = (
        list(tokenizer("a", add_special_tokens=special, truncation=False, padding=False)["input_ids"])
        for special in (False, True)
    )
    at = next((i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain), 0)
    before, after = full[:at], full[at + len(plain) :]
    if not after and tokenizer.eos_token_id is not None:
        after = [int(tokenizer.eos_token_id)]
    return before, after


def backward(tokenizer: Any) -> bool:
    """Is it the tokenizer of a model that reads text from its end?"""
    return bool(getattr(tokenizer, "backward", False))


def encode(documents: Iterable[str], tokenizer: Any, doing: str) -> Iterator[list[int]]:
    """The token ids of the documents, each with its marks, in pieces that follow one another.

    ``doing``: what is said where a signal stops it, as in ``tokenising news.txt``. A tokenizer whose ``backward`` is true is that of a
    model that reads text from its end: each piece comes turned round, with its marks (``xxbos`` last, as in fastai).
    """
    (before, after), turned = around(tokenizer), backward(tokenizer)
    for batch in _batches(_pieces(documents)):
        stop.check(doing)
        coded = tokenizer(
            [text for text, _, _ in batch], add_special_tokens=False, truncation=False, padding=False, verbose=False
        )["input_ids"]
        for ids, (_, first, last) in zip(coded, batch, strict=True):
            whole = [*(before if first else ()), *ids, *(after if last else ())]
            yield whole[::-1] if turned else whole


def _pieces(documents: Iterable[str]) -> Iterator[tuple[str, bool, bool]]:
    """Each document as (text, is it the first piece, is it the last)."""
    for document in documents:
        start = 0
        while len(document) - start > PIECE:
            end = _seam(document, start, start + PIECE)
            yield document[start:end], start == 0, False
            start = end
        yield document[start:], start == 0, True


def _seam(text: str, start: int, end: int) -> int:
    """The last place up to ``end`` where a word ended and white space begins; ``end`` itself where none is near."""
    for i in range(end, max(start + 1, end - PIECE // 64), -1):
        if text[i].isspace() and not text[i - 1].isspace():
            return i
    return end


def _batches(pieces: Iterable[tuple[str, bool, bool]]) -> Iterator[list[tuple[str, bool, bool]]]:
    """Pieces in batches of at most ``_BATCH`` that hold less than twice ``PIECE`` characters."""
    batch: list[tuple[str, bool, bool]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if len(batch) == _BATCH or size >= PIECE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
