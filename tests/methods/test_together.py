"""Several methods at once: the same as one written by hand, clashes in words, and in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from eunoe.contract.way import CALM, STEPS, Way, digest, gradients, states, stopping
from eunoe.data.collate import Batch
from eunoe.engine import load_plan, run
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods import METHODS, Entry, Together, choose_method
from eunoe.methods.base import Batches, Method, Outputs, Stage
from eunoe.recipe import load_recipe
from eunoe.train import train
from tests.contract.made_up import Fisher, Replay, Settings, register
from tests.tiny import tiny_bert
from tests.tiny_run import state, tiny_recipe

BOTH = {"name": ["old-rows", "fisher"], "old-rows": {"strength": 0.5}, "fisher": {"strength": 0.2}}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    register(monkeypatch)


class ByHand(Method):
    """What someone would write who wants replay and EWC at once, and knows of no ``Together``."""

    def __init__(self, model: Any, settings: Any, domains: Any) -> None:
        super().__init__(model, settings, domains)
        self.buffer, self.fisher = Replay(model, Settings(), domains), Fisher(model, Settings(strength=0.2), domains)

    def batches(self, stage: Stage) -> Batches:
        return self.buffer.batches(stage)

    def penalty(self) -> Tensor | None:
        return self.fisher.penalty()

    def end(self, stage: Stage) -> None:
        self.buffer.end(stage)
        self.fisher.end(stage)

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state_dict(), "fisher": self.fisher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state_dict(state["buffer"])
        self.fisher.load_state_dict(state["fisher"])


@pytest.mark.parametrize("order", [["old-rows", "fisher"], ["fisher", "old-rows"]])
def test_together_is_one_written_by_hand(order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "by-hand", Entry(ByHand, Settings, "made up", reads=frozenset({"earlier"})))
    one, two = Way({**BOTH, "name": order}, double=True, **CALM), Way("by-hand", double=True, **CALM)
    assert isinstance(one.make(), Together)
    for way in (one, two):
        way.walked(lr=0.02)
    ends = [dict(way.after(way.last).model.named_parameters()) for way in (one, two)]
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=1e-12, atol=1e-12)
    for alone in ("old-rows", "fisher"):  # each of the two counts
        other = Way({"name": alone, **BOTH[alone]}, double=True, **CALM).walked(lr=0.02)
        assert any(
            not torch.allclose(p, ends[0][n], atol=1e-6) for n, p in other.after(other.last).model.named_parameters()
        )


def test_together_has_the_same_gradient_however_it_is_cut() -> None:
    way = Way(BOTH, double=True, **CALM)
    way.walked(way.last)
    for one, three in zip(gradients(way, way.last, None), gradients(way, way.last, 2), strict=True):
        for weight, grad in one.items():
            torch.testing.assert_close(three[weight], grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("names", [["replay", "ewc"], ["der++", "kd"], ["lora", "l2", "replay"]])
def test_methods_of_the_table_go_together(names: list[str]) -> None:
    """Each counts, and a step has one gradient however it is cut."""
    options: dict[str, dict[str, Any]] = {
        "ewc": {"strength": 40.0}, "kd": {"temperature": 2.0}, "der++": {"rows": 3}, "l2": {"strength": 1.0}, "lora": {"dropout": 0.0},
    }  # fmt: skip
    all_of_them: dict[str, Any] = {"name": names, **{name: options.get(name, {}) for name in names}}
    way = Way(all_of_them, double=True, **CALM)
    way.walked(1)
    whole, cut = gradients(way, 1, None), gradients(way, 1, 2)
    for one, three in zip(whole, cut, strict=True):
        for weight, grad in one.items():
            torch.testing.assert_close(three[weight], grad, rtol=1e-11, atol=1e-12)
    for left_out in names[-2:]:
        others = [name for name in names if name != left_out]
        fewer = Way({"name": others, **{n: options.get(n, {}) for n in others}} if len(others) > 1 else
                    {"name": others[0], **options.get(others[0], {})}, double=True, **CALM)  # fmt: skip
        fewer.walked(1)
        lacking = gradients(fewer, 1, None)
        assert any(not torch.allclose(lacking[-1][n], g, rtol=1e-4, atol=1e-9) for n, g in whole[-1].items()), left_out


@pytest.mark.parametrize("step", [1, 4])
def test_together_is_resumed_to_the_same_bits(step: int, tmp_path: Path) -> None:
    way = Way(BOTH)
    way.walked(way.last)
    whole, killed = way.before(way.last), way.job(way.before(way.last), way.last, tmp_path)
    train(way.job(whole, way.last))
    killed.observe = stopping(step)
    with pytest.raises(Interrupted):
        train(killed)
    again = way.before(way.last)
    assert train(way.job(again, way.last, tmp_path)).steps == STEPS
    assert digest(again) == digest(whole)


class Sum(Method):
    """``weight`` times the hidden states of some rows: those whose first token is a multiple of ``every``."""

    def __init__(self, model: Any, weight: float, every: int) -> None:
        super().__init__(model, None, [])
        self.weight, self.every = weight, every

    def chosen(self, batch: Batch) -> Tensor:
        rows = batch["input_ids"][:, 0] % self.every == 0
        return rows[batch["positions"] // batch["input_ids"].shape[1]]

    def extra_items(self, batch: Batch) -> int:
        return int(self.chosen(batch).sum())

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return self.weight * outputs.hidden[self.chosen(batch)].square().sum()


class Other(Sum):
    pass


@pytest.mark.parametrize("micro_batch", [None, 3, 2, 1])
def test_each_extra_loss_is_a_mean_over_its_own_items_however_uneven(micro_batch: int | None) -> None:
    """Against autograd over the whole step at once; micro-batches that have none of the items are not asked."""
    from eunoe.data.collate import LMBatches
    from eunoe.data.corpus import Blocks
    from eunoe.models.heads import lm_loss, target_outputs
    from tests.tiny import size

    ids = torch.randint(5, size(), (12, 16), generator=torch.Generator().manual_seed(1)).numpy()
    ids[:, 0] = [6, 7, 9, 12, 11, 7, 13, 17, 19, 23, 29, 8]
    blocks = Blocks(ids, torch.arange(5).numpy(), "made")
    met: dict[str, Tensor] = {}

    def batches(micro: int | None) -> LMBatches:
        return LMBatches(blocks, "causal", 4, size(), 12, 1, 3, micro)

    model = tiny_bert(**CALM).double()
    parts = [Sum(model, 0.3, 3), Other(model, 2.0, 8)]
    way = Way("ncl", double=True, **CALM)
    job = way.job(Together(parts), 0, steps=1, clip=None)
    job.model, job.batches, job.stage = model, batches(micro_batch), None

    def optimizer(m: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(m.parameters(), lr=0.0)
        made.register_step_pre_hook(lambda *_: met.update({n: p.grad.clone() for n, p in m.named_parameters()}))
        return made

    job.optimizer = optimizer
    train(job)
    (batch,) = batches(None)[0]
    loss = lm_loss(model, batch)
    total = loss.total / loss.items
    for part in parts:
        chosen = part.chosen(batch)
        assert 0 < int(chosen.sum()) < len(chosen)
        total = total + part.weight * target_outputs(model, batch).hidden[chosen].square().sum(-1).mean()
    model.zero_grad()
    total.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(met[name], p.grad, rtol=1e-12, atol=1e-12)
    if micro_batch == 1:
        assert [part.calls for part in parts] == [3, 1]


# -- two that cannot be combined -----------------------------------------------------------------------------------------
class Proud(Fisher):
    def clashes(self, other: Method) -> str | None:
        return "it wants the gradients for itself" if isinstance(other, Replay) else None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["old-rows", "from-base"], "old-rows and from-base cannot be combined: one starts each stage from the pretrained model"),
        (["cpt", "prompts"], "cpt and prompts cannot be combined: each wants to attach weights of its own"),
        (["prompts", "cpt"], "prompts and cpt cannot be combined: each wants to attach"),
        (["old-rows", "proud"], "old-rows and proud cannot be combined: it wants the gradients for itself. Leave one out"),
        (["fisher", "twin"], "fisher and twin cannot be combined: it would be applied twice"),
    ],
)  # fmt: skip
def test_two_that_cannot_go_together_say_why(names: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "proud", Entry(Proud, Settings, "made up"))
    monkeypatch.setitem(METHODS, "twin", Entry(Fisher, Settings, "made up"))
    with pytest.raises(EunoeError, match=message):
        choose_method({"name": names}, "recipe.methods[0]").build(tiny_bert(), ["food", "law"])


def test_methods_that_cut_the_domains_otherwise_cannot_go_together() -> None:
    with pytest.raises(
        EunoeError, match="all-at-once and fisher cannot be combined: they cut the domains into other stages"
    ):
        choose_method({"name": ["all-at-once", "fisher"]}, "recipe.methods[0]").stages(["food", "law"])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": ["old-rows"]}, "give two or more methods, each once; received"),
        ({"name": ["old-rows", "old-rows"]}, "each once"),
        ({"name": ["old-rows", "fischer"]}, r"unknown method 'fischer'\. Did you mean fisher"),
        ({"name": ["old-rows", "fisher"], "strength": 1}, "strength is read by none of the methods old-rows, fisher"),
        ({"name": ["old-rows", "fisher"], "old-rows": 3}, "old-rows: expected options with values, received 3"),
        ({"name": ["old-rows", "fisher"], "old-rows": {"strenth": 3}}, "strenth"),
    ],
)
def test_a_choice_of_several_that_is_wrong_is_refused_in_words(choice: Any, message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        choose_method(choice, "recipe.methods[0]")


# -- in a recipe ---------------------------------------------------------------------------------------------------------
def test_a_recipe_of_several_runs_writes_itself_out_and_is_resumed_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = [{**d, "task": None} for d in yaml.safe_load(tiny_recipe(tmp_path).read_text())["domains"]]
    file = tiny_recipe(tmp_path, methods=[BOTH], seeds=[0], domains=domains, general=None)
    whole, killed = tmp_path / "a" / "out", tmp_path / "b" / "out"
    run(load_recipe(file), whole, "x")
    (written,) = yaml.safe_load((whole / "recipe.yaml").read_text())["methods"]
    assert {key: written[key] for key in ("name", "old-rows", "fisher", "label")} == {
        **BOTH,
        "label": "old-rows-fisher",
    }
    (sequence,) = [way for way in load_plan(whole).sequences if way.method]
    assert sequence.method.names == ("old-rows", "fisher")

    real, steps = Replay.after_step, []

    def stop_once(self: Replay) -> None:
        real(self)
        steps.append(1)
        if len(steps) in (2, 7):
            stopping(0)(0)

    monkeypatch.setattr(Replay, "after_step", stop_once)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(load_recipe(file), killed, "x")
    run(load_recipe(file), killed, "x")
    assert len(steps) == 8
    assert state(killed, ("times.jsonl", "environment.json")) == state(whole, ("times.jsonl", "environment.json"))


def test_states_of_others_are_refused() -> None:
    with pytest.raises(EunoeError, match="but this method is made of old-rows, fisher"):
        Way(BOTH).make().load_state_dict({"old-rows": {}})
    assert states(Way(BOTH).make(), None).isfinite().all()


class OwnWay(Fisher):
    """Reads text in a way of its own."""

    def log_probs(self, batch: Batch, domain: str | None) -> Tensor:
        return super().log_probs(batch, domain).roll(1, -1)


class OtherWay(Replay):
    log_probs = OwnWay.log_probs  # type: ignore[assignment]


def test_two_that_each_read_text_in_a_way_of_their_own_clash_and_one_is_asked() -> None:
    model = tiny_bert()
    with pytest.raises(
        EunoeError, match="ownway and otherway cannot be combined: each has its own way to get probabilities"
    ):
        Together([OwnWay(model, Settings(), ["a"]), OtherWay(model, Settings(), ["a"])])
    batch = Way("ncl").stage(0).batches[0][0]
    for parts in ([OwnWay, Replay], [Replay, OwnWay]):
        method = Together([part(model, Settings(), ["a"]) for part in parts])
        plain = Method(model, None, ["a"]).log_probs(batch, None)
        assert torch.equal(method.log_probs(batch, None), plain.roll(1, -1))
