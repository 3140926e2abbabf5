"""ONE against models that were trained alone, without eunoe."""

from __future__ import annotations

import pytest
import torch

from tests.methods.by_hand import MODELS, batches, cross_entropy, descend, learn, plain, way


@pytest.mark.parametrize("kind", MODELS)
def test_each_domain_has_the_model_that_its_text_alone_makes_of_the_pretrained_one(kind: str) -> None:
    walk = way("one", kind)
    alone = []
    for i in range(2):
        learn(walk, i)
        model = plain(kind)
        descend(model.parameters(), lambda b, m=model: cross_entropy(m(b["input_ids"]).logits, b), batches(walk, i))
        alone.append(dict(model.named_parameters()))
    method = walk.after(1)
    for domain, expected in (("food", alone[0]), ("law", alone[1]), (None, dict(plain(kind).named_parameters()))):
        method.activate(domain)
        for name, p in method.model.named_parameters():
            torch.testing.assert_close(p, expected[name], rtol=1e-9, atol=1e-12, msg=f"{domain}: {name}")
    apart = max(float((alone[0][name] - alone[1][name]).detach().abs().max()) for name in alone[0])
    assert apart > 1e-3


def test_in_an_end_task_the_whole_model_of_its_domain_trains() -> None:
    from copy import deepcopy

    from eunoe.models.heads import Classifier

    walk = way("one", "masked")
    for i in range(2):
        learn(walk, i)
    method = walk.after(1)
    method.activate(None)
    copied = Classifier(deepcopy(method.model), 2, "first").double()
    assert method.for_end_task(copied, "law") == {}
    method.activate("law")
    base = dict(method.model.bert.named_parameters())  # type: ignore[operator,union-attr]
    for name, p in copied.trunk.named_parameters():
        assert torch.equal(p, base[name]), name
    assert all(p.requires_grad for p in copied.parameters())
