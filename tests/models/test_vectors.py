"""Word vectors from text files and from the embedded table."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from eunoe.errors import EunoeError
from eunoe.models.vectors import load_vectors, vectors_identity

GLOVE = "the 0.1 0.2 0.3\nrain 1 2 3\n. . . 7 8 9\nRain 4 5 6\nrain 9 9 9\n"


def written(folder: Path, text: str | bytes, name: str = "vectors.txt") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_glove_a_word_a_line_and_words_with_spaces(tmp_path: Path) -> None:
    vectors = load_vectors(written(tmp_path, GLOVE), ["rain", "Rain", "THE", ". . .", "snow"])
    assert vectors.width == 3
    expected = [[1, 2, 3], [4, 5, 6], [0.1, 0.2, 0.3], [7, 8, 9], [0, 0, 0]]
    assert np.allclose(vectors.look_up(["rain", "Rain", "THE", ". . .", "snow"]), expected)
    assert vectors.known(["rain", "Rain", "THE", "snow"]) == 0.75


def test_fasttexts_first_line_is_no_word(tmp_path: Path) -> None:
    vectors = load_vectors(written(tmp_path, "2 3\nrain 1 2 3 \nsun 4 5 6 \n", "wiki.vec"), ["rain", "2"])
    assert vectors.width == 3
    assert vectors.look_up(["rain", "2"]).tolist() == [[1, 2, 3], [0, 0, 0]]


def test_a_gzip_file_and_other_line_ends(tmp_path: Path) -> None:
    text = gzip.compress(GLOVE.replace("\n", "\r\n").encode())
    assert load_vectors(written(tmp_path, text, "v.txt.gz"), ["rain"]).look_up(["rain"]).tolist() == [[1, 2, 3]]


def test_only_the_words_that_are_asked_for_are_kept(tmp_path: Path) -> None:
    assert set(load_vectors(written(tmp_path, GLOVE), ["rain"]).rows) == {"rain"}


def test_other_vectors_have_another_identity(tmp_path: Path) -> None:
    one = load_vectors(written(tmp_path, GLOVE), []).identity
    assert load_vectors(written(tmp_path, GLOVE, "copy.txt"), []).identity == one
    assert load_vectors(written(tmp_path, GLOVE.replace("8", "5"), "other.txt"), []).identity != one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rain 1 2 3\nsun 1 2\n", r"vectors\.txt, line 2 has 2 numbers, and line 1 says 3: 'sun 1 2'"),
        ("2 3\nrain 1 2 3\nsun 4 5\n", r"line 3 has 2 numbers, and line 1 says 3"),
        ("sun 1 2\nrain 1 2 3\n", r"line 2 has more than 2 numbers, which line 1 says: 'rain 1 2 3'"),
        ("2 2\nrain 1 2 3\nsun 4 5 6\n", r"line 2 has more than 2 numbers"),
        ("the 1 2 3\nsun 1 1 -1 7\n", r"line 2 has more than 3 numbers"),
        ("3 2\nrain 1 2\nsun 4 5\n", r"line 1 says 3 words, and 2 follow"),
        ("the 1 2 3\nnobody's 1 x 3\n", r"line 2: the word .* is followed by what is not all finite numbers: '1 x 3'"),
        ("the 1 2 3\nrain 1 x 3\n", r"line 2: the word 'rain' is followed by what is not all finite numbers: '1 x 3'"),
        ("the 1 2 3\nrain 1 nan 3\n", r"line 2: the word 'rain' is followed by what is not all finite numbers"),
        ("rain\nsun\n", r"line 1: 'rain' is not a word with its numbers"),
        ("", r"vectors\.txt is empty"),
        (b"rain 1 2\n\xff\xfe 1 2\n", r"line 2 is not UTF-8 .*not a \.bin"),
        ("rain" + " 1" * 600_000, r"line 1 is longer than 1,048,576 bytes"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        load_vectors(written(tmp_path, text), ["rain", "sun"])


@pytest.mark.parametrize("numbers", ["1 2..3 4", "1  4", "1 - 4", "1 e5 4", "1 2e 4", "1 .5 .", "1 +-2 4"])
def test_numbers_of_words_that_nobody_asks_for_are_looked_at_when_the_file_is_checked(
    tmp_path: Path, numbers: str
) -> None:
    path = written(tmp_path, f"the 1 -.5 3e-05\nsun 1. +2 3E5\nzzz {numbers}\n")
    with pytest.raises(EunoeError, match=r"vectors\.txt, line 3"):
        vectors_identity(path)
    written(tmp_path, "the 1 -.5 3e-05\nsun 1. +2 3E5\n")
    assert vectors_identity(path)


def test_a_name_that_is_no_file_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(
        EunoeError, match=r"recipe\.x: 'glove' is not a file\. Give a text file of word vectors .* or wordllama"
    ):
        load_vectors("glove", [], "recipe.x")


def test_the_embedded_table_knows_every_word_by_its_pieces() -> None:
    pytest.importorskip("wordllama")
    vectors = load_vectors("wordllama", ["king", "queen", "cabbage", "unbelievable"])
    assert vectors.width == 256
    assert vectors.known(["king", "unbelievable"]) == 1.0
    king, queen, cabbage = (row / np.linalg.norm(row) for row in vectors.look_up(["king", "queen", "cabbage"]))
    assert king @ queen > king @ cabbage


def test_another_table_than_the_expected_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wordllama"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('its code is not run')")
    (package / "weights/l2_supercat_256.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wordllama", raising=False)  # where another test imported the real one
    with pytest.raises(
        EunoeError, match=r"l2_supercat_256\.safetensors is not the expected file: SHA-256 [0-9a-f]{64}"
    ):
        load_vectors("wordllama", ["king"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(
        EunoeError, match=r"`wordllama` are not installed\. Install them: pip install 'eunoe\[vectors\]'"
    ):
        load_vectors("wordllama", ["king"])
