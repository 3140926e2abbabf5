"""Soft prompts against word vectors put together by hand: padding, generation with and without a cache, every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eunoe.models.anatomy import anatomy
from eunoe.plugins.prompt import Prompt, attach_prompt
from tests.models.families import tiny
from tests.tiny import tiny_bert, tiny_gpt2, tiny_llama

IDS = torch.arange(5, 37).reshape(2, 16)


def prompted(model: Any, n: int = 3) -> Prompt:
    prompt = attach_prompt(model, n)
    torch.manual_seed(5)
    with torch.no_grad():
        prompt.vectors.normal_()
    return prompt


def test_it_starts_as_the_first_pieces_of_the_vocabulary_begun_again_where_there_are_too_few() -> None:
    model = tiny_bert()
    words = model.bert.embeddings.word_embeddings.weight
    vectors = attach_prompt(model, len(words) + 2).vectors
    assert torch.equal(vectors, torch.cat([words, words[:2]]))


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, tiny_llama])
def test_the_text_is_read_behind_it_and_its_own_states_are_left_out(make: Any) -> None:
    model, plain = make(), make()
    vectors = prompted(model).vectors
    words = plain.get_input_embeddings()(IDS)
    whole = plain(inputs_embeds=torch.cat([vectors.expand(2, -1, -1), words], 1)).logits
    torch.testing.assert_close(model(IDS).logits, whole[:, 3:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(input_ids=IDS).logits, whole[:, 3:], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(whole[:, 3:], plain(IDS).logits, atol=1e-3)
    layers = model(IDS, output_hidden_states=True).hidden_states
    expected = plain(inputs_embeds=torch.cat([vectors.expand(2, -1, -1), words], 1), output_hidden_states=True)
    for states, own in zip(layers, expected.hidden_states, strict=True):
        torch.testing.assert_close(states, own[:, 3:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, tiny_llama])
def test_how_far_a_row_is_padded_changes_nothing(make: Any) -> None:
    model = make()
    prompted(model)
    base = anatomy(model).base
    row = IDS[:1, :9]
    padded = torch.cat([row, torch.zeros(1, 7, dtype=torch.long)], 1)
    mask = (torch.arange(16) < 9).long()[None]
    alone = base(input_ids=row, attention_mask=torch.ones_like(row))[0]
    torch.testing.assert_close(base(input_ids=padded, attention_mask=mask)[0][:, :9], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_generation_with_a_cache_is_generation_without(make: Any) -> None:
    model, plain = make(initializer_range=0.5), make(initializer_range=0.5)
    vectors = prompted(model).vectors
    asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = IDS[:1, :6]
    cached = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **asked)
    assert torch.equal(cached, model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **asked))
    for _ in range(8):  # by hand: the whole text again for each token
        words = torch.cat([vectors[None], plain.get_input_embeddings()(ids)], 1)
        ids = torch.cat([ids, plain(inputs_embeds=words).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, ids)
    assert len(set(cached[0, 6:].tolist())) > 1


FAMILIES = [
    "albert",
    "deberta-v2",
    "distilbert",
    "electra",
    "gemma3_text",
    "gpt_neox",
    "modernbert",
    "qwen3",
    "roberta",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_behind_it_and_is_its_base_without(family: str) -> None:
    model = tiny(family)
    ids = torch.arange(5, 21).reshape(2, 8)
    base = anatomy(model).base
    before, logits = base(input_ids=ids)[0], model(ids).logits
    prompt = prompted(model)
    assert base(input_ids=ids, attention_mask=torch.ones_like(ids))[0].shape == before.shape
    assert not torch.allclose(model(ids).logits, logits, atol=1e-4)
    model(ids).logits.square().sum().backward()
    assert float(prompt.vectors.grad.abs().max()) > 0  # type: ignore[union-attr]
    prompt.on = False
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(base(input_ids=ids)[0], before)
