"""What a causal LM answers to a prompt, before and after it learnt other things: greedy, so the same every time."""

from __future__ import annotations

from typing import Any

import torch

from eunoe.models.load import LanguageModel


@torch.inference_mode()
def answer(lm: LanguageModel, prompt: str, tokens: int) -> str:
    """The greedy continuation of ``prompt`` by at most ``tokens`` tokens, without the prompt; ends where the model ends it.

    A tokenizer with a chat template gets the prompt as a user's message, as such a model was trained to be asked.

    >>> answer(load_lm(ModelSettings(name="smollm2")), "What is the capital of France?", 16)  # doctest: +SKIP
    'The capital of France is Paris.'
    """
    lm.model.eval()
    if getattr(lm.tokenizer, "chat_template", None):
        asked = lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        asked = lm.tokenizer(prompt, truncation=False, padding=False, return_tensors="pt", return_token_type_ids=False)
    asked = asked.to(next(lm.model.parameters()).device)
    model: Any = lm.model  # every causal LM of transformers can generate
    found = model.generate(
        **asked, max_new_tokens=tokens, do_sample=False, num_beams=1, pad_token_id=lm.tokenizer.eos_token_id
    )
    text: str = lm.tokenizer.decode(found[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


__all__ = ["answer"]
