from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from eunoe.errors import EunoeError
from eunoe.models.anatomy import FAMILIES, Anatomy, Layer, anatomy
from tests.models.families import CHANGES, NORM_FIRST, tiny, tokens

families = pytest.mark.parametrize("family", sorted(FAMILIES))
SANDWICH = {"gemma3", "gemma3_text"}
"""Families that normalise a sub-layer's result before adding it."""
ENCODER_OF_T5 = ["encoder.block.0", "encoder.block.1"]


def places(layer: Layer) -> list[nn.Module]:
    """The distinct modules of a layer that plug-ins hook."""
    named = [layer.attention_in, layer.attention_proj, layer.attention_out, *layer.feed_forward_in]
    return list(dict.fromkeys([*named, layer.feed_forward_out, *layer.norms]))


def watch(model: nn.Module, modules: list[nn.Module]) -> tuple[dict[nn.Module, Tensor], dict[nn.Module, Tensor]]:
    """What enters and what leaves each module in one forward pass."""
    into: dict[nn.Module, Tensor] = {}
    out: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        into[module] = args[0] if args else kwargs["hidden_states"]
        out[module] = output if isinstance(output, Tensor) else output[0]

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    with torch.no_grad():
        model(tokens())
    for handle in handles:
        handle.remove()
    return into, out


def test_every_row_is_tried_here() -> None:
    assert set(FAMILIES) == set(CHANGES)


@families
def test_each_named_module_runs_once_and_gives_a_tensor(family: str) -> None:
    model = tiny(family)
    parts = anatomy(model)
    assert len(parts.layers) == 2
    calls: Counter[nn.Module] = Counter()
    for layer in parts.layers:
        for module in places(layer):
            module.register_forward_hook(lambda m, args, output: calls.update([m]) or None)
            module.register_forward_hook(lambda m, args, output: None if isinstance(output, Tensor) else 1 / 0)
    with torch.no_grad():
        model(tokens())
    assert set(calls.values()) == {1}
    assert len(calls) == sum(len(places(layer)) for layer in parts.layers)


@families
@pytest.mark.parametrize("place", ["attention_out", "feed_forward_out"])
def test_a_constant_added_to_a_sub_layer_changes_the_output(family: str, place: str) -> None:
    for i in range(2):
        model = tiny(family)
        with torch.no_grad():
            before = model(tokens()).logits
            bump = torch.linspace(-1, 1, 16)  # a plain constant could vanish in a LayerNorm
            getattr(anatomy(model).layers[i], place).register_forward_hook(lambda m, args, output: output + bump)  # noqa: B023
            assert not torch.allclose(before, model(tokens()).logits, atol=1e-4)


@families
def test_without_its_sub_layers_results_a_layer_is_nothing_but_its_norms(family: str) -> None:
    """The hooked outputs are all that is added to the residual stream, and nothing else is in them."""
    model = tiny(family)
    parts = anatomy(model)
    for layer in parts.layers:
        for module in (layer.attention_out, layer.feed_forward_out):
            module.register_forward_hook(lambda m, args, output: torch.zeros_like(output))
    into, out = watch(model, [layer.module for layer in parts.layers])
    for layer in parts.layers:
        x = into[layer.module]
        expected = x if family in NORM_FIRST else layer.norms[1](layer.norms[0](x))
        torch.testing.assert_close(out[layer.module], expected)


VARIANTS = [
    *((family, {}) for family in sorted(FAMILIES)),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("t5", {"feed_forward_proj": "gated-gelu"}),  # T5 1.1
    ("deberta-v2", {"share_att_key": False, "conv_kernel_size": 0}),
]


