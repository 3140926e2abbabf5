"""The group of every weight of every family, written out by its first letters."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from eunoe.models.anatomy import FAMILIES, RECURRENT
from eunoe.models.awd.classifier import AwdLstmForSequenceClassification
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.models.depth import depth_groups
from tests.models.families import tiny

GROUPS: dict[str, list[str]] = {
    # embeddings, layer 0, layer 1, head: patterns of which each weight's name has to fit exactly one
    "bert": [r"bert\.embeddings\.", r"bert\.encoder\.layer\.0\.", r"bert\.encoder\.layer\.1\.", r"cls\."],
    "roberta": [r"roberta\.embeddings\.", r"roberta\.encoder\.layer\.0\.", r"roberta\.encoder\.layer\.1\.", r"lm_head\."],
    "electra": [
        r"electra\.embeddings(_project)?\.", r"electra\.encoder\.layer\.0\.", r"electra\.encoder\.layer\.1\.",
        r"generator_",
    ],
    "deberta-v2": [
        r"deberta\.(embeddings|encoder\.(rel_embeddings|LayerNorm|conv))\.", r"deberta\.encoder\.layer\.0\.",
        r"deberta\.encoder\.layer\.1\.", r"cls\.",
    ],
    "distilbert": [
        r"distilbert\.embeddings\.", r"distilbert\.transformer\.layer\.0\.", r"distilbert\.transformer\.layer\.1\.",
        r"vocab_",
    ],
    "albert": [
        r"albert\.(embeddings|encoder\.embedding_hidden_mapping_in)\.", r"albert\.encoder\.albert_layer_groups\.0\.",
        r"albert\.encoder\.albert_layer_groups\.1\.", r"predictions\.",
    ],
    "modernbert": [r"model\.embeddings\.", r"model\.layers\.0\.", r"model\.(layers\.1|final_norm)\.", r"(head|decoder)\."],
    "gpt2": [r"transformer\.wt?[ep]*e\.", r"transformer\.h\.0\.", r"transformer\.(h\.1|ln_f)\.", ""],
    "openai-gpt": [r"transformer\.(tokens|positions)_embed\.", r"transformer\.h\.0\.", r"transformer\.h\.1\.", ""],
    "llama": [r"model\.embed_tokens\.", r"model\.layers\.0\.", r"model\.(layers\.1|norm)\.", r"lm_head\."],
    "qwen3": [r"model\.embed_tokens\.", r"model\.layers\.0\.", r"model\.(layers\.1|norm)\.", r"lm_head\."],
    "gemma3_text": [r"model\.embed_tokens\.", r"model\.layers\.0\.", r"model\.(layers\.1|norm)\.", ""],
    "gemma3": [
        r"model\.(language_model\.embed_tokens|vision_tower|multi_modal_projector)\.", r"model\.language_model\.layers\.0\.",
        r"model\.language_model\.(layers\.1|norm)\.", "",
    ],
    "gpt_neox": [
        r"gpt_neox\.embed_in\.", r"gpt_neox\.layers\.0\.", r"gpt_neox\.(layers\.1|final_layer_norm)\.", r"(embed_out|lm_head)\.",
    ],
    "t5": [
        r"transformer\.shared\.", r"transformer\.encoder\.block\.0\.",
        r"transformer\.encoder\.(block\.1|final_layer_norm)\.", r"classifier\.",
    ],
}  # fmt: skip


@pytest.mark.parametrize("family", GROUPS)
def test_the_group_of_every_weight(family: str) -> None:
    model = tiny(family)
    groups = [set(group.weights) for group in depth_groups(model)]
    names = [name for name, _ in model.named_parameters()]
    wanted = [{name for name in names if re.match(pattern, name)} for pattern in GROUPS[family] if pattern]
    assert groups == wanted
    assert sorted(name for group in groups for name in group) == sorted(names)


def test_the_group_of_every_weight_of_an_lstm() -> None:
    """Its decoder is its embedding: low with the embeddings, or with the head as in ULMFiT's scripts; the bias is the head's."""
    assert set(RECURRENT) == {"awd_lstm"}
    size = {"hidden_size": 4, "cell_size": 6, "num_hidden_layers": 3}
    lm = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=9, **size))
    layers = [
        {f"transformer.layers.{i}.{w}" for w in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")} for i in range(3)
    ]
    table, bias = {"transformer.embeddings.weight"}, {"lm_head.bias"}
    assert [set(group.weights) for group in depth_groups(lm)] == [table, *layers, bias]
    assert [set(group.weights) for group in depth_groups(lm, tied="head")] == [*layers, table | bias]
    classifier = AwdLstmForSequenceClassification(AwdLstmConfig(vocab_size=9, num_labels=2, **size))
    head = {name for name, _ in classifier.named_parameters() if name.startswith("head.")}
    assert [set(group.weights) for group in depth_groups(classifier)] == [table, *layers, head]
    assert set(GROUPS) == set(FAMILIES)


def test_the_pooler_is_the_heads_and_wrappers_change_names_alone() -> None:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    model = BertForSequenceClassification(BertConfig(**shape))
    plain = depth_groups(model)
    assert [group.name for group in plain] == ["embeddings", "encoder.layer.0", "encoder.layer.1", "head"]
    assert {name.split(".")[-2] for name in plain[-1].weights} == {"dense", "classifier"}
    assert "bert.pooler.dense.weight" in plain[-1].weights
    wrapped = depth_groups(nn.DataParallel(model))
    assert [group.weights for group in wrapped] == [tuple(f"module.{n}" for n in group.weights) for group in plain]
    base = depth_groups(model.bert)
    assert [group.name for group in base] == [group.name for group in plain]
    assert base[-1].weights == ("pooler.dense.weight", "pooler.dense.bias")


@pytest.mark.parametrize(
    ("family", "table"), [("bert", "bert.embeddings.word_embeddings"), ("gpt2", "transformer.wte")]
)
def test_an_embedding_that_is_the_lm_heads_too_may_go_with_the_head(family: str, table: str) -> None:
    model = tiny(family)
    low, high = depth_groups(model), depth_groups(model, tied="head")
    assert f"{table}.weight" in low[0].weights
    assert f"{table}.weight" in high[-1].weights
    moved = [set(a.weights) ^ set(b.weights) for a, b in zip(low, high, strict=False)]
    assert all(names <= {f"{table}.weight"} for names in moved)
    untied = tiny("llama", tie_word_embeddings=False)
    assert depth_groups(untied) == depth_groups(untied, tied="head")
