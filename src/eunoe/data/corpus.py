"""Unlabelled text -> full blocks of tokens, memory-mapped.

The way of CPT's post-training (papers: EMNLP 2022, arXiv 2210.05549): every document is tokenised with the
tokenizer's own special tokens, all are joined and cut into blocks; the remainder is dropped. No padding exists.
Tokenising streams in batches to one flat file, cached under the SHA-256 of the text and of every setting that
matters, so a corpus larger than memory works and is tokenised once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eunoe.data.files import content_hash, is_folder, kind, resolve
from eunoe.data.records import read_rows, text_cell
from eunoe.data.shots import evenly
from eunoe.errors import EunoeError
from eunoe.recipe import CorpusSettings

Part = Literal["train", "valid", "reserved", "all"]
VALID_SHARE = 0.05
_VERSION = 3  # of the cached format


@dataclass(frozen=True)
class Blocks:
    """``ids[i]``: block i, int array (block,), mapped from disk; ``special``: ids that masking leaves alone."""

    ids: NDArray[Any]
    special: NDArray[np.int64]
    digest: str
    """Names the content and settings these blocks came from."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, count: int | None) -> Blocks:
        """At most ``count`` blocks, spread evenly over the corpus; the same ones every time."""
        if count is None or count >= len(self):
            return self
        return Blocks(self.ids[evenly(len(self), count)], self.special, f"{self.digest}.{count}")


def cache_folder() -> Path:
    """Where tokenised text is kept: ``EUNOE_CACHE``, else ``~/.cache/eunoe``."""
    return Path(os.environ.get("EUNOE_CACHE") or Path.home() / ".cache" / "eunoe")


def texts(settings: CorpusSettings, source: str | None = None) -> Iterator[str]:
    """The documents of a source, one string each; raises ``EunoeError`` for a missing column or a wrong value.

    ``source`` is the corpus's own or its ``valid``; of a hub dataset these are the splits train and validation.
    """
    check(settings)
    held_out = source is not None and source == settings.valid
    rows = read_rows(
        source or settings.source,
        documents=settings.documents or "paragraphs",
        encoding=settings.encoding,
        fallback_encoding=settings.fallback_encoding,
        line_limit=settings.line_limit,
        files=settings.files,
        config=settings.config,
        split="validation" if held_out else settings.split or "train",
    )
    for where, record in rows:
        value = text_cell(record, settings.column or "text", where)
        if value.strip():
            yield value


def check(settings: CorpusSettings) -> None:
    """Refuse settings that nothing would read and numbers out of range; raises ``EunoeError`` naming the key."""
    sources = [s for s in (settings.source, settings.valid) if s is not None]
    hub = [s for s in sources if s.startswith("hub:")]
    folders = [s for s in sources if s not in hub and is_folder(s)]
    kinds = {kind(path) for s in sources if s not in hub for path in resolve(s, settings.files)}
    unread = {
        "config": None if hub else "for hub: sources",
        "split": None if settings.source in hub and "#" not in settings.source else "for a hub: source without #SPLIT",
        "column": None if hub or kinds - {".txt"} else "where files have columns, and plain text has none",
        "documents": None if ".txt" in kinds else "for plain text",
        "files": None if folders else "for a folder",
        "encoding": None if kinds - {".parquet"} else "for text files",
        "fallback_encoding": None if kinds - {".parquet"} else "for text files",
        "valid_share": None if settings.valid is None else "without valid",
    }
    for key, only in unread.items():
        if only is not None and getattr(settings, key) is not None:
            raise EunoeError(f"corpus {settings.source!r}: {key} is read only {only}; leave it out.")
    if settings.valid_share is not None and not 0 <= settings.valid_share <= 1:
        raise EunoeError(
            f"corpus {settings.source!r}: valid_share must lie in [0, 1], received {settings.valid_share}."
        )
    if settings.reserve < 0:
        raise EunoeError(
            f"corpus {settings.source!r}: reserve must be 0 or more documents, received {settings.reserve}."
        )
    if settings.tokens is not None and settings.tokens < 1:
        raise EunoeError(f"corpus {settings.source!r}: tokens must be at least 1, received {settings.tokens}.")


