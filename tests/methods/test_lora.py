"""LoRA against matrices multiplied by hand; what a merge leaves; what the library itself reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import hidden_states
from eunoe.methods.base import Method, Stage
from eunoe.methods.lora import Lora, LoraSettings
from eunoe.methods.peft import adapted, linear_layers
from eunoe.models.anatomy import anatomy
from tests.tiny import tiny_bert, tiny_gpt2

peft = pytest.importorskip("peft", reason="needs the peft library (pip install eunoe[peft])")
IDS = torch.arange(5, 37).reshape(2, 16)


def read(model: nn.Module) -> Tensor:
    return hidden_states(model, anatomy(model).base, IDS)


def moved(method: Method) -> Method:
    """As if it had learnt: every weight of the adapter drawn anew."""
    torch.manual_seed(7)
    with torch.no_grad():
        for p in method.model.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    return method


def stage(index: int = 0) -> Stage:
    return Stage(name="law", domains=("law",), index=index, seed=11, batches=[])


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize("targets", ["layers", "attention"])
def test_each_adapted_layer_computes_w_x_plus_alpha_over_r_b_a_x(make: type, targets: str) -> None:
    plain, model = make(), make()
    base = read(plain)
    lora = Lora(model, LoraSettings(r=3, alpha=6.0, targets=targets), ["law"])  # type: ignore[arg-type]
    assert torch.equal(read(model), base), "B starts at zero"
    moved(lora)
    changed = linear_layers(plain, targets)
    with torch.no_grad():
        for name, layer in changed.items():
            part = model.get_submodule(name)
            delta = 2.0 * part.lora_B["default"].weight @ part.lora_A["default"].weight  # (out, in)
            layer.weight += delta if isinstance(layer, nn.Linear) else delta.T  # GPT-2 keeps its weights turned over
    assert len(changed) == len(adapted(model)) > 0
    torch.testing.assert_close(read(model), read(plain), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(read(model), base, atol=1e-2)


def test_targets_are_all_linear_layers_or_those_of_the_attention() -> None:
    layers, attention = (set(linear_layers(tiny_bert(), targets)) for targets in ("layers", "attention"))
    ends = lambda names: {name.split("layer.0.")[1] for name in names if "layer.0." in name}  # noqa: E731
    assert ends(attention) == {f"attention.{x}" for x in ("self.query", "self.key", "self.value", "output.dense")}
    assert ends(layers - attention) == {"intermediate.dense", "output.dense"}
    assert {name.split("h.0.")[1] for name in linear_layers(tiny_gpt2(), "attention") if "h.0." in name} == {
        "attn.c_attn",
        "attn.c_proj",
    }


def test_merged_after_a_domain_the_weights_hold_the_change_and_a_fresh_one_begins() -> None:
    model = tiny_bert()
    lora = moved(Lora(model, LoraSettings(r=3, alpha=6.0, merge="each"), ["law", "sea"]))
    layer = adapted(model)[0]
    old_a, old_b = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    wanted, before = layer.base_layer.weight + 2.0 * old_b @ old_a, read(model)
    lora.end(stage())
    layer = adapted(model)[0]
    torch.testing.assert_close(layer.base_layer.weight, wanted)
    torch.testing.assert_close(read(model), before, rtol=1e-4, atol=1e-5)
    assert not layer.lora_B["default"].weight.any()
    assert layer.lora_A["default"].weight.any()
    assert not torch.equal(layer.lora_A["default"].weight, old_a)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }


def test_one_for_all_domains_leaves_the_pretrained_weights_alone() -> None:
    model, plain = tiny_bert(), tiny_bert()
    lora = moved(Lora(model, LoraSettings(), ["law", "sea"]))
    before = read(model)
    lora.end(stage())
    assert torch.equal(read(model), before)
    for name, layer in linear_layers(plain, "layers").items():
        assert torch.equal(model.get_submodule(name).base_layer.weight, layer.weight)


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_what_it_publishes_is_read_by_the_library(make: type, tmp_path: Path) -> None:
    model = make()
    lora = moved(Lora(model, LoraSettings(r=3), ["law"]))
    lora.publish(tmp_path / "made")
    loaded = peft.PeftModel.from_pretrained(make(), str(tmp_path / "made"))
    torch.testing.assert_close(read(loaded), read(model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(read(loaded), read(make()), atol=1e-2)


@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_an_end_task_with_a_frozen_backbone_trains_the_adapter(freeze: str) -> None:
    model = tiny_bert()
    lora = Lora(model, LoraSettings(), ["law"])
    lora.for_end_task(model, "law", freeze)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)
    base = [p for n, p in anatomy(model).base.named_parameters() if ".lora_" not in n]
    assert {p.requires_grad for p in base} == {freeze == "none"}


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(EunoeError, match=r'pip install "eunoe\[peft\]"'):
        Lora(tiny_bert(), LoraSettings(), ["law"])
