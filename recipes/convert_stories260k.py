"""Turn stories260K (llama2.c's format) into a folder that transformers and recipes read.

    python recipes/convert_stories260k.py $EUNOE_SHARED/data/stories260k models/stories260k

The model is Karpathy's smallest TinyStories model (MIT, https://huggingface.co/karpathy/tinyllamas): a real pretrained
Llama of 260 thousand weights, so a causal run takes minutes. ``stories260K.bin`` holds seven int32 and then float32
arrays, ``tok512.bin`` the pieces with their scores (https://github.com/karpathy/llama2.c, ``run.c``). Two things differ
from what transformers expects, and both are only a matter of order:

- run.c turns adjacent pairs (0, 1), (2, 3), ... of a head by the rotary angle, transformers' Llama the pairs
  (i, i + half): the rows of the query and key matrices are permuted within each head.
- run.c joins, again and again, the neighbours whose joined piece has the highest score: byte-pair encoding whose merges
  are ranked by the score of what they make, with no split into words before it.
"""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MARKS = {1: "<s>", 2: "</s>"}
"""What pieces 1 and 2 are called here; in the file they are written with line breaks around them."""


def read_pieces(file: Path) -> list[tuple[str, float]]:
    """The (piece, score) pairs of a ``tok*.bin``, by id; raises ``ValueError`` if it is cut short or holds anything else."""
    data, place, pieces = file.read_bytes(), 4, []
    while place < len(data):
        try:
            score, length = struct.unpack_from("<fi", data, place)
            piece = data[place + 8 : place + 8 + length]
            if len(piece) != length:
                raise ValueError
            pieces.append((piece.decode("utf-8"), score))
        except (struct.error, ValueError):
            raise ValueError(f"{file} is damaged or no tok512.bin: a score, a length and a piece are expected at byte {place} "
                             f"of {len(data)}") from None  # fmt: skip
        place += 8 + length
    return [(MARKS.get(i, piece), score) for i, (piece, score) in enumerate(pieces)]


def tokenizer(pieces: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """The same greedy encoding as run.c, as a fast tokenizer; a text becomes ``<s> ...``."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    ranked = sorted((-score, i, piece) for i, (piece, score) in enumerate(pieces) if i >= 3 and not _is_byte(piece))
    merges = [
        (piece[:cut], piece[cut:])
        for _, _, piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    rules = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    rules.normalizer = normalizers.Prepend(" ")
    rules.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    rules.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def model(file: Path) -> LlamaForCausalLM:
    """The weights of ``stories260K.bin`` in transformers' Llama; raises ``ValueError`` for another length or header."""
    data = file.read_bytes()
    if len(data) < 28 or len(data) % 4:
        raise ValueError(f"{file} has {len(data)} bytes, seven int32 and then float32 numbers are expected")
    width, inner, layers, heads, kv_heads, pieces, context = sizes = struct.unpack_from("<7i", data)
    if min(sizes) < 1 or width % (2 * heads) or heads % kv_heads:
        raise ValueError(f"{file} begins with {sizes}, which are not the width, layers, heads ... of a llama2.c model")
    values, place = np.frombuffer(data, dtype="<f4", offset=28), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        size = math.prod(shape)
        if place + size > len(values):
            raise ValueError(f"{file} is cut short: {len(values)} numbers, {place + size} and more needed")
        place += size
        return torch.from_numpy(values[place - size : place].reshape(shape).copy())

    head, kv_width = width // heads, width // heads * kv_heads
    embedding = take(pieces, width)
    parts = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": half_split(take(layers, width, width), head),
        "self_attn.k_proj": half_split(take(layers, kv_width, width), head),
        "self_attn.v_proj": take(layers, kv_width, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, inner, width),
        "mlp.down_proj": take(layers, width, inner),
        "mlp.up_proj": take(layers, inner, width),
    }
    norm = take(width)
    take(2, context, head // 2)  # the rotary tables, which transformers computes
    if place != len(values):
        raise ValueError(f"{file} has {len(values)} numbers, its header asks for {place}")
    config = LlamaConfig(
        vocab_size=pieces, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=context, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    weights: dict[str, Any] = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding,
        "model.norm.weight": norm,
    }
    weights |= {f"model.layers.{i}.{name}.weight": part[i] for name, part in parts.items() for i in range(layers)}
    llama.load_state_dict(weights)
    return llama.eval()


def half_split(rows: torch.Tensor, head: int) -> torch.Tensor:
    """Rows (layers, heads * head, width) with each head's pairs moved from (2i, 2i + 1) to (i, i + head / 2)."""
    layers, out, width = rows.shape
    return rows.reshape(layers, out // head, head // 2, 2, width).transpose(2, 3).reshape(layers, out, width)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x")


def convert(source: Path, target: Path) -> None:
    """Write ``target``: config.json, model.safetensors and the tokenizer. Both files are read before anything is written."""
    llama, pieces = model(source / "stories260K.bin"), read_pieces(source / "tok512.bin")
    if len(pieces) != llama.config.vocab_size:
        raise ValueError(f"{source / 'tok512.bin'} has {len(pieces)} pieces, the model needs {llama.config.vocab_size}")
    target.mkdir(parents=True, exist_ok=True)
    llama.save_pretrained(target)
    tokenizer(pieces).save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python recipes/convert_stories260k.py FOLDER_WITH_STORIES260K TARGET_FOLDER")
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot convert: {error}.\nGive the folder that holds stories260K.bin and tok512.bin (folder stories260K of "
                 "https://huggingface.co/karpathy/tinyllamas), and a folder to write to.")  # fmt: skip
