"""DEMix: the expert that a domain starts from, and the mixture's weights, against sums written out in the test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from eunoe.contract.tiny_run import tiny_settings
from eunoe.contract.way import text
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.methods.demix import log_posterior
from eunoe.models.heads import lm_loss
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.route import route_run
from eunoe.train import train
from tests.methods.by_hand import MODELS, STEPS, batches, cross_entropy, learn, way

CHOICE = {"name": "demix", "reduction": 4, "places": "both"}


def logits(method: Any, domain: str | None, batch: dict[str, Tensor]) -> Tensor:
    """(n, vocabulary) at the targets, as one expert reads."""
    method.activate(domain)
    method.model.eval()
    with torch.no_grad():
        read: Tensor = method.model(batch["input_ids"]).logits
    return read.reshape(-1, read.shape[-1])[batch["positions"]]


def own(method: Any, domain: str) -> dict[str, Tensor]:
    method.activate(domain)
    return {name: p.detach().clone() for name, p in method.own.items()}


def placed(kind: str, domains: int = 2, **options: Any) -> tuple[Any, Any]:
    """A method that has learnt some domains, as if: its experts are drawn, large, and the nearest to the next is not the last."""
    walk = way({**CHOICE, **options}, kind)
    method = walk.make()
    names = walk.way.order[:domains]
    for k, name in enumerate(names):
        torch.manual_seed(k)
        drawn = {n: 0.7 * torch.randn_like(t) for n, t in method.fresh.items()}
        experts = {d: method.learnt[d] for d in names[:k]}
        method.restore(name, drawn, {"experts": experts, "losses": {}}, "a final")
    return walk, method


@pytest.mark.parametrize("kind", MODELS)
def test_a_new_expert_starts_as_the_old_one_of_least_loss_on_the_new_text(kind: str) -> None:
    walk, method = placed(kind)
    read = batches(walk, 2)
    tokens = sum(len(batch["labels"]) for batch in read)
    expected = {}
    for domain in ("food", "law"):
        total = 0.0
        for batch in read:
            at = logits(method, domain, batch)
            total -= float(sum(torch.log_softmax(row, -1)[y] for row, y in zip(at, batch["labels"], strict=True)))
        expected[domain] = total / tokens
    nearest = min(expected, key=lambda domain: expected[domain])
    before = own(method, nearest)
    job = walk.job(method, 2, steps=STEPS)
    begun: dict[str, Tensor] = {}

    def optimizer(model: Any) -> Any:  # asked for after the stage has begun, before its first step
        begun.update({name: p.detach().clone() for name, p in method.own.items()})
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)

    job.optimizer = optimizer
    train(job)
    assert method.losses["sea"] == pytest.approx(expected, rel=1e-9)
    assert abs(expected["food"] - expected["law"]) > 0.01
    assert begun.keys() == before.keys()
    assert all(torch.equal(begun[name], before[name]) for name in before)
    assert not all(torch.equal(p, before[name]) for name, p in own(method, "sea").items())
    assert all(torch.equal(p, before[name]) for name, p in own(method, nearest).items()), "it was copied"


def test_the_nearest_is_found_wherever_it_stands() -> None:
    """Learnt on food and law, then food's text under another name: its expert starts from food's, not from the last."""
    for again in ("food", "law"):
        walk = way({"name": "demix", "reduction": 2, "places": "both"}, "causal")
        for i in range(2):
            walk.learn(i, steps=30, lr=0.05)
        method = walk.before(2)
        stage = walk.stage(2)
        object.__setattr__(stage.batches, "blocks", text(again))
        method.begin(stage.bind(loss=lambda b, m=method: lm_loss(m.model, b)))
        actual = method.losses["sea"]  # type: ignore[attr-defined]
        assert min(actual, key=lambda d: actual[d]) == again
        assert all(torch.equal(p, method.learnt[again][n]) for n, p in method.own.items())  # type: ignore[attr-defined]


def test_the_sample_is_no_longer_than_asked_for() -> None:
    walk, method = placed("masked", sample=2)
    read = batches(walk, 2)
    first = {"input_ids": read[0]["input_ids"][:2]}
    inside = read[0]["positions"] < 2 * first["input_ids"].shape[1]
    first |= {"positions": read[0]["positions"][inside], "labels": read[0]["labels"][inside]}
    expected = float(
        cross_entropy(
            logits(method, "law", read[0])[inside][None], first | {"positions": torch.arange(int(inside.sum()))}
        )
    )
    method.begin(walk.stage(2, STEPS).bind(loss=lambda b: lm_loss(method.model, b)))
    assert method.losses["sea"]["law"] == pytest.approx(expected, rel=1e-6)


# -- without a domain ------------------------------------------------------------------------------------------------------
def mixture_by_hand(experts: list[Tensor], labels: list[int], rows: list[int]) -> list[list[float]]:
    """Probabilities of each target's row of the vocabulary, in plain Python."""
    probabilities = [torch.softmax(e, -1).tolist() for e in experts]
    collected: list[list[float]] = []
    likely = [1.0] * len(experts)
    for i, label in enumerate(labels):
        if i == 0 or rows[i] != rows[i - 1]:
            likely = [1.0] * len(experts)
        total = sum(likely)
        collected.append([sum(w / total * p[i][v] for w, p in zip(likely, probabilities, strict=True))
                      for v in range(len(probabilities[0][0]))])  # fmt: skip
        likely = [w * p[i][label] for w, p in zip(likely, probabilities, strict=True)]
        scale = max(likely)
        likely = [w / scale for w in likely]
    return collected


