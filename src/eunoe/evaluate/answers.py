"""What a causal LM answers to a prompt, before and after it learnt other things: greedy, so the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from eunoe.data.tokens import backward
from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.models.load import LanguageModel


@torch.inference_mode()
def answer(lm: LanguageModel, prompt: str, tokens: int) -> str:
    """The greedy continuation of ``prompt`` by at most ``tokens`` tokens, without the prompt; ends where the model ends it.

    A tokenizer with a chat template gets the prompt as a user's message, as such a model was trained to be asked.

    >>> answer(load_lm(ModelSettings(name="smollm2")), "What is the capital of France?", 16)  # doctest: +SKIP
    'The capital of France is Paris.'
    """
    lm.model.eval()
    inputs = _encode(lm, prompt).to(next(lm.model.parameters()).device)
    model: Any = lm.model  # every causal LM of transformers can generate
    generated = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, num_beams=1, pad_token_id=lm.tokenizer.eos_token_id
    )
    text: str = lm.tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def refuse_unanswerable(lm: LanguageModel, prompts: Sequence[str], tokens: int, where: str) -> None:
    """Raise ``EunoeError`` for prompts that the model cannot continue: masked, backward, or prompt and answer beyond its positions."""
    if prompts and lm.objective != "causal":
        raise EunoeError(f"{where}.prompts is given, but {lm.name!r} is a masked LM, which continues no text. Leave the prompts out, or "
                         "name a causal LM.")  # fmt: skip
    if prompts and backward(lm.tokenizer):
        raise EunoeError(f"{where}.prompts is given, but {lm.name!r} reads text from its end: it knows what stood before a text, not what "
                         "follows. Leave the prompts out, or name the forward model.")  # fmt: skip
    for prompt in prompts:
        length = _encode(lm, prompt)["input_ids"].shape[1]
        if lm.positions is not None and length + tokens > lm.positions:
            most = max(1, lm.positions - length)
            raise EunoeError(
                f"{where}: the prompt {visible(prompt, 40)!r} is {length} tokens and its answer up to {tokens}, but {lm.name!r} "
                f"reads at most {lm.positions} at once. Shorten the prompt, or set answer_tokens to {most} or less."
            )


def _encode(lm: LanguageModel, prompt: str) -> Any:
    if getattr(lm.tokenizer, "chat_template", None):
        return lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    return lm.tokenizer(prompt, truncation=False, padding=False, return_tensors="pt", return_token_type_ids=False)


__all__ = ["answer", "refuse_unanswerable"]
