from __future__ import annotations

import copy
import hashlib
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel

from eunoe.errors import EunoeError
from eunoe.plugins.files import load_plugins, save_plugins
from eunoe.plugins.inject import (
    adapters,
    detach,
    grow,
    set_domain,
)
from eunoe.plugins.task_mask import TaskMask
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
    assert example in (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


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


# -- foreign folders -----------------------------------------------------------------------------------------------------
def forge(header: dict[str, list[int]], **config: object) -> Callable[[Path], None]:
    """Write empty or other tensors under the names that end as given, and a config with the right hash."""

    def spoil(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        for end, shape in header.items():
            tensors |= {name: torch.zeros(shape) for name in tensors if name.endswith(end)}
        save_file(tensors, file)
        edit(**{"weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **config})(folder)

    return spoil


def retype(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({name: change(t) if name.endswith(end) else t for name, t in tensors.items()}, file)
        edit(weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())(folder)

    return spoil


HUGE = 10**9


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (forge({"n.fc1.weight": [HUGE, 0], "n.fc1.bias": [0]}, attention_size=HUGE), "do not fit this model: .* differ in name, shape"),
        (forge({"n.fc2.weight": [0, HUGE]}, feed_forward_size=HUGE), "do not fit this model"),
        (put("attention_grown", [1] * 300_000), "attention_grown is .* at most 1,000 of them"),
        (put("feed_forward_grown", [HUGE] * 1_000), "do not fit this model"),
        (put("domains", [f"d{i}" for i in range(20_000)]), "domains is .* at most 10,000"),
        (put("domains", []), "domains is .* at least one"),
        (put("s_max", 10**400), "s_max is .*at most 1e30"),
        (put("note", "x" * (5 << 20)), r"adapter_config.json has 5,\d\d\d,\d\d\d bytes, a plug-in's config has at most 4,194,304"),
        (lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000), "adapter_config.json cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_bytes(b"\xff\xfe\x00"), "adapter_config.json cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "describes 'list', not 'CL_PLUGIN'"),
        (retype("mask1.bits", torch.Tensor.float), r"mask1.bits': \(\(1, 2\), 'F32'\) in the file"),
        (retype("fc1.weight", torch.Tensor.int), r"fc1.weight': \(\(\d+, 16\), 'I32'\) in the file"),
        (retype("fc2.weight", lambda t: t.to(torch.complex64)), "differ in name, shape or type"),
        (retype("fc2.weight", lambda t: t.to(torch.float8_e4m3fn)), "differ in name, shape or type"),
        (retype("fc2.bias", lambda t: t * math.nan), "hold numbers that are not finite in torch.float32, first in"),
        (retype("fc1.weight", lambda t: t.double() + 1e300), "not finite in torch.float32"),
        (put("domains", ["../../x"]), r"adapter_config.json: the name '../../x' is not allowed: use 1 to 64"),
        (put("domains", ["a\x1b[31m"]), r"the name 'a\\x1b\[31m' is not allowed"),
        (put("domains", ["base"]), "the name 'base' is not allowed for a domain"),
        (put("init", "\x1b]0;x"), r"unknown init '\\x1b\]0;x'"),
        (put("model_type", "x" * 5_000), r"model_type is .{,120} but must be a word"),
        (put("peft_type", {"a": "\x1b[31m" * 99}), r"describes .{,120} not 'CL_PLUGIN'"),
    ],
)  # fmt: skip
def test_a_forged_folder_is_refused_in_a_sentence_before_memory_is_taken(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    """The hash in the config is that of the forged weights: it says that a file is whole, not that it is right."""
    spoil(saved(tmp_path))
    model = tiny("bert")
    base = logits(model)
    with pytest.raises(EunoeError, match=message) as caught:
        load_plugins(model, tmp_path)
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()
    assert torch.equal(logits(model), base)
    assert all(p.requires_grad for p in model.parameters())
    assert not any("_plugin" in name for name in model.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("place", ["__init__", "restore"])  # while plug-ins are made, and while they are filled
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), MemoryError()])
def test_whatever_goes_wrong_on_the_way_nothing_stays_attached(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    model = tiny("bert")
    usual, calls = getattr(TaskMask, place), []

    def fail(*words: Any) -> None:
        calls.append(words)
        if len(calls) == 6:
            raise error
        usual(*words)

    monkeypatch.setattr(TaskMask, place, fail)
    with pytest.raises(type(error)):
        load_plugins(model, tmp_path)
    assert not adapters(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# -- what trains afterwards ------------------------------------------------------------------------------------------------
def step(model: nn.Module) -> None:
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights or [torch.zeros(1)], lr=1e-2)
    loss = model(tokens()).logits.square().mean()
    if loss.requires_grad:
        loss.backward()
    optimizer.step()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_usual_step_after_loading_moves_no_learnt_output(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    plug(model)
    finish(model, 0, 1)
    save_plugins(model, tmp_path)
    fresh = tiny(family)
    load_plugins(fresh, tmp_path)
    set_domain(fresh, "a")
    of_a = logits(fresh)
    set_domain(fresh, "b")
    step(fresh)
    set_domain(fresh, "a")
    assert torch.equal(logits(fresh), of_a)

    asked = tiny(family)
    load_plugins(asked, tmp_path, trainable=True)
    set_domain(asked, "a")
    step(asked)
    assert not torch.equal(logits(asked), of_a)


def test_trainable_plug_ins_work_under_distributed_data_parallel(tmp_path: Path) -> None:
    """It stops at the second backward pass if a weight that asks for a gradient never gets one."""
    model = tiny("bert").requires_grad_(False)
    load_plugins(model, saved(tmp_path / "plugins"), trainable=True)
    set_domain(model, "a")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        spread = nn.parallel.DistributedDataParallel(model)
        for _ in range(3):
            spread(tokens()).logits.square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    trained = [p for a in adapters(model).values() for p in a.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


# -- models that are not whole in memory ---------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("first", ["offload", "plug-ins"])
def test_plug_ins_act_on_an_offloaded_model(family: str, where: str, first: str, tmp_path: Path) -> None:
    from accelerate import cpu_offload, disk_offload

    model = tiny(family)
    plug(model, "parallel")
    finish(model, 0)
    save_plugins(model, tmp_path / "plugins")
    set_domain(model, "a")

    def offload(model: nn.Module) -> None:
        if where == "cpu":
            cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            disk_offload(model, str(tmp_path / "weights"), execution_device=torch.device("cpu"))

    fresh = tiny(family)
    steps = [lambda: load_plugins(fresh, tmp_path / "plugins"), lambda: offload(fresh)]
    for do in steps if first == "plug-ins" else steps[::-1]:
        do()
    assert next(fresh.parameters()).device.type == "meta"
    set_domain(fresh, "a")
    assert torch.equal(logits(fresh), logits(model))
    if first == "plug-ins":
        with pytest.raises(EunoeError, match=r"is offloaded \(device meta\) and cannot be written"):
            save_plugins(fresh, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    else:
        save_plugins(fresh, tmp_path / "again")
        again, weights = (tmp_path / name / "adapter_model.safetensors" for name in ("again", "plugins"))
        assert again.read_bytes() == weights.read_bytes()


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with torch.device("meta"):
        model = tiny("bert")
    with pytest.raises(
        EunoeError, match=r"^encoder.layer.0 has no weights \(device meta\).* Load the model's weights first"
    ):
        load_plugins(model, tmp_path)
    assert not adapters(model)


# -- beside other formats ------------------------------------------------------------------------------------------------
def test_plug_ins_are_not_written_where_they_would_spoil_a_model_or_an_adapter(tmp_path: Path) -> None:
    model = tiny("bert")
    model.save_pretrained(tmp_path / "model")
    plug(model)
    finish(model, 0)
    with pytest.raises(EunoeError, match=r"model holds a model \(config.json\).*folder of their own: .*model/plugins"):
        save_plugins(model, tmp_path / "model")
    type(model).from_pretrained(tmp_path / "model")  # with peft installed it would read an adapter_config.json
    save_plugins(model, tmp_path / "model" / "plugins")
    type(model).from_pretrained(tmp_path / "model")

    lora = tmp_path / "lora" / "adapter_config.json"
    lora.parent.mkdir()
    lora.write_text('{"peft_type": "LORA"}')
    with pytest.raises(EunoeError, match="holds an adapter of type 'LORA', which would be overwritten"):
        save_plugins(model, lora.parent)
    assert [file.name for file in lora.parent.iterdir()] == [lora.name]
    assert lora.read_text() == '{"peft_type": "LORA"}'


def test_what_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    model = tiny("bert")
    active = plug(model)
    finish(model, 0)
    active.domains = ("my domain", "b")
    with pytest.raises(EunoeError, match="the name 'my domain' is not allowed"):
        save_plugins(model, tmp_path / "new")
    active.domains = ("a", "b")
    with torch.no_grad():
        adapters(model)["encoder.layer.1.attention_plugin"].fc2.weight[0, 0] = math.inf
    with pytest.raises(
        EunoeError, match=r"encoder.layer.1.attention_plugin.fc2.weight has numbers that are not finite"
    ):
        save_plugins(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_save_pretrained_says_that_it_writes_no_masks(tmp_path: Path) -> None:
    model = tiny("bert")
    load_plugins(model, saved(tmp_path / "plugins"))
    for one, name in ((model, "whole"), (model.bert, "trunk"), (copy.deepcopy(model), "copy")):
        with pytest.warns(UserWarning, match=r"neither masks nor domains.*save_plugins\(model, FOLDER\)"):
            one.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "model.safetensors").is_file()
    detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "base")
    fresh = type(model).from_pretrained(tmp_path / "base")
    assert torch.equal(logits(fresh.eval()), logits(model))