@pytest.mark.parametrize("kind", MODELS)
def test_without_a_domain_the_experts_are_mixed_by_the_posterior_of_what_came_before(kind: str) -> None:
    walk, method = placed(kind, domains=3)
    batch = batches(walk, 2)[0]
    experts = [logits(method, domain, batch) for domain in ("food", "law", "sea")]
    rows = (batch["positions"] // batch["input_ids"].shape[1]).tolist()
    expected = torch.tensor(mixture_by_hand(experts, batch["labels"].tolist(), rows))
    mixed = method.log_probs(batch, None)
    torch.testing.assert_close(mixed.exp(), expected, rtol=1e-4, atol=1e-7)
    chosen = [mixed[i, y] for i, y in enumerate(batch["labels"]) if rows[i] == 1]
    each = [sum(torch.log_softmax(e, -1)[i, y] for i, y in enumerate(batch["labels"]) if rows[i] == 1) for e in experts]
    together = math.log(sum(math.exp(float(e) - float(max(each))) for e in each) / 3) + float(max(each))
    assert float(sum(chosen).detach()) == pytest.approx(together, rel=1e-4), "the mean of the experts' own products"
    for domain, e in zip(("food", "law", "sea"), experts, strict=True):
        torch.testing.assert_close(
            method.log_probs(batch, domain), torch.log_softmax(e.float(), -1), rtol=1e-5, atol=1e-5
        )
    assert not torch.allclose(mixed, method.log_probs(batch, "sea"), atol=0.1)


def test_the_posterior_of_four_targets_in_two_rows() -> None:
    own = torch.tensor([[0.5, 0.25], [0.5, 0.125], [0.1, 0.9], [0.3, 0.3]]).log()
    weights = log_posterior(own, torch.tensor([0, 0, 1, 1])).exp()
    expected = [[0.5, 0.5], [2 / 3, 1 / 3], [0.5, 0.5], [0.1, 0.9]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_one_expert_is_its_own_mixture_and_none_is_the_pretrained_model() -> None:
    walk = way(CHOICE, "causal")
    batch = batches(walk, 0)[0]
    fresh = walk.make()
    torch.testing.assert_close(fresh.log_probs(batch, None), torch.log_softmax(logits(fresh, None, batch).float(), -1))
    method = learn(walk, 0)
    torch.testing.assert_close(method.log_probs(batch, None), method.log_probs(batch, "food"), rtol=1e-5, atol=1e-5)


# -- in a run ----------------------------------------------------------------------------------------------------------------
def test_general_text_is_read_by_the_mixture_and_routing_knows_the_model_without_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    made = tiny_settings(tmp_path, methods=[{**CHOICE, "reduction": 2}, "cpt"], seeds=[0])
    made["training"] |= {"steps": 12, "lr": 0.02}
    for domain in made["domains"]:
        domain["task"] = None
    made["model"]["dropout"] = 0.0
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    out = tmp_path / "out"
    run(load_recipe(file), out, "x")
    rows = read_rows(out / "rows.jsonl")
    general = [row.value for row in rows if row.task == "general" and row.method != "cpt"]
    assert len(set(general)) == 3, "the pretrained model, one expert, two mixed"
    (nearest,) = [p for p in out.rglob("nearest.json") if "money" in str(p)]
    assert set(yaml.safe_load(nearest.read_text())["money"]) == {"sport"}
    route_run(out)
    demix, cpt = (loaded["loss"] for loaded in yaml.safe_load((out / "routing.json").read_text())["sequences"])
    assert demix["base"] == cpt["base"] != demix["told"], "both are the pretrained model"


def test_an_expert_of_other_settings_is_refused() -> None:
    walk = way(CHOICE, "masked")
    learn(walk, 0)
    other = way({**CHOICE, "places": "feed_forward"}, "masked").make()
    with pytest.raises(EunoeError, match="the final does not fit this model"):
        other.restore("food", walk.finals[0]["weights"], walk.finals[0]["method"], "the final")
    state = {"experts": {"food": walk.finals[0]["weights"]}, "losses": {}}
    with pytest.raises(EunoeError, match="the saved expert of food does not fit this model"):
        other.load_state_dict(state)
