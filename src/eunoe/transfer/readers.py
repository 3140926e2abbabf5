"""Readers: text -> features of its words, from a model that is left alone.

A reader is anything with ``layers``, ``width``, ``identity`` and ``read``. Three are here: the layers of any Hugging Face model
(a word is the mean of its pieces, or its first), those of a biLM (ELMo), and word vectors (one layer). ``read_texts`` keeps what
a reader gives on the disk, keyed by all that it depends on: later epochs and later runs never run the model again.

Each text is read by itself: a word's features depend on its own text alone. ELMo's library carries the state of the LSTMs from
batch to batch, which makes them depend on what was read before; a cache could not keep that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eunoe import stop
from eunoe.data.features import Stored, stored_features
from eunoe.data.tokens import identity as tokenizer_identity
from eunoe.data.words import Words, character_rows
from eunoe.errors import EunoeError
from eunoe.methods.base import Method
from eunoe.models.anatomy import anatomy
from eunoe.models.bilm import BiLM
from eunoe.models.load import LanguageModel
from eunoe.models.vectors import WordVectors
from eunoe.progress import Bar

Features = NDArray[np.float32]
_CHUNK = 1024
"""Texts that are sorted by length together, so that hardly any padding is computed."""


class Reader(Protocol):
    """Text -> features (words, layers, width), without gradients."""

    name: str
    layers: int
    width: int

    @property
    def identity(self) -> str:
        """SHA-256 of all that the features depend on beside the text."""

    def read(self, texts: Sequence[Words]) -> list[Features]:
        """The features of the words of each text; of a text that is too long, those of its first words."""


def read_texts(reader: Reader, texts: Sequence[Words], what: str, kind: str, batch: int, stays: bool = True) -> Stored:
    """The features of all texts, from the disk where they are there, else made now and put there.

    ``what`` names them in messages; ``kind``: float16 or float32; ``batch``: texts that pass the model at once;
    ``stays``: see ``stored_features``. Raises ``EunoeError`` where they cannot be kept, ``Interrupted`` where a signal came.
    """
    total = hashlib.sha256(f"{reader.identity}\n{kind}\n".encode())
    for text in texts:
        total.update(json.dumps([text.text, text.places]).encode())

    def make() -> Iterator[Features]:
        with Bar(f"features of {what}", len(texts)) as bar:
            for start in range(0, len(texts), _CHUNK):
                some = texts[start : start + _CHUNK]
                order = sorted(range(len(some)), key=lambda i: (len(some[i]), i))
                done: dict[int, Features] = {}
                for at in range(0, len(order), batch):
                    stop.check(f"computing the features of {what}")
                    chosen = order[at : at + batch]
                    done |= dict(zip(chosen, reader.read([some[i] for i in chosen]), strict=True))
                for i in range(len(some)):
                    bar.advance(len(some[i]))
                    yield done[i]

    return stored_features(total.hexdigest(), kind, reader.layers, reader.width, f"{what} ({reader.name})", make, stays)


def weights_identity(model: nn.Module) -> str:
    """SHA-256 over the names, types and numbers of a model's weights and buffers as they are now."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


