"""The table of optimizers: every row builds, learns and explains its settings."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields, is_dataclass
from math import inf
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from eunoe.errors import EunoeError
from eunoe.optim import OPTIMIZERS, RecAdam
from eunoe.optim.anneal import anneal
from eunoe.optim.table import BertAdamSettings, RecAdamSettings
from eunoe.recipe import build as build_settings


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_row_builds_with_its_defaults_and_lowers_a_loss(name: str) -> None:
    entry, net = OPTIMIZERS[name], model()
    optimizer = entry.build(net, entry.settings(), 1e-4)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if name != "recadam":  # which stands still until lambda grows
        assert losses[-1] < losses[0]
    assert losses[-1] <= losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_are_keyword_only_dataclasses_with_a_sentence_under_each_field(name: str) -> None:
    settings = OPTIMIZERS[name].settings
    assert is_dataclass(settings)
    assert all(field.kw_only for field in fields(settings))
    body = ast.parse(inspect.getsource(settings)).body[0].body  # type: ignore[attr-defined]
    for i, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(body[i + 1], ast.Expr), ast.unparse(node)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_biases_and_norms_never_decay(name: str) -> None:
    entry = OPTIMIZERS[name]
    settings = entry.settings(weight_decay=0.3)
    for group in entry.build(model(), settings, 1e-4).param_groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.3 if p.ndim > 1 else 0.0)


BASE: dict[str, dict[str, Any]] = {"adamw": {}, "bert_adam": {}, "recadam": {"t0": 3.0}}
OTHER: dict[str, list[dict[str, Any]]] = {
    "adamw": [{"betas": (0.5, 0.999)}, {"betas": (0.9, 0.9)}, {"eps": 1e-2}, {"weight_decay": 0.5}],
    "bert_adam": [{"betas": (0.5, 0.999)}, {"betas": (0.9, 0.9)}, {"eps": 1e-2}, {"weight_decay": 0.5}],
    "recadam": [
        {"betas": (0.5, 0.999)}, {"betas": (0.9, 0.9)}, {"eps": 1e-2}, {"weight_decay": 0.5}, {"gamma": 500.0},
        {"anneal": "linear"}, {"anneal": "constant", "t0": 250}, {"k": 0.1}, {"k": "inf"}, {"rise": 0.9}, {"t0": 5}, {"t0": 0.9},
        {"weight": 0.5}, {"correct_bias": False}, {"form": "paper", "gamma": 0.5},
    ],
}  # fmt: skip


def moved(name: str, **named: Any) -> torch.Tensor:
    net, entry = model(), OPTIMIZERS[name]
    anchor = {key: p.detach() + 0.5 for key, p in net.named_parameters()}
    optimizer = entry.build(net, entry.settings(**{**BASE[name], **named}), 1e-4, 8, anchor)
    g = torch.Generator().manual_seed(1)
    for _ in range(8):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=g) * 0.1
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_of_every_row_changes_the_weights(name: str) -> None:
    assert {key for change in OTHER[name] for key in change} == {f.name for f in fields(OPTIMIZERS[name].settings)}
    ends = [moved(name), *(moved(name, **change) for change in OTHER[name])]
    for i, one in enumerate(ends):
        for j in range(i):
            assert (one - ends[j]).abs().max() > 1e-6, (OTHER[name][i - 1], j and OTHER[name][j - 1])
    assert torch.equal(ends[0], moved(name))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [float("nan"), inf, -inf, -1.0, None, True, "much", torch.tensor([0.1, 0.1])])
def test_no_row_takes_an_odd_value_in_any_of_its_numbers(name: str, value: Any) -> None:
    entry = OPTIMIZERS[name]
    for field in fields(entry.settings):
        if field.type == "float":
            if field.name == "t0" and value is inf:  # lambda stays 0
                continue
            with pytest.raises(EunoeError, match=field.name):
                entry.build(model(), entry.settings(**{field.name: value}), 1e-4, 8)
    for betas in ((value, 0.9), (0.9, value)):
        with pytest.raises(EunoeError, match="betas"):
            entry.build(model(), entry.settings(betas=betas), 1e-4, 8)
    with pytest.raises(EunoeError, match=r"lr is .*finite number >= 0"):
        entry.build(model(), entry.settings(), value, 8)


def test_recadam_in_the_table_has_the_defaults_of_the_optimizer() -> None:
    signature = inspect.signature(RecAdam.__init__).parameters
    for field in fields(RecAdamSettings):
        if field.name != "rise":  # a share of a run, which the optimizer does not know
            assert field.default == signature[field.name].default, field.name


def test_recadam_in_the_table_anchors_the_trunk_and_not_the_head() -> None:
    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    entry = OPTIMIZERS["recadam"]
    optimizer = entry.build(BertForSequenceClassification(config), entry.settings(), 1e-5)
    for group in optimizer.param_groups:
        assert all(n.startswith("classifier") is (group["anchor"] is None) for n in group["param_names"])


def test_bert_adam_has_no_bias_correction() -> None:
    p = model()
    optimizer = OPTIMIZERS["bert_adam"].build(p, BertAdamSettings(), 1e-3)
    before = [w.detach().clone() for w in p.parameters()]
    for w in p.parameters():
        w.grad = torch.ones_like(w)
    optimizer.step()
    step = 1e-3 * 0.1 / (0.001**0.5 + 1e-6)  # lr m / (sqrt(v) + eps)
    for w, b in zip(p.parameters(), before, strict=True):
        torch.testing.assert_close(b - w, torch.full_like(w, step), rtol=1e-3, atol=0)


def test_t0_below_1_is_a_share_of_the_run() -> None:
    entry = OPTIMIZERS["recadam"]
    build = lambda t0, steps: entry.build(model(), RecAdamSettings(t0=t0), 1e-5, steps).param_groups[0]["t0"]  # noqa: E731
    assert [build(0.25, 1000), build(0.001, 10), build(250, 1000), build(250, None), build(0, None)] == [
        250,
        1,
        250,
        250,
        0,
    ]
    with pytest.raises(EunoeError, match=r"t0 is 0.25, a share of the run.*Give t0 in steps"):
        build(0.25, None)


def test_rise_is_the_share_of_the_run_in_which_lambda_goes_from_5_to_95_percent() -> None:
    group = OPTIMIZERS["recadam"].build(model(), RecAdamSettings(rise=0.2, t0=0.5), 1e-5, 1000).param_groups[0]
    at = lambda t: anneal("sigmoid", t, group["k"], group["t0"])  # noqa: E731
    assert [at(400), at(500), at(600)] == pytest.approx([0.05, 0.5, 0.95])
    with pytest.raises(EunoeError, match=r"rise is 0.2, a share of the run.*Give k"):
        OPTIMIZERS["recadam"].build(model(), RecAdamSettings(rise=0.2), 1e-5)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"rise": 0.0}, "rise is 0; it is a share of the run"),
        ({"rise": 20.0}, "rise is 20; it is a share of the run"),
        ({"rise": 0.2, "k": 0.1}, "k 0.1 and rise 0.2 say the same thing twice"),
        (
            {"rise": 0.2, "anneal": "linear"},
            "rise is 0.2, but anneal is linear, which does not read it: leave rise out",
        ),
        (
            {"k": 0.3, "anneal": "linear", "t0": 0.5},
            "k is 0.3, but anneal is linear, which does not read it: leave k out",
        ),
        ({"k": "inf", "anneal": "constant"}, "k is inf, but anneal is constant"),
        ({"t0": 0.25, "anneal": "constant"}, "t0 is 0.25, but anneal is constant"),
    ],
)
def test_what_cannot_be_or_would_not_be_read_is_refused(named: dict[str, Any], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        OPTIMIZERS["recadam"].build(model(), RecAdamSettings(**named), 1e-5, 1000)


@pytest.mark.parametrize("given", ["inf", "infinity", inf])
def test_k_may_be_infinite_and_is_written_as_a_recipe_can_read_it(given: Any) -> None:
    settings = RecAdamSettings(k=given) if given == inf else build_settings(RecAdamSettings, {"k": given}, "optimizer")
    assert settings.k == "inf"
    assert build_settings(RecAdamSettings, {"k": settings.k}, "optimizer") == settings
    assert OPTIMIZERS["recadam"].build(model(), settings, 1e-5).param_groups[0]["k"] == inf


@pytest.mark.parametrize("k", ["fast", float("inf"), None])
def test_other_words_for_k_are_refused_in_a_recipe(k: Any) -> None:
    with pytest.raises(EunoeError, match=r"optimizer.*k"):
        build_settings(RecAdamSettings, {"k": k}, "optimizer")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_anchor_may_be_given_to_every_row_and_recadam_recalls_it(name: str) -> None:
    net, entry = model(), OPTIMIZERS[name]
    anchor = {key: p.detach() + 1 for key, p in net.named_parameters()}
    for group in entry.build(net, entry.settings(), 1e-5, steps=10, anchor=anchor).param_groups:
        if name == "recadam":
            for key, value in zip(group["param_names"], group["anchor"], strict=True):
                assert torch.equal(value, anchor[key])
        else:
            assert group.get("anchor") is None
