"""The tiny models and texts of the contract, which all tests share."""

from eunoe.contract.tiny import (
    LETTERS,
    SPECIAL,
    VOCABULARY,
    WORDS,
    sentences,
    size,
    tiny_bert,
    tiny_causal_tokenizer,
    tiny_folder,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
)

__all__ = [
    "LETTERS",
    "SPECIAL",
    "VOCABULARY",
    "WORDS",
    "sentences",
    "size",
    "tiny_bert",
    "tiny_causal_tokenizer",
    "tiny_folder",
    "tiny_gpt2",
    "tiny_llama",
    "tiny_tokenizer",
]
