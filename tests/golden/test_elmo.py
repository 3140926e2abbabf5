"""The biLM against the numbers of bilm-tf's own test fixtures: golden/elmo, to 1e-6 (its README says how they were made)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eunoe.data.words import character_rows
from eunoe.errors import EunoeError
from eunoe.models.bilm import BiLM, State
from eunoe.models.bilm_release import load_release
from tests.conftest import shared

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def released() -> BiLM:
    folder = shared("golden/elmo")
    return load_release(folder / "options.json", folder / "lm_weights.hdf5")


def sentences() -> list[list[list[str]]]:
    lists = json.loads((shared("golden/elmo") / "lm_embeddings_sentences.json").read_text())
    return [[text.split() for text in texts] for texts in lists]


def expected(which: int, i: int) -> torch.Tensor:
    with h5py.File(shared("golden/elmo") / f"lm_embeddings_{which}.hdf5") as file:
        return torch.from_numpy(file[str(i)][...])


def top(layers: torch.Tensor, words: int) -> torch.Tensor:
    """(layers + 1, T, 2 width) of one row -> (2 directions, words, width) of the top layer, without the sentence's bounds."""
    return layers[-1, 1 : words + 1].unflatten(-1, (2, -1)).transpose(0, 1)


@pytest.mark.parametrize("alone", [False, True], ids=["three lists as rows of a batch", "one list alone"])
@torch.inference_mode()
def test_the_top_layer_is_that_of_the_release(released: BiLM, alone: bool) -> None:
    lists = sentences()
    state: State | None = None
    rows = [0] if alone else [0, 1, 2]
    for i in range(10):
        layers, state = released(torch.from_numpy(character_rows([lists[row][i] for row in rows])), state)
        for row in rows if alone else (0, 1):
            words = lists[row][i]
            difference = (top(layers[row], len(words)) - expected(row, i)).abs().max()
            assert difference < 1e-6, (row, i, float(difference))


@torch.inference_mode()
def test_without_the_state_of_the_sentences_before_it_is_not(released: BiLM) -> None:
    words = sentences()[0][5]
    layers, _ = released(torch.from_numpy(character_rows([words])))
    assert (top(layers[0], len(words)) - expected(0, 5)).abs().max() > 1e-3


def test_a_file_that_does_not_fit_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    folder = shared("golden/elmo")
    options: dict[str, Any] = json.loads((folder / "options.json").read_text())
    other = tmp_path / "options.json"
    for change, message in (
        (("lstm", "dim", 32), r"lm_weights\.hdf5 holds RNN_0/.*/W_0 for \(256, 16\), where .* asks for \(128, 16\)"),
        (("lstm", "n_layers", 3), r"lm_weights\.hdf5 lacks RNN_0/RNN/MultiRNNCell/Cell2/LSTMCell/W_0"),
        (("char_cnn", "activation", "gelu"), r"options\.json cannot be read: .*activation gelu"),
        (("lstm", "dim", 10**9), r"options\.json asks for [\d,]+ weights; the most"),
    ):
        part, key, value = change
        other.write_text(json.dumps({**options, part: {**options[part], key: value}}))
        with pytest.raises(EunoeError, match=message):
            load_release(other, folder / "lm_weights.hdf5")
    other.write_text("{}")
    with pytest.raises(EunoeError, match=r"options\.json cannot be read: KeyError: 'char_cnn'"):
        load_release(other, folder / "lm_weights.hdf5")
    broken = tmp_path / "weights.hdf5"
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(EunoeError, match=r"weights\.hdf5 cannot be read: "):
        load_release(folder / "options.json", broken)


def test_a_link_out_of_the_file_is_not_followed(tmp_path: Path) -> None:
    folder = shared("golden/elmo")
    path = tmp_path / "weights.hdf5"
    with h5py.File(path, "w") as file:
        file["char_embed"] = h5py.ExternalLink(str(folder / "lm_weights.hdf5"), "char_embed")
    with pytest.raises(EunoeError, match=r"char_embed is a link to another place"):
        load_release(folder / "options.json", path)
