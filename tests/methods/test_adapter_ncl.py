"""Adapter-NCL: one set of adapters goes on from domain to domain, by the numbers of plain gradient descent; the model stays."""

from __future__ import annotations

import pytest
import torch

from eunoe.contract.tiny import tiny_bert
from eunoe.errors import EunoeError
from eunoe.methods import choose_method
from eunoe.plugins.bottleneck import AdapterSettings, attach
from tests.methods.by_hand import MODELS, batches, cross_entropy, descend, learn, plain, way


@pytest.mark.parametrize("kind", MODELS)
def test_the_second_domain_goes_on_where_the_first_left_the_adapters(kind: str) -> None:
    walk = way({"name": "adapter-ncl", "reduction": 4}, kind)
    begun = dict(walk.make().model.named_parameters())
    for i in range(2):
        learn(walk, i)
    model = plain(kind)
    attach(model, AdapterSettings(reduction=4))
    model.double()
    own = [n for n in begun if "_adapter." in n]
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in own:
            weights[name].copy_(begun[name])
    for i in range(2):
        descend([weights[n] for n in own], lambda b: cross_entropy(model(b["input_ids"]).logits, b), batches(walk, i))
    for name, p in walk.after(1).model.named_parameters():
        if name in own:
            torch.testing.assert_close(p, weights[name], rtol=1e-9, atol=1e-12)
            assert not torch.equal(p, begun[name])
        else:
            assert torch.equal(p, begun[name]), f"{name} is the pretrained model's"


@pytest.mark.parametrize("other", ["ncl", "joint", "cpt", "adapter-one", "demix"])
def test_what_trains_other_weights_or_attaches_its_own_clashes(other: str) -> None:
    for names in (["adapter-ncl", other], [other, "adapter-ncl"]):
        with pytest.raises(EunoeError, match="cannot be combined"):
            chosen = choose_method({"name": names}, "here")
            chosen.stages(["a", "b"])
            chosen.build(tiny_bert(), ["a", "b"])
