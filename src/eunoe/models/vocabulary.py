"""New words for a language model: rows at the end of its embedding table and of its LM head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.models.anatomy import anatomy


def add_words(lm: nn.Module, words: int, std: float = 0.02) -> list[int]:
    """Give ``lm``, in place, ``words`` new words; returns their ids, which follow the last row of its embedding table.

    The new rows are drawn from N(0, ``std``), as GPT-1's code does; every other row keeps its bits, also those that the tokenizer does
    not use. A tied LM head stays tied; another gets rows of its own, and zeros in its bias. The modules stay the same objects, so
    hooks and plug-ins on them hold. Raises ``EunoeError`` where the table is not an embedding or the head not linear.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> lm = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, n_positions=4))
    >>> add_words(lm, 3), lm(input_ids=torch.tensor([[11, 2]])).logits.shape
    ([9, 10, 11], torch.Size([1, 2, 12]))
    """
    table, head = words_of(lm)
    first, tied = table.num_embeddings, head.weight is table.weight
    table.weight = _longer(table.weight, words, std)
    head.weight = table.weight if tied else _longer(head.weight, words, std)
    if isinstance(head.bias, nn.Parameter):
        head.bias = _longer(head.bias, words, 0.0)
    table.num_embeddings = head.out_features = first + words
    return list(range(first, first + words))


def words_of(lm: nn.Module) -> tuple[nn.Embedding, nn.Linear]:
    """The embedding table and the LM head that ``add_words`` makes longer; raises ``EunoeError`` where they are something else."""
    table, head = anatomy(lm).embeddings, lm.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        raise EunoeError(
            f"{type(lm).__name__} reads words with {type(table).__name__} and writes them with {type(head).__name__}; new words need an "
            "embedding table and a linear LM head. Merge an adapter that stands around them first."
        )
    return table, head


def _longer(weight: Tensor, rows: int, std: float) -> nn.Parameter:
    new = torch.empty(
        rows, *weight.shape[1:], dtype=weight.dtype
    )  # drawn on the CPU, so the same weights start anywhere
    more: Tensor = nn.init.normal_(new, std=std) if std else nn.init.zeros_(new)
    return nn.Parameter(torch.cat([weight.detach(), more.to(weight.device)]), requires_grad=weight.requires_grad)


__all__ = ["add_words", "words_of"]
