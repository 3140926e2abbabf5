from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from eunoe.errors import EunoeError
from eunoe.plugins.files import load_plugins, save_plugins
from eunoe.plugins.inject import (
    adapters,
    add_domains,
    detach,
    grow,
    set_domain,
)
from tests.models.families import tiny, tokens
from tests.plugins.plugged import families, finish, logits, placements, plug, run_first


@families
@placements
def test_attached_plug_ins_change_no_name_and_no_bit_until_a_domain_is_set(family: str, placement: str) -> None:
    model = tiny(family)
    names, base = list(model.state_dict()), logits(model)
    active = plug(model, placement)
    assert [name for name in model.state_dict() if "_plugin" not in name] == names
    assert torch.equal(logits(model), base)
    outputs = []
    finish(model, 0, 1)
    for active.domain in (0, 1):
        outputs.append(logits(model))
        assert not torch.allclose(outputs[-1], base, atol=1e-4)
    assert not torch.allclose(*outputs, atol=1e-4)
    active.domain = None
    assert torch.equal(logits(model), base)
    detach(model)
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@families
@placements
def test_a_silent_plug_in_is_the_base_model_but_in_the_released_placement(family: str, placement: str) -> None:
    model = tiny(family)
    base = logits(model)
    run_first(plug(model, placement))
    for adapter in adapters(model).values():
        nn.init.constant_(adapter.mask2.embedding, -1.0)
    assert torch.equal(logits(model), base) == (placement != "parallel")


@families
@placements
def test_gradients_reach_every_plug_in(family: str, placement: str) -> None:
    model = tiny(family)
    run_first(plug(model, placement), 2.0)
    model(tokens()).logits.square().mean().backward()
    for name, adapter in adapters(model).items():
        for key, p in adapter.named_parameters():
            assert p.grad is not None, name
            assert p.grad.any(), f"{name}.{key}"


