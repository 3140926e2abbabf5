"""The biLM by itself: clips, padding, the connection that skips, and its way through a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eunoe.data.words import character_rows, characters
from eunoe.errors import EunoeError
from eunoe.models.bilm import BiLM, BiLMConfig, ClippedLSTM, Highway


def tiny(**change: object) -> BiLM:
    torch.manual_seed(0)
    small = {"filters": [(1, 4), (3, 8)], "character_width": 4, "width": 6, "cells": 10, "longest_word": 12}
    return BiLM(BiLMConfig(**{**small, **change})).eval()


def test_a_highway_by_hand() -> None:
    highway = Highway(1)
    with torch.no_grad():
        for layer, weight, bias in ((highway.transform, 2.0, 1.0), (highway.carry, 0.0, 0.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    assert highway(torch.tensor([3.0])).item() == pytest.approx(0.5 * 7 + 0.5 * 3)
    assert Highway(2).carry.bias.tolist() == [-2.0, -2.0]


@torch.inference_mode()
def test_cell_and_projection_are_clipped() -> None:
    """With all gates open a cell grows by 1 a step: it stops at the clip, and so does the projection of tanh(cell)."""
    lstm = ClippedLSTM(1, 1, 2, cell_clip=2.5, projection_clip=0.7)
    lstm.weight_input.zero_()
    lstm.weight_hidden.zero_()
    lstm.bias.fill_(50.0)
    lstm.projection.copy_(torch.tensor([[0.5], [1.0]]))  # type: ignore[union-attr]
    out, h, c = lstm(torch.zeros(1, 4, 1), None, torch.zeros(1, 2), torch.zeros(1, 1), False)
    tanh = torch.tanh(torch.tensor([1.0, 2.0, 2.5, 2.5]))
    assert torch.allclose(out[0, :, 0], 0.5 * tanh)
    assert torch.allclose(out[0, :, 1], tanh.clamp(max=0.7))
    assert c.item() == 2.5
    assert torch.equal(h, out[:, -1])


@torch.inference_mode()
def test_without_clips_and_projection_it_is_torchs_lstm() -> None:
    torch.manual_seed(1)
    ours, theirs = ClippedLSTM(3, 4, 4, None, None), torch.nn.LSTM(3, 4, batch_first=True)
    theirs.weight_ih_l0.copy_(ours.weight_input)
    theirs.weight_hh_l0.copy_(ours.weight_hidden)
    theirs.bias_ih_l0.copy_(ours.bias)
    theirs.bias_hh_l0.zero_()
    x = torch.randn(2, 5, 3)
    zeros = torch.zeros(2, 4)
    expected = theirs(x)[0]
    assert torch.allclose(ours(x, None, zeros, zeros, False)[0], expected, atol=1e-6)
    back = ours(x.flip(1), None, zeros, zeros, True)[0]
    assert torch.allclose(back.flip(1), expected, atol=1e-6)


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_its_padding() -> None:
    model = tiny()
    short, long = ["Rain", "fell"], ["The", "sun", "shone", "all", "day"]
    together, state = model(torch.from_numpy(character_rows([short, long], 12)))
    for row, words in enumerate((short, long)):
        alone, left = model(torch.from_numpy(character_rows([words], 12)))
        assert torch.allclose(together[row, :, : len(words) + 2], alone[0], atol=1e-6)
        assert torch.allclose(state.hidden[:, :, row], left.hidden[:, :, 0], atol=1e-6)
        assert not together[row, :, len(words) + 2 :].any()


@torch.inference_mode()
def test_layer_0_is_the_word_twice_and_the_connection_skips_all_but_the_first() -> None:
    rows = torch.from_numpy(character_rows([["Rain", "fell"]], 12))
    layers, _ = tiny()(rows)
    plain, _ = tiny(skip=False)(rows)
    assert torch.equal(layers[:, 0, :, :6], layers[:, 0, :, 6:])
    assert torch.equal(layers[:, 1], plain[:, 1])
    assert torch.allclose(layers[:, 2], plain[:, 2] + plain[:, 1])


@torch.inference_mode()
def test_it_is_saved_and_loaded_as_transformers_models_are(tmp_path: Path) -> None:
    model = tiny(words=7)
    model.save_pretrained(tmp_path)
    again = BiLM.from_pretrained(tmp_path).eval()
    assert (tmp_path / "model.safetensors").is_file()
    rows = torch.from_numpy(character_rows([["Rain"]], 12))
    saved = again.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    # a product's last bit depends on where in memory its numbers lie
    assert torch.allclose(again(rows)[0], model(rows)[0], atol=1e-6)


def test_other_shapes_are_refused_with_what_makes_the_right_one() -> None:
    with pytest.raises(EunoeError, match=r"shape \(rows, words, 12\), received \(1, 3, 50\)\. Make them with"):
        tiny()(torch.zeros(1, 3, 50, dtype=torch.long))


def test_characters_are_bytes_and_long_words_lose_their_end() -> None:
    assert characters("é", 6) == [259, 0xC3 + 1, 0xA9 + 1, 260, 261, 261]
    assert characters("abcdef", 5) == [259, 98, 99, 100, 260]
    rows = character_rows([["a"], []], 5)
    assert rows[0].tolist() == [[259, 257, 260, 261, 261], [259, 98, 260, 261, 261], [259, 258, 260, 261, 261]]
    assert rows[1].tolist()[1:] == [[259, 258, 260, 261, 261], [0] * 5]
