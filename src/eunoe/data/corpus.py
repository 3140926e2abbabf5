"""Unlabelled text -> full blocks of tokens, memory-mapped.

The way of CPT's post-training (papers: EMNLP 2022, arXiv 2210.05549): every document is tokenised with the
tokenizer's own special tokens, all are joined and cut into blocks; the remainder is dropped. No padding exists.
Tokenising streams in batches to one flat file, cached (``cache.py``) under the SHA-256 of the text, of the tokenizer's
rules (``tokens.py``) and of every setting that matters, so a corpus larger than memory works and is tokenised once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eunoe.data.cache import FORMAT, cached_blocks
from eunoe.data.files import content_hash, is_folder, kind, resolve
from eunoe.data.hub import commit
from eunoe.data.records import read_rows, text_cell
from eunoe.data.shots import evenly
from eunoe.data.tokens import Named, encode
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.progress import say_once
from eunoe.recipe import CorpusSettings

Part = Literal["train", "valid", "reserved", "all"]
VALID_SHARE = 0.05


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


def texts(settings: CorpusSettings, source: str | None = None) -> Iterator[str]:
    """The documents of a source, one string each; raises ``EunoeError`` for a missing column or a wrong value.

    ``source`` is the corpus's own or its ``valid``; of a hub dataset these are the splits train and validation.
    """
    check(settings)
    held_out = source is not None and source == settings.valid
    source = source or settings.source
    rows = read_rows(
        source,
        documents=settings.documents or "paragraphs",
        encoding=settings.encoding,
        fallback_encoding=settings.fallback_encoding,
        line_limit=settings.line_limit,
        files=settings.files,
        config=settings.config,
        split="validation" if held_out else settings.split or "train",
        revision=_revision(settings, source),
    )
    for where, record in rows:
        value = text_cell(record, settings.column or "text", where)
        if value.strip():
            yield value


def _revision(settings: CorpusSettings, source: str) -> str | None:
    """The commit a hub source is read at, as far as it can be known; ``revision`` is that of ``source``'s dataset."""
    name = source.removeprefix("hub:").partition("#")[0]
    same = name == settings.source.removeprefix("hub:").partition("#")[0]
    return commit(name, settings.revision if same else None) if source.startswith("hub:") else None


