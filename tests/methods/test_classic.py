"""CLASSIC by hand: SimCLR's loss, the mix of views, under whose masks each view is read, and that only the running domain learns."""

from __future__ import annotations

import copy
import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from eunoe.contract.way import Way
from eunoe.methods.classic import ClassicSettings, ViewMix, nt_xent
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import Classifier
from eunoe.train import train
from tests.methods.test_hat import begun
from tests.tiny import tiny_bert, tiny_gpt2

CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = pytest.mark.parametrize(("make", "change"), [(tiny_bert, CALM), (tiny_gpt2, QUIET)])


def by_hand(a: list[list[float]], b: list[list[float]], temperature: float) -> float:
    """SimCLR's loss with plain numbers."""

    def cos(x: list[float], y: list[float]) -> float:
        return sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))

    views, total = [*a, *b], 0.0
    for i, x in enumerate(views):
        weights = [math.exp(cos(x, y) / temperature) for y in views]
        total -= math.log(weights[(i + len(a)) % len(views)] / (sum(weights) - weights[i]))
    return total / 2


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_loss_by_hand(temperature: float) -> None:
    a, b = [[1.0, 0.0], [3.0, 4.0], [-1.0, 2.0]], [[0.0, 2.0], [1.0, 1.0], [-2.0, 3.0]]
    found = nt_xent(torch.tensor(a), torch.tensor(b), temperature)
    assert found.item() == pytest.approx(by_hand(a, b, temperature), rel=1e-5)
    assert nt_xent(torch.tensor(a[:1]), torch.tensor(b[:1]), temperature).item() == pytest.approx(0, abs=1e-6)


def test_the_mix_by_hand() -> None:
    mix = ViewMix(16, 0.0)
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(mix(x), x.sum(1))  # the gain starts at 0
    with torch.no_grad():
        mix.gain.fill_(0.7)
    for row, found in zip(x, mix(x), strict=True):
        q, k, v = ([part.weight @ view + part.bias for view in row] for part in (mix.query, mix.key, mix.value))
        wanted = torch.zeros(16)
        for i in range(3):
            e = [math.exp((q[i] @ k[j]).item()) for j in range(3)]
            wanted = wanted + row[i] + 0.7 * sum(e[j] / sum(e) * v[j] for j in range(3))
        torch.testing.assert_close(found, wanted)
    assert mix.query.weight.shape == (2, 16)


@MODELS
def test_each_view_is_read_under_its_own_domains_masks(make: Any, change: dict[str, Any]) -> None:
    """In the third domain: the kept masks of the first two, the soft ones of the third as they are in that step."""
    way = Way({"name": "classic", "contrast": 2.0, "dropout": 0.0, "temperature": 0.5}, make, **change).walked(2)
    method: Any = way.before(2)
    found: list[tuple[Any, float, list[Tensor]]] = []
    real = method.extra_loss

    def extra_loss(batch: Any, outputs: Any) -> Tensor:
        value: Tensor = real(batch, outputs)
        own = copy.deepcopy(method.model)
        layer = next(iter(anatomy(own).layers)).module
        active, views = layer.attention_plugin.active, []  # type: ignore[union-attr]
        assert active is not method.active
        assert active.domain == 2 == active.running
        for domain in (0, 1, 2):
            active.domain = domain
            with torch.no_grad():
                views.append(anatomy(own).base(input_ids=batch["input_ids"])[0].mean(1))
        found.append((batch, value.item(), views))
        return value

    method.extra_loss = extra_loss
    train(way.job(method, 2, steps=1))
    ((batch, value, views),) = found
    assert len({float(view.sum()) for view in views}) == 3, "three domains, three readings"
    mixed = sum(views[1:], views[0])  # before the first step the mix is a sum
    wanted = 2.0 * by_hand(views[2].tolist(), mixed.tolist(), 0.5)  # type: ignore[union-attr]
    assert value == pytest.approx(wanted, rel=1e-4)
    assert len(views[0]) == len(batch["input_ids"])


def test_earlier_views_give_no_gradient_and_the_contrast_moves_the_mix() -> None:
    way = Way({"name": "classic", "sparsity": 0.0}, **CALM).walked(2)
    method: Any = way.before(2)
    begun(way, method, 2)
    start = {n: p.detach().clone() for n, p in method.mix.named_parameters()}
    assert start["gain"].item() == 0
    seen: list[tuple[bool, int | None]] = []
    forward = anatomy(method.model).base.forward
    anatomy(method.model).base.forward = lambda *a, **k: (  # type: ignore[method-assign]
        seen.append((torch.is_grad_enabled(), method.active.domain)) or forward(*a, **k)
    )
    train(way.job(method, 2, steps=2))
    assert seen[:3] == [(True, 2), (False, 0), (False, 1)]
    assert method.mix.gain.item() != 0
    assert any(not torch.equal(p, start[n]) for n, p in method.mix.named_parameters() if n != "gain")


def test_the_first_domain_has_nothing_to_contrast_with() -> None:
    ended = []
    for contrast in (0.0, 5.0):
        way = Way({"name": "classic", "contrast": contrast})
        way.learn(0)
        method: Any = way.after(0)
        ended.append({n: p.detach() for n, p in method.model.named_parameters() if "view_mix" not in n})
    assert all(torch.equal(p, ended[1][n]) for n, p in ended[0].items())
    second = []
    for contrast in (0.0, 5.0):
        way = Way({"name": "classic", "contrast": contrast}).walked(2)
        second.append(dict(way.after(1).model.named_parameters()))
    assert any(not torch.equal(p, second[1][n]) for n, p in second[0].items())


def test_an_end_task_leaves_the_mix_alone() -> None:
    method: Any = Way("classic").walked(2).after(1)
    model = Classifier(deepcopy(method.model), 2, "first")
    rates = method.for_end_task(model, "law")
    assert not any(p.requires_grad for n, p in model.named_parameters() if "view_mix" in n)
    assert not any("view_mix" in n for n in rates)


def test_the_published_settings() -> None:
    own = ClassicSettings()
    assert (own.contrast, own.temperature, own.dropout, own.sparsity) == (1.0, 1.0, 0.1, 0.75)
