"""Text -> words in scripts with marks, without spaces, and with joiners."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.data.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's half-open (9.30)!", ["It's", "half-open", "(", "9", ".", "30", ")", "!"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        (unicodedata.normalize("NFD", "café été."), [unicodedata.normalize("NFD", w) for w in ("café", "été", ".")]),
        (unicodedata.normalize("NFD", "ré-élection d'été-"), [*(unicodedata.normalize("NFD", w) for w in ("ré-élection", "d'été")), "-"]),
        ("धीरे-धीरे", ["धीरे-धीरे"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("我喜欢GPT模型。", ["我", "喜", "欢", "GPT", "模", "型", "。"]),
        ("ひらがなとカタカナ", list("ひらがなとカタカナ")),
        ("한국어 문장", ["한국어", "문장"]),
        ("❤\ufe0fabc", ["❤\ufe0f", "abc"]),
    ],
)  # fmt: skip
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert list(split_words(text)) == words


@given(st.text())
def test_words_are_all_of_a_text_but_its_white_space_in_order(text: str) -> None:
    words = split_words(text)
    assert "".join(words) == "".join(text.split())
    assert all(start < end for start, end in words.places)
    assert all(a[1] <= b[0] for a, b in zip(words.places, words.places[1:], strict=False))