@pytest.mark.parametrize(("family", "change"), VARIANTS)
def test_the_first_projections_get_the_sub_layers_input(family: str, change: dict[str, Any]) -> None:
    model = tiny(family, **change)
    beside = family == "gpt_neox" and not change  # its sub-layers run beside each other
    parts = anatomy(model)
    into, out = watch(model, [m for layer in parts.layers for m in (layer.module, *places(layer))])
    for layer in parts.layers:
        x = into[layer.module]
        assert out[layer.attention_out].shape == out[layer.feed_forward_out].shape == (2, 7, parts.width)
        assert into[layer.attention_proj].shape == (2, 7, parts.heads_width)
        result = out[layer.attention_proj]  # and no dropout in evaluation
        if family in SANDWICH:
            result = layer.norms[2](result)
        torch.testing.assert_close(out[layer.attention_out], result)
        between = x if beside else x + out[layer.attention_out]
        if family in NORM_FIRST:
            first_of_modernbert = family == "modernbert" and layer is parts.layers[0]
            attention = x if first_of_modernbert else layer.norms[0](x)
            feed_forward = layer.norms[0 if first_of_modernbert else 1](between)
        else:
            attention, feed_forward = x, layer.norms[0](between)
        torch.testing.assert_close(into[layer.attention_in], attention)
        for module in layer.feed_forward_in:
            torch.testing.assert_close(into[module], feed_forward)


@families
def test_all_norms_of_a_layer_are_named(family: str) -> None:
    for layer in anatomy(tiny(family)).layers:
        kinds = [m for m in layer.module.modules() if "norm" in type(m).__name__.lower()]
        assert set(layer.norms) == set(kinds)


@families
def test_heads_and_wrappers_make_no_difference(family: str) -> None:
    lm = tiny(family)
    expected = [layer.name for layer in anatomy(lm).layers]

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = nn.Linear(2, 2)
            self.model = copy.deepcopy(lm)

    bare = AutoModel.from_config(lm.config)
    assert anatomy(bare).base is bare
    for model in (bare, AutoModelForSequenceClassification.from_config(lm.config), Wrapped()):
        parts: Anatomy = anatomy(model)
        assert [layer.name for layer in parts.layers] == expected
        assert all(dict(parts.base.named_modules())[layer.name] is layer.module for layer in parts.layers)
    assert anatomy(lm).embeddings is lm.get_input_embeddings()


@pytest.mark.parametrize("kind", [T5EncoderModel, T5ForConditionalGeneration])
def test_of_t5_the_encoder_alone_has_layers(kind: type[nn.Module]) -> None:
    expected = [layer.name for layer in anatomy(tiny("t5")).layers]
    assert [layer.name for layer in anatomy(kind(tiny("t5").config)).layers] == expected == ENCODER_OF_T5


def test_albert_layers_are_the_distinct_ones_however_often_they_run() -> None:
    parts = anatomy(tiny("albert", num_hidden_layers=6, num_hidden_groups=1))
    assert [layer.name for layer in parts.layers] == ["encoder.albert_layer_groups.0.albert_layers.0"]


def test_an_unknown_family_is_told_which_row_to_write() -> None:
    config = XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8)
    with pytest.raises(EunoeError) as caught:
        anatomy(XLNetLMHeadModel(config))
    message = str(caught.value)
    for part in (
        "'xlnet'",
        "qwen3",
        "FAMILIES",
        "eunoe/models/anatomy.py",
        '"xlnet": Family(',
        "attention_out",
        "XLNetModel",
    ):
        assert part in message


def test_a_close_family_name_is_suggested() -> None:
    model = tiny("bert")
    model.bert.config.model_type = "robert"
    with pytest.raises(EunoeError, match=r"Did you mean .*roberta"):
        anatomy(model)


def test_a_module_without_a_transformers_model_is_refused() -> None:
    with pytest.raises(EunoeError, match="Linear holds no transformers model"):
        anatomy(nn.Linear(2, 2))


def test_a_row_that_does_not_fit_the_installed_transformers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "bert", FAMILIES["llama"])
    with pytest.raises(EunoeError, match="BertModel has no 'embed_tokens'"):
        anatomy(tiny("bert"))
