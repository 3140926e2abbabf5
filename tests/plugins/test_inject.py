from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel

from eunoe.errors import EunoeError
from eunoe.models.anatomy import FAMILIES, anatomy
from eunoe.plugins.adapter import Adapter
from eunoe.plugins.inject import PLACEMENTS, Site, adapters, detach, inject, load_plugins, save_plugins, set_domain
from eunoe.plugins.task_mask import Active
from tests.models.families import tiny, tokens

families = pytest.mark.parametrize("family", sorted(FAMILIES))
placements = pytest.mark.parametrize("placement", sorted(PLACEMENTS))


def plug(model: nn.Module, placement: str = "sequential") -> Active:
    active = Active(domains=("a", "b"))

    def make(site: Site) -> Adapter:
        return Adapter(site.width, 12 if site.part == "attention" else 14, active, out=site.out, skip=site.skip)

    inject(model, anatomy(model), make, placement=placement)
    return active


def finish(model: nn.Module, *domains: int) -> None:
    draw = torch.Generator().manual_seed(0)
    for adapter in adapters(model).values():
        for domain in domains:
            for mask in adapter.masks().values():
                mask.begin(draw)
                mask.keep(domain)
            adapter.active.finished.add(domain)


def run_first(active: Active, s: float = 400.0) -> None:
    active.running, active.domain, active.s = 0, 0, s


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


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


@families
@placements
def test_saved_plug_ins_load_into_a_fresh_model(family: str, placement: str, tmp_path: Path) -> None:
    model = tiny(family)
    plug(model, placement)
    finish(model, 1)
    set_domain(model, "b")
    save_plugins(model, tmp_path / "plug")
    assert {file.name for file in (tmp_path / "plug").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}

    fresh = tiny(family)
    state = torch.get_rng_state()
    load_plugins(fresh, tmp_path / "plug")
    assert torch.equal(torch.get_rng_state(), state)
    detached = copy.deepcopy(model)
    detach(detached)
    assert torch.equal(logits(fresh), logits(detached)), "off until a domain is set"
    set_domain(fresh, "b")
    assert torch.equal(logits(fresh), logits(model))
    for ours, theirs in zip(adapters(model).values(), adapters(fresh).values(), strict=True):
        assert torch.equal(ours.mask1.taken, theirs.mask1.taken)
        for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q) or key.endswith(".embedding"), key
    assert json.loads((tmp_path / "plug" / "adapter_config.json").read_text())["domains"] == ["b"], "and not unlearnt a"
    detach(fresh)
    assert torch.equal(logits(fresh), logits(detached))
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), tiny(family).parameters(), strict=True))


def test_saved_plug_ins_load_into_the_bare_model_too(tmp_path: Path) -> None:
    model = tiny("bert")
    plug(model)
    finish(model, 0)
    save_plugins(model, tmp_path)
    bare = AutoModel.from_config(model.config).eval()
    bare.load_state_dict({k: v for k, v in model.bert.state_dict().items() if "_plugin" not in k}, strict=False)
    load_plugins(bare, tmp_path)
    set_domain(bare, "a")
    set_domain(model, "a")
    with torch.no_grad():
        assert torch.equal(bare(tokens()).last_hidden_state, model.bert(tokens()).last_hidden_state)


def saved(tmp_path: Path) -> Path:
    model = tiny("bert")
    plug(model)
    finish(model, 0)
    save_plugins(model, tmp_path)
    return tmp_path


def edit(**change: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "adapter_config.json"
        config = {**json.loads(file.read_text()), **change}
        dropped = {key for key, value in change.items() if value is None}
        file.write_text(json.dumps({key: value for key, value in config.items() if key not in dropped}))

    return spoil


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "cannot read .*adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot read .*adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot read .*adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"abc"), "cannot read .*safetensors"),
        (edit(peft_type="LORA"), "describes 'LORA'"),
        (edit(placement=None), "lacks placement"),
        (edit(model_type="gpt2"), "for a 'gpt2' model, this one is 'bert'"),
        (edit(domains=["a", "z"]), "do not fit this model"),
        (edit(attention_size=6), "do not fit this model"),
        (drop_tensor, "1 tensors differ"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_and_the_model_stays(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    spoil(saved(tmp_path))
    model: PreTrainedModel = tiny("bert")
    base = logits(model)
    with pytest.raises(EunoeError, match=message):
        load_plugins(model, tmp_path)
    assert not adapters(model)
    assert torch.equal(logits(model), base)


def test_only_learnt_domains_can_be_set(tmp_path: Path) -> None:
    model = tiny("bert")
    with pytest.raises(EunoeError, match=r"has no plug-ins: load_plugins"):
        set_domain(model, "a")
    load_plugins(model, saved(tmp_path))
    with pytest.raises(EunoeError, match=r"unknown learnt domain 'b'.*Allowed: a"):
        set_domain(model, "b")