def check(settings: CorpusSettings) -> None:
    """Refuse settings that nothing would read and numbers out of range; raises ``EunoeError`` naming the key."""
    sources = [s for s in (settings.source, settings.valid) if s is not None]
    hub = [s for s in sources if s.startswith("hub:")]
    folders = [s for s in sources if s not in hub and is_folder(s)]
    kinds = {kind(path) for s in sources if s not in hub for path in resolve(s, settings.files)}
    # a key that nothing reads would look as if it had an effect
    unread = {
        "config": None if hub else "for hub: sources",
        "revision": None if settings.source in hub else "for a hub: source",
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
    if settings.valid is not None and not hub:
        own, held_out = ({path.resolve(): path for path in resolve(s, settings.files)} for s in sources)
        if both := [held_out[path] for path in held_out if path in own]:
            more = f" and {len(both) - 1} more" * (len(both) > 1)
            raise EunoeError(f"corpus {settings.source!r}: {visible(both[0])}{more} of `valid` would be trained on too, for `source` "
                             "holds it. Keep them in separate folders, or leave `valid` out: a share is then held out.")  # fmt: skip
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


def part_of(settings: CorpusSettings, part: Part | Literal["both"]) -> Iterator[str]:
    """The documents of one part. The lowest ``reserve`` places are reserved, the next share is held out, the rest trains.

    ``both``: what is held out and what trains, in the order of the text.
    """
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
    # a share of what is not reserved: setting documents aside leaves the share as it is
    cut = edge + valid_share(settings) * (1 - edge)
    low, high = {"reserved": (0.0, edge), "valid": (edge, cut), "train": (cut, 1.0), "both": (edge, 1.0)}[part]
    yield from (text for text in texts(settings) if low <= place(text) < high)


def load_blocks(settings: CorpusSettings, tokenizer: Any, block: int, part: Part = "train") -> Blocks:
    """Full blocks of ``block`` tokens from one part of a corpus, from the cache where it has them.

    Where choosing whole documents would leave ``train`` or ``valid`` without one block (a novel is one document), the
    text of both is laid end to end and its last blocks are held out; that is said. Hub datasets, which may have no end,
    are never divided so. ``settings.tokens`` caps the train part only. Raises ``EunoeError`` if the part is shorter than
    one block. ``tokenizer`` may be ``tokens.Named``, where several texts are read with it.
    """
    check(settings)
    reader = _Reader(settings, tokenizer if isinstance(tokenizer, Named) else Named(tokenizer), block)
    blocks, tokens = reader.read(part)
    share = valid_share(settings)
    if part in ("train", "valid") and 0 < share < 1 and not settings.source.startswith("hub:"):
        # of few documents the hash may put all on one side
        other, _ = reader.read("valid" if part == "train" else "train")
        if not (len(blocks) and len(other)):
            both, tokens = reader.read("both")
            if len(both) > 1:
                blocks = _by_position(both, share, part)
                say_once(f"{settings.source}: too few documents to hold any out by a hash of their text; the last "
                         f"{len(both) - _kept(both, share):,} of {len(both):,} blocks are held out instead. To choose "
                         f"otherwise: {_ways(settings)}.")  # fmt: skip
    if not len(blocks):
        held_out = part in ("train", "valid") and settings.valid is None
        raise EunoeError(f"the {part} part of {settings.source!r} has {tokens:,} tokens, fewer than one block of {block}. "
                         "Give more text or a smaller block"
                         f"{f', or choose what is held out: {_ways(settings)}' if held_out else ''}.")  # fmt: skip
    return blocks.take(max(1, settings.tokens // block)) if settings.tokens and part == "train" else blocks


def valid_share(settings: CorpusSettings) -> float:
    """The share of the documents held out: none where the held-out text has a source of its own."""
    if settings.valid is not None:
        return 0.0
    return VALID_SHARE if settings.valid_share is None else settings.valid_share


def _kept(both: Blocks, share: float) -> int:
    """How many blocks train where the last share of them is held out; both sides get one at least."""
    return len(both) - min(max(1, round(len(both) * share)), len(both) - 1)


def _by_position(both: Blocks, share: float, part: Part) -> Blocks:
    kept = _kept(both, share)
    ids = both.ids[:kept] if part == "train" else both.ids[kept:]
    return Blocks(ids, both.special, f"{both.digest}.{part}.{kept}")


def _ways(settings: CorpusSettings) -> str:
    """What divides a corpus otherwise, in its settings' words."""
    lines = not settings.source.startswith("hub:") and any(
        kind(p) == ".txt" for p in resolve(settings.source, settings.files)
    )
    return f"{'documents: lines (each line is one), ' * lines}valid (a source of its own) or valid_share"


@dataclass(frozen=True)
class _Reader:
    """The parts of a corpus as blocks, through the cache."""

    settings: CorpusSettings
    named: Named
    block: int

    def read(self, part: Part | Literal["both"]) -> tuple[Blocks, int]:
        """All blocks of a part, maybe none, and how many tokens they were cut from."""
        settings = self.settings
        source = settings.valid if part == "valid" and settings.valid is not None else settings.source
        digest = self._digest(part, source)
        ids, tokens = cached_blocks(
            self._cache_key(digest), self.block, self.named.largest, source,
            lambda: encode(part_of(settings, part), self.named.tokenizer, f"tokenising {source}"),
            settings.tokens if source.startswith("hub:") and part == "train" else None,
        )  # fmt: skip
        special = np.array(sorted(set(self.named.tokenizer.all_special_ids)), dtype=np.int64)
        return Blocks(ids, special, digest), tokens

    @cached_property
    def _contents(self) -> dict[str, str]:
        """What each source holds: a hash of its files, or the commit of a hub dataset; a large text is hashed once."""
        settings = self.settings
        return {
            source: f"{source}@{_revision(settings, source)}" if source.startswith("hub:") else content_hash(source, settings.files)
            for source in (settings.source, settings.valid) if source is not None
        }  # fmt: skip

    def _digest(self, part: Part | Literal["both"], source: str) -> str:
        """What the blocks depend on: what the text holds, the tokenizer, and each setting that moves a token."""
        settings = asdict(self.settings) | {"valid": self.settings.valid is not None}
        for key in ("source", "files", "revision", "line_limit", *(() if source.startswith("hub:") else ("tokens",))):
            del settings[key]  # named by what it leads to, moves no token, or is applied after the cache
        facts = [FORMAT, self.named.identity, self._contents[source], self.block, part, settings]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def _cache_key(self, digest: str) -> str:
        """Where the blocks are kept: a limit on lines moves no token, but what was read under a larger one may not pass it."""
        limit = self.settings.line_limit
        return digest if limit is None else hashlib.sha256(f"{digest} {limit}".encode()).hexdigest()[:32]


def joined(parts: list[Blocks]) -> Blocks:
    """Several corpora as one, side by side."""
    if len(parts) == 1:
        return parts[0]
    return Blocks(np.concatenate([p.ids for p in parts]), parts[0].special, "+".join(p.digest for p in parts))
