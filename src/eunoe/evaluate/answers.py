"""What a model answers to a prompt, before and after it learnt other things; the same every time.

A causal LM continues the prompt, greedily. A masked LM says what it would write in the place of each mask token: its likeliest
tokens with their probabilities, as one alone would hide how sure it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eunoe.data.tokens import backward
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.models.heads import target_logits
from eunoe.models.load import LanguageModel

LIKELIEST = 3
"""Tokens that a masked LM names for each mask."""


@torch.inference_mode()
def answer(lm: LanguageModel, prompt: str, tokens: int) -> str:
    """What the model answers to ``prompt`` as it now reads text (``Method.activate``).

    A causal LM: its greedy continuation by at most ``tokens`` tokens, without the prompt; it ends where the model ends it. A
    tokenizer with a chat template gets the prompt as a user's message, as such a model was trained to be asked. A masked LM: for
    each mask token the three likeliest tokens, with what percentage of the probability each has; ``/`` between two masks. Each
    mask is filled in by itself.

    >>> answer(load_lm(ModelSettings(name="smollm2")), "What is the capital of France?", 16)  # doctest: +SKIP
    'The capital of France is Paris.'
    >>> answer(load_lm(ModelSettings(name="minilm")), "The singer released her new [MASK] last year.", 1)  # doctest: +SKIP
    'song 7 %, album 4 %, songs 3 %'
    """
    lm.model.eval()
    inputs = _encode(lm, prompt).to(next(lm.model.parameters()).device)
    ids: Tensor = inputs["input_ids"]
    if lm.objective == "masked":
        places = (ids.flatten() == lm.mask_id).nonzero().flatten()
        logits = target_logits(lm.model, {"input_ids": ids, "positions": places}).float()
        return " / ".join(_likeliest(lm, row) for row in torch.softmax(logits, -1))
    model: Any = lm.model  # every causal LM of transformers can generate
    generated = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, num_beams=1, pad_token_id=lm.tokenizer.eos_token_id
    )
    text: str = lm.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    return text


def _likeliest(lm: LanguageModel, probabilities: Tensor) -> str:
    values, tokens = probabilities.topk(min(LIKELIEST, len(probabilities)))
    return ", ".join(
        f"{lm.tokenizer.decode([token]).strip() or lm.tokenizer.convert_ids_to_tokens(token)} {100 * value:.0f} %"
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True)
    )


def refuse_unanswerable(lm: LanguageModel, prompts: Sequence[str], tokens: int, where: str) -> None:
    """Raise ``EunoeError`` for prompts that the model cannot answer: of a masked LM without a mask token, of one that reads backward,
    or prompt and answer beyond its positions."""
    masked = lm.objective == "masked"
    if prompts and backward(lm.tokenizer):
        raise EunoeError(f"{where}.prompts is given, but {lm.name!r} reads text from its end: it knows what stood before a text, not what "
                         "follows. Leave the prompts out, or name the forward model.")  # fmt: skip
    for prompt in prompts:
        ids = _encode(lm, prompt)["input_ids"]
        length, new = ids.shape[1], 0 if masked else tokens
        if masked and not (ids == lm.mask_id).any():
            raise EunoeError(
                f"{where}.prompts: {visible(prompt, 60)!r} has no {lm.tokenizer.mask_token}, and {lm.name!r} is a masked LM, which "
                f"continues no text but fills in its mask token. Write {lm.tokenizer.mask_token} where a word is to be filled in, "
                "or name a causal LM."
            )
        if lm.positions is not None and length + new > lm.positions:
            if masked:
                raise EunoeError(f"{where}: the prompt {visible(prompt, 40)!r} is {length} tokens, but {lm.name!r} reads at most "
                                 f"{lm.positions} at once. Shorten the prompt.")  # fmt: skip
            most = max(1, lm.positions - length)
            raise EunoeError(
                f"{where}: the prompt {visible(prompt, 40)!r} is {length} tokens and its answer up to {tokens}, but {lm.name!r} "
                f"reads at most {lm.positions} at once. Shorten the prompt, or set answer_tokens to {most} or less."
            )


def _encode(lm: LanguageModel, prompt: str) -> Any:
    if lm.objective == "causal" and getattr(lm.tokenizer, "chat_template", None):
        return lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    return lm.tokenizer(prompt, truncation=False, padding=False, return_tensors="pt", return_token_type_ids=False)


__all__ = ["answer", "refuse_unanswerable"]
