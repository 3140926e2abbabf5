"""Adapter-NCL: one set of adapters goes on from domain to domain, by the numbers of plain gradient descent; the model stays."""

from __future__ import annotations

import pytest
import torch

from eunoe.contract.tiny import tiny_bert
from eunoe.errors import EunoeError
from eunoe.methods import Method, choose_method
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


def combined(names: list[str]) -> Method:
    chosen = choose_method({"name": names}, "here")
    chosen.stages(["a", "b"])
    return chosen.build(tiny_bert(), ["a", "b"])


@pytest.mark.parametrize("other", ["ncl", "joint", "cpt", "adapter-one", "demix"])
def test_what_trains_other_weights_or_attaches_its_own_clashes(other: str) -> None:
    for names in (["adapter-ncl", other], [other, "adapter-ncl"]):
        with pytest.raises(EunoeError, match="cannot be combined"):
            combined(names)


def test_what_adds_a_term_goes_with_it_in_either_order() -> None:
    for names in (["adapter-ncl", "ewc"], ["ewc", "adapter-ncl"], ["ncl", "ewc"], ["l2", "ncl"]):
        trains = {name for name, p in combined(names).model.named_parameters() if p.requires_grad}
        assert any("_adapter." not in name for name in trains) == ("ncl" in names)
        assert any("_adapter." in name for name in trains) == ("adapter-ncl" in names)
