"""Damaged, odd, quantised, oversized and half-fetched folders: one error that names the file, no traceback, no memory taken."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import dynamic_module_utils

from eunoe.cli import main
from eunoe.errors import EunoeError
from eunoe.models.load import load_lm, read_weights
from eunoe.recipe import ModelSettings
from tests.models.test_fit import refusal
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of a model folder of each kind, by name."""
    home = tmp_path_factory.mktemp("whole")
    folders = {kind: tiny_folder(home, kind) for kind in ("bert", "llama", "gpt2")}
    return {kind: {file.name: file.read_bytes() for file in folder.iterdir()} for kind, folder in folders.items()}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(EunoeError) as caught:
        load_lm(ModelSettings(name=str(folder)))
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 900
    return said


# -- config.json ------------------------------------------------------------------------------------------------
ODD: list[Any] = [-1, 0, 10**9, 10**30, 2.5, "x", None, [], {}, [1], {"a": 1}, float("nan"), 1e308]
KEYS = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings",
    "hidden_act", "layer_norm_eps", "initializer_range", "hidden_dropout_prob", "attention_probs_dropout_prob", "pad_token_id",
    "model_type", "architectures", "type_vocab_size", "is_decoder", "tie_word_embeddings", "dtype", "id2label",
    "num_labels", "return_dict", "quantization_config", "auto_map", "use_cache", "eos_token_id",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_an_odd_value_in_config_json_loads_or_is_refused(
    key: str, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    files = whole["bert"]
    folder = written(tmp_path / "bert", files)
    refusals = []
    for value in ODD:
        (folder / "config.json").write_text(json.dumps({**json.loads(files["config.json"]), key: value}))
        try:
            load_lm(ModelSettings(name=str(folder)))
        except EunoeError as error:
            refusals.append(str(error))
    assert all(len(said.splitlines()) == 1 and "bert" in said.lower() for said in refusals)
    assert len(refusals) >= 2, "some of these values fit no model"


@pytest.mark.parametrize(
    ("kind", "key", "value", "says"),
    [
        ("bert", "num_hidden_layers", 10**9, r"asks for num_hidden_layers: 1000000000, but its weights hold \d+ tensors"),
        ("gpt2", "n_layer", 10**9, r"asks for n_layer: 1000000000, but its weights hold \d+ tensors"),
        ("llama", "num_hidden_layers", 5000, r"asks for num_hidden_layers: 5000, but its weights hold \d+ tensors"),
        ("bert", "num_labels", 10**9, r"asks for num_labels: 1000000000, but 100000 is the most"),
        ("bert", "hidden_size", 1 << 20, r"asks for [\d,]+ weights .* but its files can hold [\d,]+ at most"),
        ("llama", "vocab_size", 1 << 40, r"asks for [\d,]+ weights .* but its files can hold [\d,]+ at most"),
        ("bert", "max_position_embeddings", 1 << 40, r"asks for [\d,]+ weights .* but its files can hold [\d,]+ at most"),
        ("bert", "num_hidden_layers", -1, r"has no layers: its configuration asks for -1"),
        ("bert", "num_hidden_layers", 0, r"has no layers: its configuration asks for 0"),
        ("bert", "num_hidden_layers", 1, r"hold bert\.encoder\.layer\.1\..* a part of the pretrained model would be lost"),
        ("gpt2", "n_layer", 1, r"hold transformer\.h\.1\..* a part of the pretrained model would be lost"),
        ("llama", "num_hidden_layers", 1, r"hold model\.layers\.1\..* a part of the pretrained model would be lost"),
        ("bert", "max_position_embeddings", 64, r"position_embeddings\.weight \(128, 16\), where its config.json asks for \(64, 16\)"),
        ("bert", "model_type", "gpt2", r"bert"),
        ("bert", "pad_token_id", 10**6, r"bert"),
        ("llama", "attention_dropout", 7, r"dropout"),
        ("llama", "rms_norm_eps", float("nan"), r"not finite"),
        ("bert", "return_dict", False, r"logits"),
        ("bert", "use_cache", 3, r"use_cache.*expected bool, got int"),
    ],
)  # fmt: skip
def test_what_config_json_asks_for_must_be_what_the_weights_hold(
    kind: str, key: str, value: Any, says: str, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    folder = written(tmp_path / kind, whole[kind])
    (folder / "config.json").write_text(json.dumps({**json.loads(whole[kind]["config.json"]), key: value}))
    with pytest.raises(EunoeError, match=says):
        load_lm(ModelSettings(name=str(folder)))


def test_weights_of_a_head_or_a_pooler_that_a_masked_lm_does_not_have_are_left(
    whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    folder = written(tmp_path / "bert", whole["bert"])
    tensors = load_file(folder / "model.safetensors")
    more = {
        "bert.pooler.dense.weight": torch.zeros(16, 16),
        "cls.seq_relationship.weight": torch.zeros(2, 16),
        "classifier.weight": torch.zeros(2, 16),
        "bert.embeddings.position_ids": torch.arange(128)[None],
    }
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_lm(ModelSettings(name=str(folder))).objective == "masked"
    folder = written(tmp_path / "gpt2", whole["gpt2"])
    tensors = load_file(folder / "model.safetensors")
    more = {
        f"transformer.h.{i}.attn.{name}": torch.zeros(1, 1, 8, 8) for i in range(2) for name in ("bias", "masked_bias")
    }
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_lm(ModelSettings(name=str(folder))).objective == "causal"


# -- damaged files ----------------------------------------------------------------------------------------------
def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(_data: bytes) -> bytes:
    return b""


def noise(data: bytes) -> bytes:
    return bytes((i * 7919 + 13) % 256 for i in range(min(len(data), 500)))


def number(_data: bytes) -> bytes:
    return b"1"


def rows(_data: bytes) -> bytes:
    return b"[1, {}]"


def pointer(data: bytes) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize {len(data)}\n".encode()


DAMAGES = [cut, empty, noise, number, rows, pointer]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_damaged_file_is_refused(
    kind: str, name: str, damage: Callable[[bytes], bytes], whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    files = whole[kind]
    said = refused(written(tmp_path / kind, {**files, name: damage(files[name])}))
    assert kind in said
    if damage is pointer:
        assert f"{kind}/{name} is a Git LFS pointer" in said
        assert "git lfs pull" in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    said = refused(written(tmp_path / "bert", {k: v for k, v in whole["bert"].items() if k != name}))
    assert (
        "has no config.json" if name == "config.json" else "neither model.safetensors nor pytorch_model.bin"
    ) in said


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_in_torchs_format(
    damage: Callable[[bytes], bytes], whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    folder = written(tmp_path / "bert", whole["bert"])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file)
    assert load_lm(ModelSettings(name=str(folder))).objective == "masked"
    file.write_bytes(damage(file.read_bytes()))
    said = refused(folder)
    assert ("pytorch_model.bin is a Git LFS pointer" if damage is pointer else "bert") in said


def test_code_inside_torchs_format_is_not_run(whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    class Ran:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    files = {name: data for name, data in whole["bert"].items() if name != "model.safetensors"}
    folder = written(tmp_path / "bert", files)
    torch.save({"bert.embeddings.word_embeddings.weight": Ran()}, folder / "pytorch_model.bin")
    refused(folder)
    with pytest.raises(EunoeError, match="Nothing of it was run"):
        read_weights(folder / "pytorch_model.bin")
    assert not (tmp_path / "ran").exists()


def test_parts_of_weights_are_read_or_named(whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    folder = written(tmp_path / "bert", whole["bert"])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for part, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / part, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    places = {name: part for part, some in parts.items() for name in some}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert load_lm(ModelSettings(name=str(folder))).objective == "masked"
    (folder / "b.safetensors").unlink()
    assert "names 2 files of weights, of which 1 are missing (b.safetensors)" in refused(folder)
    index.write_text(json.dumps({"weight_map": {**places, names[0]: "../b.safetensors"}}))
    assert "../b.safetensors" in refused(folder)
    for text in ("[]", "{", '{"weight_map": 3}'):
        index.write_text(text)
        assert "model.safetensors.index.json" in refused(folder)


# -- quantised, adapters ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("quantised", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bit"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq, 4 bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bit"),
        ({"quant_method": "fp8"}, "fp8"),
        ({}, "quantization_config"),
    ],
)
def test_quantised_weights_are_refused_by_their_name(
    quantised: dict[str, Any], says: str, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    folder = written(tmp_path / "llama", whole["llama"])
    config = {**json.loads(whole["llama"]["config.json"]), "quantization_config": quantised}
    (folder / "config.json").write_text(json.dumps(config))
    said = refused(folder)
    assert f"quantised ({says})" in said
    assert "Load the original model" in said


def test_packed_weights_that_no_configuration_tells_of(whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    folder = written(tmp_path / "llama", whole["llama"])
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"quantised ({name} is I8)" in refused(folder)


@pytest.mark.parametrize("whole_model", [False, True])
def test_the_folder_of_an_adapter_says_what_to_do(
    whole_model: bool, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    files = whole["bert"] if whole_model else {}
    said = refused(written(tmp_path / "adapter", {**files, "adapter_config.json": b"{}"}))
    assert "holds an adapter (adapter_config.json)" in said
    assert "merge_and_unload" in said


# -- a file of tensors ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (
            torch.zeros(1).expand(1 << 20, 1 << 20),
            r"'?a'? is of shape \(1048576, 1048576\), but the file holds fewer numbers",
        ),
        (torch.zeros(10_000_000, 0), "is empty"),
        (torch.eye(3).to_sparse(), "is sparse or nested"),
        (torch.zeros(3, device="meta"), "is without its numbers"),
    ],
)
def test_tensors_that_take_memory_out_of_nothing_are_refused(tensor: torch.Tensor, says: str, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "a.pt")
    with pytest.raises(EunoeError, match=says):
        read_weights(tmp_path / "a.pt")


def test_tied_and_strided_tensors_are_read(tmp_path: Path) -> None:
    table = torch.arange(6.0).view(2, 3)
    torch.save({"a": table, "b": table, "c": table.t()}, tmp_path / "a.pt")
    assert torch.equal(read_weights(tmp_path / "a.pt")["c"], table.t())


# -- names, homes, code -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-owner/no-such-model", "no model 'no-such-owner/no-such-model'"),
        ("a/b/c/d", "no model 'a/b/c/d'"),
        ("./nothing/here", "nothing/here is not a folder"),
        (__file__, "is not a folder"),
        ("red\x1b[31m", "x1b[31m'"),
        ("", "no model ''"),
    ],
)
def test_a_name_that_is_nowhere(name: str, says: str) -> None:
    with pytest.raises(EunoeError) as caught:
        load_lm(ModelSettings(name=name))
    said = str(caught.value)
    assert says in said
    assert "Allowed: a folder with config.json, a Hugging Face name, or one of" in said
    assert said.isprintable()


def test_a_hub_that_does_not_answer_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror("no network here")

    asked: list[float] = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(time, "sleep", asked.append)
    with pytest.raises(EunoeError, match="no model 'someone/never-asked-for'"):
        load_lm(ModelSettings(name="someone/never-asked-for"))
    assert len(asked) > 3  # the library did ask again
    assert capsys.readouterr().err.splitlines() == [
        "asking the hub for 'someone/never-asked-for', which does not answer; this takes up to a minute. Without a network: "
        "HF_HUB_OFFLINE=1, or the folder of a model"
    ]


REMOTE = """
from pathlib import Path
Path({proof!r}).write_text("ran")
from transformers import PretrainedConfig
class Config(PretrainedConfig):
    model_type = "surprise"
"""


@pytest.mark.parametrize("model_type", ["surprise", "bert"])
def test_code_of_a_model_never_runs_whatever_stands_on_standard_input(
    model_type: str,
    whole: dict[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = whole["bert"]
    folder = written(tmp_path / "model", files)
    auto = {"AutoConfig": "code.Config", "AutoModelForMaskedLM": "code.Model", "AutoModelForCausalLM": "code.Model"}
    config = {**json.loads(files["config.json"]), "model_type": model_type, "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {
        **json.loads(files["tokenizer_config.json"]),
        "auto_map": {"AutoTokenizer": ["code.Slow", "code.Fast"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "custom_generate").mkdir()
    for file in (folder / "code.py", folder / "custom_generate" / "generate.py"):
        file.write_text(REMOTE.format(proof=str(tmp_path / "proof")))
    work = tmp_path / "work"
    work.mkdir()
    recipe = tiny_recipe(work, model={"name": str(folder)}, methods=["ncl"], seeds=[0])
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    code = main(["run", str(recipe), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "proof").exists()
    assert sys.stdin.read() == "y\ny\ny\n"
    said = capsys.readouterr()
    assert "[y/N]" not in said.out + said.err
    if model_type == "surprise":
        assert code == 2
        assert "is of type 'surprise', which transformers" in said.err
        assert "brings Python code of its own (auto_map), which is never run" in said.err
        assert "pip install -U transformers" in said.err
        assert "config.json whole" not in said.err  # there is nothing to restore
        assert not (tmp_path / "out").exists()


def test_without_a_home_and_a_network_a_folder_and_a_name_of_the_hubs_cache_load(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    cached = tmp_path / "cache" / "models--someone--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("ab" * 20)
    shutil.copytree(folder, cached / "snapshots" / ("ab" * 20))
    env = {key: value for key, value in os.environ.items() if key not in ("HOME", "HF_HOME", "XDG_CACHE_HOME")}
    code = f"""
from eunoe.models.load import load_lm
from eunoe.recipe import ModelSettings
for name in ({str(folder)!r}, "someone/tiny"):
    lm = load_lm(ModelSettings(name=name))
    print(lm.objective, lm.identity)
"""
    env |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("masked ")
    assert second == first  # the same files, wherever they lie


def test_the_command_says_the_same(whole: dict[str, dict[str, bytes]], tmp_path: Path, capsys: Any) -> None:
    folder = written(tmp_path / "bert", {**whole["bert"], "tokenizer.json": pointer(b"12")})
    said = refusal(tmp_path, folder, capsys)
    assert "bert/tokenizer.json is a Git LFS pointer" in said
    assert main(["list", "models"]) == 0
