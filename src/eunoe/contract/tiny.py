"""Tiny random models and a tokenizer made on the spot, so that no test needs a network or a second.

``tiny_tokenizer()`` knows some common words and all letters; ``tiny_bert``, ``tiny_llama`` and ``tiny_gpt2`` fit it.
``tiny_folder`` saves one of them with its tokenizer, so that AutoTokenizer and AutoModelFor... load the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = (  # noqa: SIM905 - readable
    "the a an of in on and or to is was it this that with for from by at as be has had not but goal match team player "
    "coach score win lost league season market stock bank price profit share trade growth tax film song music actor "
    "award show star album phone computer software game web data user vote party minister law good bad great poor new "
    "old big small first last year day time world people said"
).split(" ")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *WORDS, *LETTERS, *".,!?'-", *(f"##{c}" for c in LETTERS)]))


def tiny_tokenizer() -> BertTokenizerFast:
    """A WordPiece tokenizer with pad/unk/cls/sep/mask = 0..4; a text becomes ``[CLS] ... [SEP]``."""
    vocabulary = {piece: i for i, piece in enumerate(VOCABULARY)}
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=128)


def tiny_causal_tokenizer() -> PreTrainedTokenizerFast:
    """The same pieces for decoders: nothing is put around a text, ``[SEP]`` ends it (eos), no mask token."""
    vocabulary = {piece: i for i, piece in enumerate(VOCABULARY)}
    rules = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    rules.normalizer = normalizers.BertNormalizer(lowercase=True)
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.decoder = decoders.WordPiece()
    rules.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", model_max_length=128
    )


def size() -> int:
    """Pieces of both tokenizers."""
    return len(VOCABULARY)


def tiny_bert(seed: int = 0, **change: Any) -> BertForMaskedLM:
    """A random BERT masked LM: 2 layers, width 16, 2 heads; ``change`` overrides its configuration."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": size(),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 0,
    }
    return BertForMaskedLM(BertConfig(**{**settings, **change})).eval()


def tiny_llama(seed: int = 0, **change: Any) -> LlamaForCausalLM:
    """A random Llama causal LM: 2 layers, width 16, 2 heads."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": size(),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 3,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **change})).eval()


def tiny_gpt2(seed: int = 0, **change: Any) -> GPT2LMHeadModel:
    """A random GPT-2 causal LM: 2 layers, width 16, 2 heads."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": size(),
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "bos_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    return GPT2LMHeadModel(GPT2Config(**{**settings, **change})).eval()


KINDS = {
    "bert": (tiny_bert, tiny_tokenizer),
    "llama": (tiny_llama, tiny_causal_tokenizer),
    "gpt2": (tiny_gpt2, tiny_causal_tokenizer),
}


def tiny_folder(folder: Path, kind: str = "bert", seed: int = 0, **change: Any) -> Path:
    """Save a tiny model and its tokenizer to ``folder/kind`` and return that folder."""
    make_model, make_tokenizer = KINDS[kind]
    target = Path(folder) / kind
    make_model(seed, **change).save_pretrained(target)
    make_tokenizer().save_pretrained(target)
    return target


def sentences(n: int, seed: int = 0, words: int = 12) -> list[str]:
    """``n`` different texts of known words, for corpora made on the spot."""
    pick = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(WORDS), (n, words), generator=pick).tolist()
    return [f"{' '.join(WORDS[i] for i in row)} {number} ." for number, row in enumerate(draws)]
