"""The word tokenizer of AWD-LSTM as Hugging Face knows tokenizers; ``words.py`` has its rules.

Its vocabulary is a file ``vocab.json``, a JSON list of tokens in the order of their rows. Published fastai vocabularies hold some
filling tokens twice (``xxfake``), which keep their rows. A document opens with ``xxbos``, and nothing closes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from eunoe import stop
from eunoe.errors import EunoeError
from eunoe.models.awd.fastai import read_vocabulary
from eunoe.models.awd.words import BOS, MAJ, PAD, REP, SPECIAL, UNK, UP, WREP, prepared, split, vocabulary


class AwdLstmTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """Text -> words. ``vocab_file``: a JSON list of tokens; or give ``vocab``, the list itself.

    ``spacy``: cut words as fastai does, by the package spaCy. ``backward``: the model reads text from its end; whoever tokenises for
    it (``eunoe.data.tokens``) turns ids round. Raises ``EunoeError`` for a vocabulary that is no list of tokens, that lacks
    ``xxunk``, ``xxpad`` or ``xxbos``, a pickle, and for ``spacy`` where it is not installed.

    >>> tokenizer = AwdLstmTokenizer.build(["A good film.", "A bad film."], least=1)
    >>> tokenizer.convert_ids_to_tokens(tokenizer("The GOOD film")["input_ids"])
    ['xxbos', 'xxmaj', 'xxunk', 'xxup', 'good', 'film']
    """

    vocab_files_names = {"vocab_file": "vocab.json"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self, vocab_file: str | None = None, vocab: Iterable[str] | None = None, spacy: bool = False,
        backward: bool = False, unk_token: Any = UNK, pad_token: Any = PAD, bos_token: Any = BOS, **kwargs: Any,
    ) -> None:  # fmt: skip
        if (vocab_file is None) == (vocab is None):
            raise EunoeError(
                "an AwdLstmTokenizer needs vocab_file, a JSON list of tokens, or vocab, the list itself; give one of them."
                + _lacking(kwargs)
            )
        self.tokens = read_vocabulary(vocab_file) if vocab_file is not None else list(vocab or ())
        self.rows: dict[str, int] = {}
        for row, token in enumerate(self.tokens):
            self.rows.setdefault(token, row)
        lacking = [str(token) for token in (unk_token, pad_token, bos_token) if str(token) not in self.rows]
        if lacking:
            raise EunoeError(f"the vocabulary of {len(self.tokens):,} tokens lacks {', '.join(lacking)}. Is it that of an AWD-LSTM? "
                             "fastai's is its itos as a JSON list; AwdLstmTokenizer.build(texts) makes one.")  # fmt: skip
        self.spacy, self.backward = spacy, backward
        self._cut = _spacy_cut() if spacy else split
        kwargs.pop("additional_special_tokens", None)
        super().__init__(
            spacy=spacy, backward=backward, unk_token=unk_token, pad_token=pad_token, bos_token=bos_token, **kwargs
        )

    @classmethod
    def build(
        cls, texts: Iterable[str], largest: int = 60_000, least: int = 2, spacy: bool = False, **kwargs: Any
    ) -> AwdLstmTokenizer:
        """A tokenizer whose vocabulary is that of ``texts``: words seen ``least`` times or more, at most ``largest`` tokens."""
        if largest <= len(SPECIAL):
            raise EunoeError(
                f"a vocabulary of {largest} tokens has no place for a word beside {len(SPECIAL)} special tokens. Give more."
            )
        cut = _spacy_cut() if spacy else split

        def documents() -> Iterable[list[str]]:
            for text in texts:
                stop.check("counting the words of a vocabulary")
                yield cut(prepared(text))

        return cls(vocab=vocabulary(documents(), largest, least), spacy=spacy, **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def get_vocab(self) -> dict[str, int]:
        return {**self.rows, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._cut(prepared(text))

    def _convert_token_to_id(self, token: str) -> int:
        row = self.rows.get(token)
        return self.rows[str(self.unk_token)] if row is None else row

    def _convert_id_to_token(self, index: int) -> str:
        return self.tokens[index] if 0 <= index < len(self.tokens) else str(self.unk_token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Words with spaces between; capitals are put back, repetitions written out."""
        out: list[str] = []
        rise, left = "", list(tokens)
        while left:
            token = left.pop(0)
            if token in (UP, MAJ):
                rise = token
            elif token in (REP, WREP) and len(left) > 1 and left[0].isdecimal() and int(left[0]) <= _LONGEST:
                n, what = int(left.pop(0)), left.pop(0)
                out.append(what * n if token == REP else " ".join([what] * n))
            else:
                out.append(token.upper() if rise == UP else token.capitalize() if rise == MAJ else token)
                rise = ""
        return " ".join(out)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``xxbos``, the text, and of a pair ``xxbos`` and the second text."""
        bos = [self.bos_token_id]
        return bos + token_ids_0 + ([] if token_ids_1 is None else bos + token_ids_1)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(i in special) for i in token_ids_0]
        return [1, *[0] * len(token_ids_0), *([] if token_ids_1 is None else [1, *[0] * len(token_ids_1)])]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        file = Path(save_directory) / f"{f'{filename_prefix}-' if filename_prefix else ''}vocab.json"
        file.write_text(json.dumps(self.tokens, ensure_ascii=False), "utf-8")
        return (str(file),)


def _lacking(kwargs: dict[str, Any]) -> str:
    """The folder that a tokenizer is read from."""
    folder = kwargs.get("name_or_path")
    return f" {folder} has no vocab.json." if folder else ""


_LONGEST = 1000
"""Repetitions that are written out when tokens become text; a model can ask for any number."""


def _spacy_cut() -> Any:
    """spaCy's English words, as fastai has them: its marks are words, white space inside a token becomes ``▁``."""
    try:
        import spacy
    except ImportError:
        raise EunoeError("spacy: true needs the package spaCy: pip install spacy; or leave it out, and words are cut by eunoe's own "
                         "rules.") from None  # fmt: skip
    blank = spacy.blank("en")
    for token in SPECIAL:
        blank.tokenizer.add_special_case(token, [{65: token}])  # 65 is spacy.symbols.ORTH

    def cut(text: str) -> list[str]:
        return [word.text.replace(" ", "▁") for word in blank.tokenizer(text)]

    return cut


__all__ = ["AwdLstmTokenizer"]
