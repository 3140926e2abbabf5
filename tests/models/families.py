"""A tiny random model of every family in FAMILIES that gives logits: two distinct layers, width 16, no dropout.

A language model where the family has one; T5's encoder with a classifier of tokens, as it has no masked-LM head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CHANGES: dict[str, dict[str, Any]] = {
    "bert": QUIET,
    "roberta": QUIET,
    "electra": {**QUIET, "embedding_size": 8},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 2, "dropout": 0.0, "attention_dropout": 0.0},
    "albert": {**QUIET, "embedding_size": 8, "num_hidden_groups": 2},
    "deberta-v2": {
        **QUIET,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
    },
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 32},
    "openai-gpt": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 32,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 12},  # heads together wider than the model, as in Qwen3-0.6B
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 12, "sliding_window": 4},
    "gemma3": {
        "text_config": {**SMALL, "num_key_value_heads": 1, "head_dim": 12},
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 8,
            "patch_size": 4,
        },
        "mm_tokens_per_image": 4,
    },
    "gpt_neox": {},
    "t5": {
        "d_model": 16,
        "d_kv": 6,  # heads together narrower than the model
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
        "num_labels": 40,
    },
}
CAUSAL = {"openai-gpt", "gpt2", "llama", "qwen3", "gemma3_text", "gemma3", "gpt_neox"}
NORM_FIRST = {"modernbert", "t5", *CAUSAL} - {"openai-gpt"}
"""Families that normalise what enters a sub-layer; the others normalise after adding its result."""


def tiny(family: str, seed: int = 0, **change: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    renamed = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    drop = (
        renamed if family in ("gpt2", "openai-gpt", "distilbert", "t5") else set(SMALL) if family == "gemma3" else set()
    )
    settings = {key: value for key, value in SMALL.items() if key not in drop}
    config = AutoConfig.for_model(family, **{**settings, **CHANGES[family], **change})
    make = AutoModelForTokenClassification if family == "t5" else AutoModelForMaskedLM
    make = AutoModelForCausalLM if family in CAUSAL else make
    model = make.from_config(config).eval()
    for name, p in model.named_parameters():  # a freshly made LayerNorm is the identity scale: a test could not see it
        if p.ndim == 1:
            torch.nn.init.normal_(p, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


def tokens(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(3, SMALL["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))
