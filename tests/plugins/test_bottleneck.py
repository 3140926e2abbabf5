"""Bottleneck adapters against layers written out by hand; switched off they are not there."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from eunoe.errors import EunoeError
from eunoe.plugins.bottleneck import AdapterSettings, Bottleneck, attach
from tests.models.families import tiny
from tests.tiny import tiny_bert, tiny_gpt2

IDS = torch.arange(5, 37).reshape(2, 16)


def moved(model: Any, **options: Any) -> list[Bottleneck]:
    made = attach(model, AdapterSettings(**options))
    torch.manual_seed(3)
    with torch.no_grad():
        for one in made:
            for p in one.parameters():
                p.normal_(std=0.5)
    return made


def change(one: Bottleneck, x: Tensor) -> Tensor:
    inner = torch.clamp(x @ one.down.weight.T + one.down.bias, min=0)
    return inner @ one.up.weight.T + one.up.bias


@pytest.mark.parametrize("places", ["feed_forward", "both"])
def test_in_bert_they_stand_before_add_and_norm(places: str) -> None:
    model, base = tiny_bert(), tiny_bert().bert
    made = iter(moved(model, reduction=4, places=places))
    x = base.embeddings(IDS)
    for layer in base.encoder.layer:
        attended = layer.attention.output.dense(layer.attention.self(x)[0])
        if places == "both":
            attended = attended + change(next(made), attended)
        x = layer.attention.output.LayerNorm(attended + x)
        out = layer.output.dense(layer.intermediate(x))
        x = layer.output.LayerNorm(out + change(next(made), out) + x)
    torch.testing.assert_close(model.bert(IDS)[0], x, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(x, base(IDS)[0], atol=0.1)


def test_in_gpt2_they_stand_before_the_residual_sum() -> None:
    model, base = tiny_gpt2(), tiny_gpt2().transformer
    made = moved(model, reduction=4)
    x = base.wte(IDS) + base.wpe(torch.arange(16))
    for layer, one in zip(base.h, made, strict=True):
        x = x + layer.attn(layer.ln_1(x))[0]
        out = layer.mlp(layer.ln_2(x))
        x = x + out + change(one, out)
    torch.testing.assert_close(model.transformer(IDS)[0], base.ln_f(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "family", ["albert", "deberta-v2", "distilbert", "gemma3_text", "gpt_neox", "llama", "modernbert", "roberta"]
)
def test_switched_off_they_change_no_bit_in_any_family(family: str) -> None:
    model = tiny(family)
    ids = torch.arange(5, 21).reshape(2, 8)
    before = model(ids).logits
    made = moved(model, reduction=4, places="both")
    assert not torch.equal(model(ids).logits, before)
    for one in made:
        one.on = False
    assert torch.equal(model(ids).logits, before)


def test_a_fresh_one_leaves_the_model_nearly_as_it_is_and_a_copy_has_its_own() -> None:
    model = tiny_bert()
    before = model(IDS).logits
    made = attach(model, AdapterSettings())
    assert [tuple(one.down.weight.shape) for one in made] == [(1, 16), (1, 16)]
    torch.testing.assert_close(model(IDS).logits, before, rtol=0.01, atol=0.01)
    fresh = model(IDS).logits
    copied = deepcopy(model)
    with torch.no_grad():
        for part in copied.modules():
            if isinstance(part, Bottleneck):
                part.up.bias[0] += 3.0
    assert torch.equal(model(IDS).logits, fresh)
    assert not torch.allclose(copied(IDS).logits, fresh, atol=0.01)


def test_a_reduction_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(
        EunoeError, match=r"reduction is 17, which leaves no inner unit of the 16 numbers .* Give 16 or less\."
    ):
        attach(tiny_bert(), AdapterSettings(reduction=17))
