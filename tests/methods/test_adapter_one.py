"""Adapter-ONE against adapters that were trained alone, without eunoe, in layers written out by hand."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from eunoe.contract.way import states
from eunoe.methods.adapter_one import AdapterOne
from eunoe.models.heads import Classifier
from eunoe.plugins.bottleneck import AdapterSettings, Bottleneck, attach
from tests.methods.by_hand import MODELS, batches, cross_entropy, descend, learn, plain, way
from tests.tiny import tiny_bert

CHOICE = {"name": "adapter-one", "reduction": 4, "places": "both"}


@pytest.mark.parametrize("kind", MODELS)
def test_each_domain_has_the_adapters_that_its_text_alone_makes_of_fresh_ones(kind: str) -> None:
    walk = way(CHOICE, kind)
    fresh = {n: p.detach().clone() for n, p in walk.make().model.named_parameters() if "_adapter." in n}
    alone = []
    for i in range(2):
        learn(walk, i)
        model = plain(kind)
        attach(model, AdapterSettings(reduction=4, places="both"))  # its arithmetic: tests/plugins/test_bottleneck.py
        model.double()
        own = {n: p for n, p in model.named_parameters() if "_adapter." in n}
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(fresh[name])
        descend(own.values(), lambda b, m=model: cross_entropy(m(b["input_ids"]).logits, b), batches(walk, i))
        alone.append(dict(model.named_parameters()))
    assert len(fresh) == 4 * 2 * 2, "two layers, two places, two linear maps each"
    method = walk.after(1)
    for domain, expected in (("food", alone[0]), ("law", alone[1])):
        method.activate(domain)
        for name, p in method.model.named_parameters():
            torch.testing.assert_close(p, expected[name], rtol=1e-9, atol=1e-12, msg=f"{domain}: {name}")
    assert max(float((alone[0][name] - alone[1][name]).detach().abs().max()) for name in fresh) > 1e-4
    assert torch.equal(states(method, None), states(walk.make(), None)), "text of no domain is read without adapters"


@pytest.mark.parametrize(("backbone", "frozen"), [("frozen", True), ("trained", False)])
def test_in_an_end_task_the_domains_adapters_train_and_the_backbone_if_it_may(backbone: str, frozen: bool) -> None:
    method = AdapterOne(tiny_bert(), AdapterSettings(backbone=backbone, reduction=4), ["a", "b"])  # type: ignore[arg-type]
    fresh = {name: tensor.clone() for name, tensor in method.fresh.items()}
    learnt = {name: torch.full_like(tensor, 0.25) for name, tensor in fresh.items()}
    method.restore("a", learnt, {}, "the final")
    method.activate(None)
    for domain, expected in (("a", learnt), ("b", fresh), (None, fresh)):
        copied = Classifier(deepcopy(method.model), 2, "first")
        assert method.for_end_task(copied, domain) == {}
        adapters = {f"bert.{n.removeprefix('trunk.')}": p for n, p in copied.named_parameters() if "_adapter." in n}
        assert adapters.keys() == expected.keys()
        assert all(torch.equal(p, expected[n]) and p.requires_grad for n, p in adapters.items())
        assert all(part.on for part in copied.modules() if isinstance(part, Bottleneck))
        rest = [p.requires_grad for n, p in copied.trunk.named_parameters() if "_adapter." not in n]
        assert set(rest) == {not frozen}
        assert copied.out.weight.requires_grad
