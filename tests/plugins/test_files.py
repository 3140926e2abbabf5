from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from eunoe.errors import EunoeError
from eunoe.plugins.files import load_plugins, save_plugins
from eunoe.plugins.inject import (
    adapters,
    detach,
    grow,
    set_domain,
)
from tests.models.families import tiny, tokens
from tests.plugins.plugged import families, finish, logits, placements, plug, run_first


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


def put(key: str, value: object) -> Callable[[Path], None]:
    """As ``edit``, and null is written as it is."""

    def spoil(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return spoil


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")
    edit(weights_sha256=None)(folder)


def damage(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"abc")
    edit(weights_sha256=None)(folder)


def flip_a_bit(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors cannot be read"),
        (damage, "safetensors cannot be read"),
        (flip_a_bit, r"safetensors is not what save_plugins wrote: its SHA-256 differs"),
        (put("weights_sha256", "0" * 64), "its SHA-256 differs"),
        (put("weights_sha256", 3), "weights_sha256 is 3"),
        (edit(peft_type="LORA"), "describes 'LORA'"),
        (edit(placement=None), "lacks placement"),
        (edit(model_type="gpt2"), "for a 'gpt2' model, this one is 'bert'"),
        (edit(domains=["a", "z"]), "do not fit this model"),
        (edit(attention_size=6), "do not fit this model"),
        (drop_tensor, "1 tensors differ"),
        (put("model_type", 5), "model_type is 5, but must be a word"),
        (put("base_model_name_or_path", ["a"]), "base_model_name_or_path is .*, but must be a word or null"),
        (put("placement", {}), "placement is {}"),
        (put("placement", "paralel"), "unknown placement 'paralel'"),
        (put("activation", "swish"), "unknown activation 'swish'"),
        (put("activation", []), r"activation is \[\]"),
        (put("init", "zero"), "unknown init 'zero'"),
        *(
            (put("attention_size", v), "attention_size is .*whole number of 1 or more")
            for v in ("x", -1, 0, 1.5, True, None)
        ),
        (put("feed_forward_size", 10**15), "do not fit this model"),
        *(
            (put("attention_grown", v), "attention_grown is .*list of whole numbers")
            for v in (None, 4, [0], ["a"], [True])
        ),
        (put("attention_grown", [10**15]), "do not fit this model"),
        *((put("domains", v), "domains is .*list of names, each once") for v in (["a", "a"], "ab", [1], None, [["a"]])),
        *(
            (put("s_max", v), "s_max is .*number of 1 or more")
            for v in ("z", 0, None, True, float("nan"), float("inf"))
        ),
        *((put("attention_skip", v), "attention_skip is .*true or false") for v in (1, "true", None)),
        (put("attention_skip", False), "sub-layer's result, which would be lost"),
        (put("feed_forward_skip", False), "sub-layer's result, which would be lost"),
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


def test_a_skip_that_the_model_cannot_have_is_refused(tmp_path: Path) -> None:
    model = tiny("qwen3")
    plug(model, "parallel")
    finish(model, 0)
    save_plugins(model, tmp_path)
    put("attention_skip", True)(tmp_path)
    fresh = tiny("qwen3")
    with pytest.raises(EunoeError, match="reads 16 numbers and gives 24 on a qwen3 model"):
        load_plugins(fresh, tmp_path)
    assert not adapters(fresh)


def test_the_weights_hash_is_saved_and_a_folder_from_before_it_still_loads(tmp_path: Path) -> None:
    file = saved(tmp_path) / "adapter_config.json"
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert json.loads(file.read_text())["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    edit(weights_sha256=None)(tmp_path)
    model = tiny("bert")
    load_plugins(model, tmp_path)
    set_domain(model, "a")


def test_a_save_that_is_cut_short_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in saved(tmp_path).iterdir()}
    model = tiny("bert")
    plug(model)
    finish(model, 0, 1)
    renamed = []

    def cut(self: Path, target: Path) -> None:
        renamed.append(target.name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(EunoeError, match=r"adapter_model\.safetensors could not be written: No space left"):
        save_plugins(model, tmp_path)
    assert renamed == ["adapter_model.safetensors"], "the config comes last"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_only_learnt_domains_can_be_set(tmp_path: Path) -> None:
    model = tiny("bert")
    with pytest.raises(EunoeError, match=r"has no plug-ins: load_plugins"):
        set_domain(model, "a")
    load_plugins(model, saved(tmp_path))
    with pytest.raises(EunoeError, match=r"unknown learnt domain 'b'.*Allowed: a"):
        set_domain(model, "b")


def test_plug_ins_that_learnt_nothing_yet_are_not_written(tmp_path: Path) -> None:
    model = tiny("bert")
    run_first(plug(model))
    with pytest.raises(EunoeError, match=r"written to .*new: of their domains \(a, b\) none is learnt yet. Learn one"):
        save_plugins(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_example_of_set_domain_names_a_folder_as_runs_write_it() -> None:
    example = 'load_plugins(model, "runs/mine/sequences/cpt.given.seed0/plugins")'
    assert example in (set_domain.__doc__ or "")
    assert example in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_options_and_grown_units_are_saved_and_restored(tmp_path: Path) -> None:
    model = tiny("bert")
    plug(model, "parallel", False, activation="silu", init="near_zero")
    finish(model, 0)
    set_domain(model, "a")
    of_a = logits(model)
    grow(model, attention_size=20, ffn_size=15)
    grow(model, ffn_size=17)
    finish(model, 1)
    save_plugins(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    chosen = {key: config[key] for key in ("activation", "init", "attention_skip", "feed_forward_skip")}
    assert chosen == {"activation": "silu", "init": "near_zero", "attention_skip": False, "feed_forward_skip": False}
    sizes = [config[f"{part}_{key}"] for part in ("attention", "feed_forward") for key in ("size", "grown")]
    assert sizes == [12, [8], 14, [1, 2]]

    fresh = tiny("bert")
    load_plugins(fresh, tmp_path)
    set_domain(fresh, "a")
    assert torch.equal(logits(fresh), of_a)
    for one in (model, fresh):
        set_domain(one, "b")
    assert torch.equal(logits(fresh), logits(model))
    assert not torch.equal(logits(fresh), of_a)
    assert {a.activation for a in adapters(fresh).values()} == {"silu"}


SCRIPT = """
import sys
from transformers import AutoModelForMaskedLM
from eunoe import load_plugins, set_domain
import torch

model = AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()
ids = torch.arange(3, 10)[None]
with torch.no_grad():
    base = model(ids).logits
    load_plugins(model, sys.argv[2])
    off = model(ids).logits
    set_domain(model, "a")
    on = model(ids).logits
    set_domain(model, None)
    assert torch.equal(off, base) and torch.equal(model(ids).logits, base) and not torch.equal(on, base)
torch.save(on, sys.argv[3])
"""


def test_a_plain_transformers_script_reads_saved_plug_ins(tmp_path: Path) -> None:
    model = tiny("bert")
    model.save_pretrained(tmp_path / "base")
    plug(model)
    finish(model, 0)
    save_plugins(model, tmp_path / "plugins")
    set_domain(model, "a")
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", "base", "plugins", "on.pt"]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=120)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "on.pt", weights_only=True), model(torch.arange(3, 10)[None]).logits)
