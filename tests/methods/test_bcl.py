"""BCL by hand: squash, routing, what a domain's vote reads, what trains, and what of it an earlier domain loses."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eunoe.contract.way import Way, states
from eunoe.evaluate.evaluator import hidden_states
from eunoe.methods.bcl import BclSettings
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import Classifier
from eunoe.plugins.capsule import routing, squash
from tests.methods.test_hat import begun
from tests.tiny import tiny_bert, tiny_gpt2

CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])


def test_squash_keeps_the_direction_and_brings_the_length_below_one() -> None:
    assert squash(torch.tensor([3.0, 0.0, 4.0])).tolist() == pytest.approx([0.6 * 25 / 26, 0.0, 0.8 * 25 / 26])
    zero = torch.zeros(3, requires_grad=True)
    squash(zero).sum().backward()
    assert squash(zero).tolist() == [0, 0, 0]
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def by_hand(u: list[list[float]], iterations: int) -> list[float]:
    """Routing with plain numbers."""
    b = [0.0] * len(u)
    vote: list[float] = []
    for _ in range(iterations):
        c = [math.exp(x) / sum(map(math.exp, b)) for x in b]
        vote = [sum(ci * ui[k] for ci, ui in zip(c, u, strict=True)) for k in range(len(u[0]))]
        length = math.sqrt(sum(x * x for x in vote))
        out = [x * length / (1 + length**2) for x in vote]
        b = [bi + sum(x * y for x, y in zip(ui, out, strict=True)) for bi, ui in zip(b, u, strict=True)]
    return vote


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_routing_by_hand(iterations: int) -> None:
    u = [[1.0, 0.5, -0.2], [0.9, 0.7, 0.1], [-2.0, 0.3, 0.4]]
    assert routing(torch.tensor(u), iterations).tolist() == pytest.approx(by_hand(u, iterations), rel=1e-5)
    both = torch.stack([torch.tensor(u), torch.tensor(u).flip(0)])
    assert routing(both, iterations).shape == (2, 3)
    torch.testing.assert_close(routing(both, iterations)[0], routing(both, iterations)[1])
    if iterations == 3:
        assert by_hand(u, 3) != pytest.approx(by_hand(u, 1), rel=1e-2), "the rounds change something"


@MODELS
def test_an_adapter_reads_x_plus_the_vote_of_the_domains_so_far(make: Any) -> None:
    """Everything worked out for one token, for the second of three domains: two capsules vote."""
    way = Way("bcl", make).walked(1)
    method: Any = way.before(1)
    begun(way, method, 1)
    adapter = next(iter(method.adapters.values()))
    caps, s = adapter.capsules, 2.0
    method.active.s = s
    x = torch.randn(16)
    says = []
    for i in (0, 1):
        into = caps.into[i]
        v = into[1].weight @ (into[0].weight @ x + into[0].bias) + into[1].bias
        length = float(v.norm().detach())
        says.append((caps.say[i] @ (v * length / (1 + length**2))).tolist())
    vote = torch.tensor(by_hand(says, 3))
    inside = x + caps.out[1].weight @ vote + caps.out[1].bias
    m1, m2 = (torch.sigmoid(s * mask.embedding) for mask in (adapter.mask1, adapter.mask2))
    h = m1 * F.gelu(adapter.fc1.weight @ inside + adapter.fc1.bias)
    torch.testing.assert_close(
        adapter(x), x + m2 * F.gelu(adapter.fc2.weight @ h + adapter.fc2.bias), rtol=1e-4, atol=1e-5
    )


def test_sizes_are_the_settings() -> None:
    assert (BclSettings().capsule_size, BclSettings().iterations, BclSettings().sparsity) == (3, 3, 0.75)
    method: Any = Way({"name": "bcl", "capsule_size": 2, "capsule_hidden": 7}).make()
    caps = next(iter(method.adapters.values())).capsules
    assert caps.into[2][0].weight.shape == (7, 16)
    assert caps.into[2][1].weight.shape == (2, 7)
    assert caps.say[2].shape == (2, 2)
    assert caps.out[2].weight.shape == (16, 2)


def moved(before: dict[str, Tensor], after: Any) -> set[str]:
    """Which capsule weights of the first plug-in changed, as ``into.0``, ``say.0``, ``out.0``."""
    named = dict(next(iter(after.adapters.values())).capsules.named_parameters())
    return {".".join(n.split(".")[:2]) for n, p in named.items() if not torch.equal(p, before[n])}


def test_a_domain_learns_all_capsules_up_to_its_own_and_its_own_way_up() -> None:
    way = Way("bcl", **CALM)
    for i, wanted in enumerate([{"into.0", "say.0", "out.0"}, {"into.0", "into.1", "say.0", "say.1", "out.1"}]):
        start: Any = way.before(i)
        before = {n: p.detach().clone() for n, p in next(iter(start.adapters.values())).capsules.named_parameters()}
        way.learn(i)
        assert moved(before, way.after(i)) == wanted


@MODELS
def test_it_forgets_by_its_shared_capsules_more_than_hat(make: Any) -> None:
    gone = {}
    for name in ("hat", "bcl"):
        way = Way(name, make).walked(1)
        learnt = states(way.after(0), "food")
        way.walked()
        gone[name] = float((states(way.after(2), "food") - learnt).norm())
    assert gone["bcl"] > 2 * gone["hat"] > 0


def test_a_causal_model_sees_no_later_token_through_the_vote() -> None:
    way = Way("bcl", tiny_gpt2).walked(2)
    method = way.after(1)
    method.activate("law")
    ids = torch.arange(5, 37).reshape(2, 16)
    other = ids.clone()
    other[:, 9:] += 1
    base = anatomy(method.model).base
    first, second = (hidden_states(method.model, base, x) for x in (ids, other))
    assert torch.equal(first[:, :9], second[:, :9])
    assert not torch.equal(first[:, 9:], second[:, 9:])


def test_an_end_task_trains_the_capsules_that_its_domain_reads() -> None:
    method: Any = Way("bcl").walked(2).after(1)
    model = Classifier(deepcopy(method.model), 2, "first")
    rates = method.for_end_task(model, "law")
    names = {n.rpartition("capsules.")[2] for n, p in model.named_parameters() if p.requires_grad and "capsules" in n}
    assert {".".join(n.split(".")[:2]) for n in names} == {"into.0", "into.1", "say.0", "say.1", "out.1"}
    assert any("capsules" in n for n in rates)
    model(input_ids=torch.arange(5, 37).reshape(2, 16)).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and "plugin" in n)