@families
@placements
def test_a_deep_copy_works_by_itself_and_leaves_the_original_alone(family: str, placement: str) -> None:
    model = tiny(family)
    active = plug(model, placement)
    finish(model, 0, 1)
    set_domain(model, "a")
    of_a = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), of_a)

    set_domain(twin, "b")
    of_b = logits(twin)
    assert not torch.equal(of_b, of_a)
    assert active.domain == 0
    assert torch.equal(logits(model), of_a)

    with torch.no_grad():
        for adapter in adapters(twin).values():
            adapter.fc1.weight.add_(0.5)
    assert not torch.equal(logits(twin), of_b), "the copy's hooks must run the copy's plug-ins"
    assert torch.equal(logits(model), of_a)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.fc1.weight.zero_()
    moved = logits(twin)
    detach(model)
    assert torch.equal(logits(twin), moved)
    detach(twin)
    assert torch.equal(logits(twin), logits(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


def test_a_deep_copy_of_the_trunk_alone_keeps_its_plug_ins() -> None:
    model = tiny("bert")
    plug(model)
    finish(model, 0)
    set_domain(model, "a")
    trunk = copy.deepcopy(model.bert)
    with torch.no_grad():
        assert torch.equal(trunk(tokens()).last_hidden_state, model.bert(tokens()).last_hidden_state)
    set_domain(trunk, None)
    assert adapters(model)["encoder.layer.0.attention_plugin"].active.domain == 0


def test_after_a_backward_pass_a_model_can_still_be_copied() -> None:
    model = tiny("bert")
    run_first(plug(model, "parallel"), 2.0)
    model(tokens()).logits.sum().backward()
    copy.deepcopy(model)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for on in (False, True):
        model = tiny("llama").train()
        run_first(plug(model, "parallel"), 2.0)
        if on:
            model.activation_checkpointing_enable()
        model(tokens(), use_cache=False).logits.square().mean().backward()
        gradients.append([p.grad for a in adapters(model).values() for p in a.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_shared_layer_has_one_plug_in_pair() -> None:
    model = tiny("albert", num_hidden_layers=4, num_hidden_groups=1)
    run_first(plug(model))
    assert len(adapters(model)) == 2
    calls = []
    first = next(iter(adapters(model).values()))
    first.register_forward_hook(lambda *_: calls.append(1) or None)
    logits(model)
    assert len(calls) == 4


def test_plug_ins_stay_float32_on_a_half_precision_model() -> None:
    model = tiny("llama").to(torch.bfloat16)
    run_first(plug(model))
    assert {p.dtype for a in adapters(model).values() for p in a.parameters()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_plug_ins_on_plug_ins_and_unknown_placements_are_refused() -> None:
    model = tiny("bert")
    plug(model)
    with pytest.raises(EunoeError, match="has plug-ins already"):
        plug(model)
    with pytest.raises(EunoeError, match=r"unknown placement 'paralel'.*Did you mean parallel"):
        plug(tiny("bert"), "paralel")


@pytest.mark.parametrize(("names", "twice"), [(["c", "b", "a"], "a, b"), (["c", "d", "c"], "c")])
def test_a_further_domain_has_a_name_of_its_own(names: list[str], twice: str) -> None:
    model = tiny("bert")
    active = plug(model)
    with pytest.raises(EunoeError, match=rf"^{twice} cannot be added: known already to the plug-ins \(a, b\), or"):
        add_domains(model, names)
    assert active.domains == ("a", "b")
    add_domains(model, ["c", "d"])
    assert active.domains == ("a", "b", "c", "d")
    assert {len(mask.bits) for a in adapters(model).values() for mask in a.masks().values()} == {4}


# -- options and growing -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "placement", "skip", "message"),
    [
        ("bert", "sequential", False, "sub-layer's result, which would be lost"),
        ("qwen3", "parallel", True, "reads 16 numbers and gives 24 on a qwen3 model"),
    ],
)
def test_a_skip_that_cannot_be_is_refused_and_the_model_stays(
    family: str, placement: str, skip: bool, message: str
) -> None:
    model = tiny(family)
    base = logits(model)
    with pytest.raises(EunoeError, match=message):
        plug(model, placement, skip)
    assert not adapters(model)
    assert torch.equal(logits(model), base)


def test_the_released_placement_without_skips_is_its_base_when_silent() -> None:
    """The skip is what lets the feed-forward input enter twice."""
    for skip, equal in ((None, False), (False, True), (True, False)):
        model = tiny("bert")
        base = logits(model)
        run_first(plug(model, "parallel", skip))
        for adapter in adapters(model).values():
            nn.init.constant_(adapter.mask2.embedding, -1.0)
        assert torch.equal(logits(model), base) == equal


def test_growing_touches_no_old_weight_and_says_when_it_cannot() -> None:
    model = tiny("bert")
    with pytest.raises(EunoeError, match="has no plug-ins"):
        grow(model, ffn_size=20)
    active = plug(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(EunoeError, match="has 12 inner units and cannot grow to 12"):
        grow(model, ffn_size=30, attention_size=12)
    assert list(before) == [name for name, _ in model.named_parameters()], "refused before anything grows"
    grow(model, ffn_size=30)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in before.items())
    assert [a.size for a in adapters(model).values()] == [12, 30, 12, 30]
    run_first(active)
    with pytest.raises(EunoeError, match="domain 'a' is being learnt"):
        grow(model, ffn_size=40)


# -- libraries that replace modules of the model ---------------------------------------------------------------------------
class Wrapped(nn.Module):
    """A linear layer and something added to its output, as LoRA wraps one."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 0.1


def merge(model: nn.Module) -> None:
    """Every ``Wrapped`` as one linear layer that does the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Wrapped):
                linear = nn.Linear(child.base_layer.in_features, child.base_layer.out_features)
                linear.weight = child.base_layer.weight
                bias = child.base_layer.bias
                linear.bias = nn.Parameter(torch.full_like(linear.bias, 0.1) + (0 if bias is None else bias))
                setattr(parent, name, linear)


def wrap(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not isinstance(parent, Wrapped) and "lm_head" not in name:
                setattr(parent, name, Wrapped(child))


def finished(family: str, placement: str, before: Callable[[nn.Module], None] = lambda model: None) -> nn.Module:
    model = tiny(family)
    before(model)
    plug(model, placement)
    finish(model, 0, 1)
    return model


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "qwen3"])
@placements
def test_plug_ins_act_in_the_same_places_when_modules_there_are_wrapped_or_merged(family: str, placement: str) -> None:
    """As PEFT does before and after: ``merge_and_unload`` put the linear layer back and the plug-ins were silent."""
    torch.manual_seed(0)
    first = finished(family, placement, wrap)
    torch.manual_seed(0)
    later = finished(family, placement)
    set_domain(later, "b")
    plain = logits(later)
    wrap(later)
    for model in (first, later):
        set_domain(model, "a")
    of_a = logits(first)
    assert torch.equal(logits(later), of_a)
    assert not torch.allclose(plain, of_a, atol=1e-3)
    assert not any(isinstance(m, Wrapped) for a in adapters(later).values() for m in a.modules()), "plug-ins stay whole"
    for model in (first, later):
        twin = copy.deepcopy(model)
        for one in (model, twin):
            merge(one)
            torch.testing.assert_close(logits(one), of_a, atol=1e-5, rtol=1e-4)
            set_domain(one, None)
            assert not torch.allclose(logits(one), of_a, atol=1e-3)
            base = logits(one)
            detach(one)
            assert torch.equal(logits(one), base)
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.modules())


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("targets", ["some", "all-linear"])
@pytest.mark.parametrize("first", ["plug-ins", "lora"])
def test_lora_of_peft_beside_plug_ins(family: str, targets: str, first: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft, which is no dependency")
    some = ["query", "dense"] if family == "bert" else ["q_proj", "o_proj", "down_proj"]
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=some if targets == "some" else targets, init_lora_weights=False)
    if first == "lora":
        model = peft.get_peft_model(tiny(family), config).eval()
        plug(model)
        finish(model, 0, 1)
    else:
        model = peft.get_peft_model(finished(family, "sequential"), config).eval()
    set_domain(model, None)
    base = logits(model)
    set_domain(model, "a")
    of_a = logits(model)
    assert not torch.allclose(of_a, base, atol=1e-3)
    save_plugins(model, tmp_path)

    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), of_a, atol=1e-5, rtol=1e-4)
    set_domain(merged, None)
    torch.testing.assert_close(logits(merged), base, atol=1e-5, rtol=1e-4)
    detach(merged)
    load_plugins(merged, tmp_path)
    set_domain(merged, "a")
    torch.testing.assert_close(logits(merged), of_a, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_model_is_quantised_with_its_plug_ins_attached(family: str, tmp_path: Path) -> None:
    model = finished(family, "sequential")
    save_plugins(model, tmp_path / "before")
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    plain = torch.ao.quantization.quantize_dynamic(tiny(family), {nn.Linear})
    assert torch.equal(logits(small), logits(plain)), "off: the quantised base model"
    outputs = []
    for domain in ("a", "b"):
        set_domain(small, domain)
        outputs.append(logits(small))
        assert not torch.allclose(outputs[-1], logits(plain), atol=1e-3)
    assert not torch.allclose(*outputs, atol=1e-3)
    save_plugins(small, tmp_path / "after")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("before", "after")]
    assert files[0] == files[1]
    detach(small)
    assert torch.equal(logits(small), logits(plain))