# -- any Hugging Face model -----------------------------------------------------------------------------------------
@dataclass
class LayerReader:
    """All layers of a frozen model, the embeddings' output first, or the last alone.

    ``max_length``: tokens of a text that the model reads; words behind them have no features. ``pieces``: a word's features are
    the ``mean`` of its pieces', or those of its ``first``.
    """

    lm: LanguageModel
    method: Method
    domain: str | None
    max_length: int
    pieces: Literal["mean", "first"] = "mean"
    all_layers: bool = True

    def __post_init__(self) -> None:
        refuse_without_places(self.lm)
        self.name = self.lm.name
        self.layers = int(self._config.get_text_config().num_hidden_layers) + 1 if self.all_layers else 1
        self.width = anatomy(self.lm.model).width

    @property
    def base(self) -> nn.Module:
        base: nn.Module = anatomy(self.lm.model).base
        return base

    @property
    def _config(self) -> Any:
        return self.base.config

    @property
    def identity(self) -> str:
        self.method.activate(self.domain)  # where a method keeps weights of the domain's own, those are what is read
        facts = [
            "layers 2", weights_identity(self.lm.model), str(self._config.to_json_string()), tokenizer_identity(self.lm.tokenizer),
            type(self.method).__name__, self.domain, self.max_length, self.pieces, self.all_layers,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @torch.inference_mode()
    def read(self, texts: Sequence[Words]) -> list[Features]:
        self.method.activate(self.domain)
        self.lm.model.eval()
        tokenizer, device = self.lm.tokenizer, next(self.lm.model.parameters()).device
        coded = self._coded(texts)
        length = max(1, *(len(row) for row, _, _ in coded))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        ids = torch.full((len(texts), length), int(pad))
        mask = torch.zeros_like(ids)
        for i, (row, _, _) in enumerate(coded):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row, dtype=torch.long), 1
        mask[:, 0] = 1  # of a text without tokens one position is read, and belongs to no word
        out = self.base(input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        states = torch.stack(out.hidden_states if self.all_layers else out.hidden_states[-1:], 2).float().cpu()
        return [self._words(row, owner, kept) for row, (_, owner, kept) in zip(states, coded, strict=True)]

    def words_read(self, texts: Sequence[Words]) -> list[int]:
        """How many words of each text ``max_length`` lets the model read."""
        read: list[int] = []
        for start in range(0, len(texts), _CHUNK):
            stop.check("counting the words that are read")
            read += [kept for _, _, kept in self._coded(texts[start : start + _CHUNK])]
        return read

    def _coded(self, texts: Sequence[Words]) -> list[tuple[list[int], list[tuple[int, int]], int]]:
        """Of each text its tokens, which word owns which, and how many words are read.

        A word may have no token (a zero-width sign): it is read where words behind it are, or where nothing was cut.
        """
        coded = self.lm.tokenizer(
            [text.text for text in texts], truncation=True, max_length=self.max_length, padding=False, stride=0,
            return_offsets_mapping=True, return_overflowing_tokens=True, return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        parts: dict[int, list[int]] = {}
        for part, text in enumerate(coded["overflow_to_sample_mapping"]):
            parts.setdefault(text, []).append(part)
        rows = []
        for i, text in enumerate(texts):
            first, cut = parts[i][0], len(parts[i]) > 1
            owner = words_of_pieces(text, coded["offset_mapping"][first])
            kept = 1 + max((word for word, _ in owner), default=-1) if cut else len(text)
            rows.append((coded["input_ids"][first], owner, kept))
        return rows

    def _words(self, states: Tensor, owner: list[tuple[int, int]], kept: int) -> Features:
        """States (T, L, width) of pieces -> (kept words, L, width); zero for a word without a piece."""
        if self.pieces == "first":
            first: dict[int, tuple[int, int]] = {}
            for word, piece in owner:
                first.setdefault(word, (word, piece))
            owner = list(first.values())
        total = torch.zeros(kept, *states.shape[1:])
        if owner:
            index, pieces = (torch.tensor(part) for part in zip(*owner, strict=True))
            total.index_add_(0, index, states[pieces])
            count = torch.bincount(index, minlength=kept).clamp(min=1)
            total /= count[:, None, None]
        return np.asarray(total.numpy(), np.float32)


def words_of_pieces(text: Words, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(word, piece) for each piece that holds a character of a word; ``places``: the pieces' (start, end), (0, 0) for marks.

    >>> words_of_pieces(Words("no way", ((0, 2), (3, 6))), [(0, 0), (0, 2), (2, 5), (5, 6)])
    [(0, 1), (1, 2), (1, 3)]
    """
    owner, word = [], 0
    for piece, (start, end) in enumerate(places):
        while word < len(text) and text.places[word][1] <= start:
            word += 1
        at = word
        while start < end and at < len(text) and text.places[at][0] < end:
            owner.append((at, piece))
            at += 1
    return owner


def refuse_without_places(lm: LanguageModel) -> None:
    """Raise ``EunoeError`` for a tokenizer that does not say where in the text its tokens are."""
    if not getattr(lm.tokenizer, "is_fast", False):
        kind = type(lm.tokenizer).__name__
        raise EunoeError(f"the tokenizer of {lm.name!r} ({kind}) does not say where in the text its tokens are, which features of words "
                         "need. Save it as a fast tokenizer (tokenizer.json), or choose another transfer.")  # fmt: skip


# -- a biLM -----------------------------------------------------------------------------------------------------
@dataclass
class BiLMReader:
    """The layers of a biLM, each text between its bounds and from the state of zeros."""

    model: BiLM
    max_length: int
    all_layers: bool = True

    def __post_init__(self) -> None:
        config = self.model.config
        self.name, self.width = "biLM", 2 * config.width
        self.layers = config.lstm_layers + 1 if self.all_layers else 1

    @property
    def identity(self) -> str:
        config = self.model.config
        facts = ["bilm", weights_identity(self.model), config.cell_clip, config.projection_clip, config.skip, config.activation,
                 config.longest_word, self.max_length, self.all_layers]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @torch.inference_mode()
    def read(self, texts: Sequence[Words]) -> list[Features]:
        self.model.eval()
        words = [list(text)[: self.max_length] for text in texts]
        rows = torch.from_numpy(character_rows(words, self.model.config.longest_word))
        layers, _ = self.model(rows.to(self.model.device))
        layers = (layers if self.all_layers else layers[:, -1:]).float().cpu().transpose(1, 2)
        return [row[1 : len(chosen) + 1].numpy() for row, chosen in zip(layers, words, strict=True)]


# -- word vectors -------------------------------------------------------------------------------------------------
@dataclass
class VectorReader:
    """Word vectors, as one layer."""

    vectors: WordVectors
    max_length: int

    def __post_init__(self) -> None:
        self.name, self.layers, self.width = f"word vectors {self.vectors.name}", 1, self.vectors.width

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(["vectors", self.vectors.identity, self.max_length]).encode()).hexdigest()

    def read(self, texts: Sequence[Words]) -> list[Features]:
        return [self.vectors.look_up(list(text)[: self.max_length])[:, None] for text in texts]


__all__ = ["BiLMReader", "Features", "LayerReader", "Reader", "VectorReader", "read_texts", "words_of_pieces"]