def place(text: str) -> float:
    """Where a document falls in [0, 1), by a hash of its words: repeats fall together, whatever their order or white space."""
    words = " ".join(text.split())
    return (int.from_bytes(hashlib.sha256(words.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 11) / 2**53


def part_of(settings: CorpusSettings, part: Part) -> Iterator[str]:
    """The documents of one part. The lowest ``reserve`` places are reserved, the next share is held out, the rest trains."""
    if part == "all" or (settings.valid is not None and part == "valid"):
        yield from texts(settings, settings.valid if part == "valid" else None)
        return
    edge = 0.0
    if settings.reserve:
        places = sorted({place(text) for text in texts(settings)})
        if len(places) <= settings.reserve:
            raise EunoeError(f"corpus {settings.source!r}: reserve = {settings.reserve}, but there are only {len(places)} "
                             "different documents. Reserve fewer.")  # fmt: skip
        edge = places[settings.reserve]
    share = 0.0 if settings.valid is not None else VALID_SHARE if settings.valid_share is None else settings.valid_share
    low, high = {"reserved": (0.0, edge), "valid": (edge, edge + share * (1 - edge)),
                 "train": (edge + share * (1 - edge), 1.0)}[part]  # fmt: skip
    yield from (text for text in texts(settings) if low <= place(text) < high)


def load_blocks(settings: CorpusSettings, tokenizer: Any, block: int, part: Part = "train") -> Blocks:
    """Full blocks of ``block`` tokens from one part of a corpus, from the cache where it has them.

    ``settings.tokens`` caps the train part only. Raises ``EunoeError`` if the part is shorter than one block.
    """
    special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
    digest = _digest(settings, tokenizer, block, part)
    folder = cache_folder() / "blocks" / digest
    if not (folder / "meta.json").exists():
        stream = part_of(settings, part)
        enough = settings.tokens if settings.source.startswith("hub:") and part == "train" else None
        _write(folder, _encode(stream, tokenizer), block, len(tokenizer), enough)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if meta["blocks"] == 0:
        raise EunoeError(f"the {part} part of {settings.source!r} has {meta['tokens']} tokens, fewer than one block of {block}. "
                         "Give more text, a smaller block, or another valid_share.")  # fmt: skip
    ids = np.memmap(folder / "ids.bin", dtype=meta["dtype"], mode="r", shape=(meta["blocks"], block))
    blocks = Blocks(ids, special, digest)
    return blocks.take(max(1, settings.tokens // block)) if settings.tokens and part == "train" else blocks


def _digest(settings: CorpusSettings, tokenizer: Any, block: int, part: Part) -> str:
    """What the cached blocks depend on: the text's bytes, the tokenizer, and each setting that moves a token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    source = settings.valid if part == "valid" and settings.valid is not None else settings.source
    content = source if source.startswith("hub:") else content_hash(source, settings.files)
    own = settings.tokens if source.startswith("hub:") else None
    parts = (_VERSION, content, settings.column, settings.documents, settings.encoding, settings.fallback_encoding, settings.config,
             settings.split, settings.reserve, settings.valid is not None, settings.valid_share, part, block, own, rules)  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _encode(stream: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each document. A tokenizer that marks no end gets its end-of-text token between documents."""
    marks = tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]
    end = [] if marks or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for batch in _batched(stream, 256):
        for ids in tokenizer(batch, truncation=False, verbose=False)["input_ids"]:
            yield ids + end


def _write(folder: Path, documents: Iterator[list[int]], block: int, vocabulary: int, enough: int | None) -> None:
    """Stream tokens to ``ids.bin``; the folder appears whole or not at all."""
    dtype = "uint16" if vocabulary <= 2**16 else "uint32"
    tokens, partial = 0, None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
        with open(partial / "ids.bin", "wb") as file:
            for ids in documents:
                file.write(np.asarray(ids, dtype=dtype).tobytes())
                tokens += len(ids)
                if enough is not None and tokens >= enough:
                    break
            file.truncate(tokens // block * block * np.dtype(dtype).itemsize)
        meta = {"dtype": dtype, "tokens": tokens, "blocks": tokens // block, "block": block}
        (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:  # another process finished the same folder first
            if not (folder / "meta.json").exists():
                raise
    except OSError as error:
        raise EunoeError(f"the token cache {folder.parent} cannot be written: {error}. "
                         "Free space there or set EUNOE_CACHE to another folder.") from None  # fmt: skip
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
