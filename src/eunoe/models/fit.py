"""Whether the parts of a loaded model fit each other: model, tokenizer, objective, lengths. Asked once, before anything is written.

Each is asked of what really acts and not of a neighbouring setting: how many rows the embedding has, which tokens the tokenizer
gives, and what a position of the model sees, which is tried out on three tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import only_positions

if TYPE_CHECKING:
    from eunoe.models.load import LanguageModel

FEW = 10
"""A tokenizer is of another model if the embedding has more than this many rows for each of its tokens."""
SAMPLE = 50
"""Tokens that are written out as text and read again."""


def check_fit(lm: LanguageModel, files: Collection[str] = ()) -> None:
    """Refuse a model whose parts do not fit each other; ``files``: names of those that it was loaded from.

    Raises ``EunoeError`` unless the tokenizer has words, all its tokens have a row in the embedding, the special tokens of the
    objective are there, and the model sees what its objective needs and no more. No random number that others see is drawn.
    """
    with reading(
        f"the model {lm.name!r}",
        "Are its config.json and tokenizer those that save_pretrained wrote with these weights?",
    ):
        rows = anatomy(lm.model).embeddings.get_parameter("weight").shape[0]
        vocabulary = lm.tokenizer.get_vocab()
        words = sorted(set(vocabulary.values()) - set(lm.tokenizer.all_special_ids))
        _refuse_no_tokenizer(lm, words, rows, files)
        _refuse_beyond(lm, max(len(lm.tokenizer), *(i + 1 for i in vocabulary.values())), rows)
        _refuse_without_mask(lm)
        _refuse_no_words(lm, words)
        _refuse_other_direction(lm, words)


def _refuse_no_tokenizer(lm: LanguageModel, words: list[int], rows: int, files: Collection[str]) -> None:
    """transformers makes an empty tokenizer for a folder without one."""
    if words and len(words) * FEW >= rows:
        return
    needed = dict.fromkeys(["tokenizer.json", *getattr(lm.tokenizer, "vocab_files_names", {}).values()])
    missing = ", ".join(name for name in needed if name not in files)
    raise EunoeError(
        f"{lm.name!r} comes without its tokenizer: what was found has {len(words)} tokens besides special ones, for "
        f"an embedding of {rows} rows. {f'Missing beside the weights: {missing}. ' * bool(missing)}Copy the tokenizer's "
        "files from where the model comes from, or save them there: tokenizer.save_pretrained(FOLDER)."
    )


def _refuse_beyond(lm: LanguageModel, tokens: int, rows: int) -> None:
    """A larger embedding is fine: many are padded to a round number of rows."""
    if tokens > rows:
        raise EunoeError(
            f"the tokenizer of {lm.name!r} has {tokens} tokens, but the model's embedding has {rows} rows: the last "
            f"{tokens - rows} have none. Make it larger and save both: "
            "model.resize_token_embeddings(len(tokenizer)); model.save_pretrained(FOLDER); "
            "tokenizer.save_pretrained(FOLDER)."
        )


def _refuse_without_mask(lm: LanguageModel) -> None:
    if lm.objective != "masked":
        return
    mask, unknown = lm.tokenizer.mask_token_id, lm.tokenizer.unk_token_id
    if mask is None or mask == unknown:
        raise EunoeError(
            f"{lm.name!r} is a masked LM, but its tokenizer has no mask token{' of its own' * (mask is not None)}. "
            "Give it the one that the model was pretrained with: "
            "tokenizer.add_special_tokens({'mask_token': '[MASK]'}); tokenizer.save_pretrained(FOLDER)."
        )


def _refuse_no_words(lm: LanguageModel, words: list[int]) -> None:
    """A tokenizer may know many tokens and still find none of them in a text."""
    text = lm.tokenizer.decode(words[:: max(1, len(words) // SAMPLE)])
    ids = lm.tokenizer(text)["input_ids"]
    if not set(ids) - set(lm.tokenizer.all_special_ids):
        raise EunoeError(
            f"the tokenizer of {lm.name!r} does not know its own tokens: of {visible(text, 60)!r} it makes special "
            "tokens alone. Save it again from where the model comes from."
        )


@torch.no_grad()
def _refuse_other_direction(lm: LanguageModel, words: list[int]) -> None:
    ids = (words[len(words) // 2 :] * 3)[:3]
    rows = anatomy(lm.model).embeddings.get_parameter("weight")
    other = next((i for i in words if not torch.equal(rows[i], rows[ids[-1]])), None)
    if other is None:
        raise EunoeError(f"all words of {lm.name!r} have the same embedding: its weights are damaged.")
    states = [_states(lm.model, [*ids[:-1], last]) for last in (ids[-1], other)]
    with torch.random.fork_rng(devices=[]):  # rates of dropout are only looked at in training
        lm.model.train()
        logits = _logits(lm.model, ids)
        lm.model.eval()
    if not all(numbers.isfinite().all() for numbers in (*states, logits)):
        raise EunoeError(
            f"{lm.name!r} computes numbers that are not finite. Are its weights or its config.json damaged?"
        )
    seen = float((states[0][0, 0] - states[1][0, 0]).abs().max()) / (float(states[0][0, 0].abs().max()) or 1.0)
    kind = visible(anatomy(lm.model).model_type)
    if lm.objective == "causal" and seen > 1e-5:
        raise EunoeError(
            f"{lm.name!r} ({kind}) would be trained as a causal LM, but it also reads what stands after a token, "
            "and so the token that it is to predict. Leave model.objective out, or set it to masked; a decoder of "
            "this type says is_decoder: true in its config.json."
        )
    if lm.objective == "masked" and seen == 0:
        raise EunoeError(
            f"{lm.name!r} ({kind}) would be trained as a masked LM, but it reads only what stands before a token "
            "(is_decoder). Set model.objective: causal."
        )


def _states(model: nn.Module, ids: list[int]) -> Tensor:
    """Hidden states (1, tokens, width)."""
    states: Tensor = anatomy(model).base(input_ids=torch.tensor([ids]))[0]
    return states


def _logits(model: Any, ids: list[int]) -> Tensor:
    with only_positions(model, torch.tensor([0])):
        logits: Tensor = model(input_ids=torch.tensor([ids])).logits
    return logits


__all__ = ["check_fit"]
