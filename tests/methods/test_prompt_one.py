"""Prompt-ONE against prompts that were trained alone, without eunoe; positions that a prompt takes; a frozen model that was trained."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eunoe.contract.tiny_run import tiny_settings
from eunoe.contract.way import states
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.models.heads import Classifier
from eunoe.plugins.prompt import Prompt
from eunoe.recipe import load_recipe
from tests.methods.by_hand import MODELS, batches, cross_entropy, descend, learn, plain, way
from tests.tiny import tiny_folder

CHOICE = {"name": "prompt-one", "length": 5}


@pytest.mark.parametrize("kind", MODELS)
def test_each_domain_has_the_prompt_that_its_text_alone_makes(kind: str) -> None:
    walk = way(CHOICE, kind)
    alone = []
    for i in range(2):
        learn(walk, i)
        model = plain(kind)
        words = model.get_input_embeddings()
        prompt = torch.nn.Parameter(words.weight[:5].detach().clone())

        def loss(batch: dict[str, Any], model: Any = model, words: Any = words, prompt: Any = prompt) -> Any:
            ids = batch["input_ids"]
            read = model(inputs_embeds=torch.cat([prompt.expand(len(ids), -1, -1), words(ids)], 1)).logits
            return cross_entropy(read[:, 5:], batch)

        descend([prompt], loss, batches(walk, i))
        alone.append(prompt)
    method = walk.after(1)
    (name,) = [n for n, _ in method.model.named_parameters() if "prompt" in n]
    for domain, expected in (("food", alone[0]), ("law", alone[1])):
        method.activate(domain)
        torch.testing.assert_close(dict(method.model.named_parameters())[name], expected, rtol=1e-9, atol=1e-12)
    for n, p in method.model.named_parameters():
        assert n == name or torch.equal(p, dict(plain(kind).named_parameters())[n])
    assert float((alone[0] - alone[1]).detach().abs().max()) > 1e-5
    assert torch.equal(states(method, None), states(walk.make(), None))


def test_in_an_end_task_the_domains_prompt_and_the_classifier_train() -> None:
    walk = way(CHOICE, "masked")
    learn(walk, 0)
    method = walk.after(0)
    method.activate("food")
    vectors = method.model.bert.prompt.vectors.detach().clone()  # type: ignore[operator,union-attr]
    method.activate(None)
    copied = Classifier(deepcopy(method.model), 2, "first").double()
    method.for_end_task(copied, "food")
    assert {n for n, p in copied.trunk.named_parameters() if p.requires_grad} == {"prompt.vectors"}
    (prompt,) = [part for part in copied.modules() if isinstance(part, Prompt)]
    assert prompt.on
    assert torch.equal(prompt.vectors, vectors)
    short, long = torch.arange(5, 13)[None], torch.tensor([[*range(5, 13), 0, 0, 0]])
    copied.eval()
    torch.testing.assert_close(
        copied(input_ids=short, attention_mask=torch.ones_like(short)),
        copied(input_ids=long, attention_mask=(long > 0).long()),
    )


def test_a_prompt_teaches_a_frozen_model_that_was_trained() -> None:
    """It was taught two sentences of the same words; the text is one of them, and the prompt can say which."""
    torch.manual_seed(0)
    walk = way({"name": "prompt-one", "length": 4}, "causal")
    method = walk.make()
    words = torch.randperm(30) + 10
    first, second = words, words[torch.randperm(30)]
    both = torch.stack([first, second])
    positions = torch.cat([torch.arange(29), torch.arange(29) + 30])
    batch = {"input_ids": both, "positions": positions, "labels": both[:, 1:].flatten()}
    model, prompt = method.model, method.plugs[0]  # type: ignore[attr-defined]
    prompt.on = False
    adam = torch.optim.Adam([p for n, p in model.named_parameters() if "prompt" not in n], 0.01)
    model.requires_grad_(True)
    for _ in range(150):
        adam.zero_grad()
        cross_entropy(model(both).logits, batch).backward()
        adam.step()
    one = {"input_ids": first[None], "positions": torch.arange(29), "labels": first[1:]}
    prompt.on = True
    adam = torch.optim.Adam([prompt.vectors], 0.1)
    losses = []
    for _ in range(60):
        adam.zero_grad()
        loss = cross_entropy(model(first[None]).logits, one)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


LONG = {"name": "finetune", "max_length": 32}
SHORT = {"name": "finetune", "max_length": 16}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"training": {"block": 32, "steps": 2}},
        r"block with the 100 prompt tokens of prompt-one is 132, but .* at most 128",
    ),
    ({"transfer": LONG}, r"transfer\.max_length is 32, but .* at most 28 tokens at once beside a prompt of 100"),
    (
        {"transfer": SHORT, "evaluation": {"prompts": ["the team"], "answer_tokens": 40}},
        "set answer_tokens to 26 or less",
    ),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_positions_that_the_prompt_leaves_too_few_are_refused_before_anything_is_written(
    change: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    made = tiny_settings(
        tmp_path, methods=["prompt-one"], seeds=[0], model={"name": str(tiny_folder(tmp_path, "gpt2"))}
    )
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**made, **change}), encoding="utf-8")
    with pytest.raises(EunoeError, match=said):
        run(load_recipe(file), tmp_path / "out", "x")
    assert not (tmp_path / "out").exists()
