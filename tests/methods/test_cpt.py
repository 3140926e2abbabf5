"""CPT's promise, attacked: later domains must not move one bit of what an earlier domain computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from eunoe import checkpoint
from eunoe.errors import EunoeError
from eunoe.methods import METHODS
from eunoe.methods.base import trainable
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.methods.masked import END_TASK_LR
from eunoe.optim import RecAdam, anchored_groups
from eunoe.optim.protect import Protected
from eunoe.plugins.capacity import capacity
from eunoe.plugins.capacity_report import capacity_report
from eunoe.plugins.files import save_plugins
from eunoe.plugins.inject import adapters
from tests.models.families import SMALL, tiny, tokens
from tests.stages import put_back, stage, weights

DOMAINS = ["food", "law", "sea"]
STEPS = 12


def make(family: str = "bert", seed: int = 0, **change: Any) -> Cpt:
    model = tiny(family, seed, **({"hidden_dropout_prob": 0.1} if family == "bert" else {}))
    settings = CptSettings(**{"attention_size": 12, "ffn_size": 16, **change})
    return Cpt(model, settings, list(DOMAINS))


def adamw(cpt: Cpt) -> Optimizer:
    return AdamW([p for _, p in trainable(cpt.model)], lr=0.02, weight_decay=0.1)


def sgd(cpt: Cpt) -> Optimizer:
    return SGD([p for _, p in trainable(cpt.model)], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)


def step(cpt: Cpt, domain: str, number: int, optimizer: Optimizer) -> float:
    torch.manual_seed(100 * DOMAINS.index(domain) + number)
    ids = torch.randint(3, SMALL["vocab_size"], (4, 9))
    cpt.model.train()
    cpt.before_step(number, STEPS)
    loss: Tensor = cpt.model(input_ids=ids, labels=ids).loss
    loss.backward()
    cpt.on_gradients()
    optimizer.step()
    optimizer.zero_grad()
    cpt.after_step()
    return loss.item()


def learn(cpt: Cpt, domain: str, optimizer: Optimizer | None = None, protect: bool = True) -> list[float]:
    cpt.begin(stage(domain))
    optimizer = optimizer or adamw(cpt)
    guard = Protected(optimizer, cpt.protected() if protect else {})
    losses = [step(cpt, domain, i, optimizer) for i in range(STEPS)]
    guard.release()
    cpt.end(stage(domain))
    return losses


def states(cpt: Cpt, domain: str | None) -> list[Tensor]:
    """All hidden states and the logits under a domain's masks."""
    cpt.activate(domain)
    cpt.model.eval()
    with torch.no_grad():
        out = cpt.model(tokens(), output_hidden_states=True)
    return [*out.hidden_states, out.logits]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def readings(cpt: Cpt, domain: str) -> dict[str, Tensor]:
    """The values of all entries that a domain reads."""
    weights = {name: p.detach() for name, p in cpt.model.named_parameters()}
    return {name: (weights[name] if entries is None else weights[name][entries]).clone()
            for name, entries in cpt.reads(domain).items()}  # fmt: skip


# -- the proof -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("placement", ["sequential", "parallel", "parallel_clean"])
@pytest.mark.parametrize("make_optimizer", [adamw, sgd])
def test_later_domains_leave_every_bit_of_earlier_ones(
    make_optimizer: Callable[[Cpt], Optimizer], placement: str
) -> None:
    cpt = make(placement=placement)
    base = states(cpt, None)
    optimizer = make_optimizer(cpt)  # one for all domains, so that moments of a domain reach into the next
    kept: dict[str, list[Tensor]] = {}
    read: dict[str, dict[str, Tensor]] = {}
    for domain in DOMAINS:
        before = states(cpt, None)
        learn(cpt, domain, optimizer)
        kept[domain], read[domain] = states(cpt, domain), readings(cpt, domain)
        assert not same(kept[domain], before), "the domain must have changed the model, or the proof is empty"
        for earlier in kept:
            assert same(states(cpt, earlier), kept[earlier]), f"{earlier} changed while learning {domain}"
            now = readings(cpt, earlier)
            assert all(torch.equal(now[name], values) for name, values in read[earlier].items())
    assert not same(kept["food"], kept["law"])
    assert same(states(cpt, None), base)


@pytest.mark.parametrize("family", ["gpt2", "llama", "albert"])
def test_the_promise_holds_for_decoders_and_shared_layers(family: str) -> None:
    cpt = make(family)
    learn(cpt, "food")
    kept = states(cpt, "food")
    learn(cpt, "law")
    learn(cpt, "sea")
    assert same(states(cpt, "food"), kept)
    assert not same(states(cpt, "sea"), kept)


def test_without_blocked_gradients_protection_alone_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    cpt = make()
    learn(cpt, "food")
    kept = states(cpt, "food")
    monkeypatch.setattr(Cpt, "on_gradients", lambda self: None)
    learn(cpt, "law")
    assert same(states(cpt, "food"), kept)


# -- attacks: one learns "food", attacks, learns "law" under the attack, and "food" must not have moved by a bit -----------
def everything(cpt: Cpt) -> Optimizer:
    """An optimizer over frozen weights too: embeddings, LayerNorms, biases and the LM head, with weight decay."""
    return AdamW(cpt.model.parameters(), lr=0.02, weight_decay=0.5)


def recadam(cpt: Cpt) -> Optimizer:
    """Its anchor is the plug-ins as they were before any domain, and the pull toward it needs no gradient."""
    return RecAdam(anchored_groups(cpt.model, weight_decay=0.1), lr=0.01, gamma=50.0, anneal="constant", weight=0.5)


def rmsprop(cpt: Cpt) -> Optimizer:
    return RMSprop([p for _, p in trainable(cpt.model)], lr=0.01, momentum=0.9, weight_decay=0.1)


def poisoned_moments(cpt: Cpt, optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.ndim:
                value.fill_(3.0)


def other_embeddings(cpt: Cpt, optimizer: Optimizer) -> None:
    with torch.no_grad():
        for mask in cpt._masks():
            mask.embedding.normal_()


def dropout_everywhere(cpt: Cpt, optimizer: Optimizer) -> None:
    for module in cpt.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5


def no_attack(cpt: Cpt, optimizer: Optimizer) -> None:
    pass


def accumulated(cpt: Cpt, domain: str, number: int, optimizer: Optimizer) -> None:
    """Three micro-batches a step."""
    cpt.before_step(number, STEPS)
    for part in range(3):
        torch.manual_seed(1000 * number + part)
        ids = torch.randint(3, SMALL["vocab_size"], (2, 9))
        (cpt.model.train()(input_ids=ids, labels=ids).loss / 3).backward()
    finish_step(cpt, number, optimizer)


def clipped(cpt: Cpt, domain: str, number: int, optimizer: Optimizer, each: bool = False) -> None:
    ids = tokens()
    cpt.before_step(number, STEPS)
    (100 * cpt.model.train()(input_ids=ids, labels=ids).loss).backward()
    with_gradient = [p for p in cpt.model.parameters() if p.grad is not None]
    finish_step(
        cpt,
        number,
        optimizer,
        lambda: [nn.utils.clip_grad_norm_(p, 0.1) for p in (with_gradient if each else [with_gradient])],
    )


def clipped_each(cpt: Cpt, domain: str, number: int, optimizer: Optimizer) -> None:
    clipped(cpt, domain, number, optimizer, each=True)


def finish_step(cpt: Cpt, number: int, optimizer: Optimizer, clip: Callable[[], Any] = lambda: None) -> None:
    cpt.on_gradients()
    clip()
    optimizer.step()
    optimizer.zero_grad()
    cpt.after_step()


@pytest.mark.parametrize("steps", [step, accumulated, clipped, clipped_each])
@pytest.mark.parametrize("attack", [no_attack, poisoned_moments, other_embeddings, dropout_everywhere])
@pytest.mark.parametrize("make_optimizer", [adamw, sgd, everything, recadam, rmsprop])
def test_no_attack_moves_a_bit_of_an_earlier_domain(
    make_optimizer: Callable[[Cpt], Optimizer], attack: Callable[[Cpt, Optimizer], None], steps: Callable[..., Any]
) -> None:
    cpt = make()
    base, frozen = states(cpt, None), {n: p.clone() for n, p in cpt.model.named_parameters() if "_plugin." not in n}
    optimizer = make_optimizer(cpt)  # one for both domains: its state reaches from the first into the second
    learn(cpt, "food", optimizer)
    kept, read = states(cpt, "food"), readings(cpt, "food")
    attack(cpt, optimizer)
    cpt.begin(stage("law"))
    guard = Protected(optimizer, cpt.protected())
    for i in range(4):
        steps(cpt, "law", i, optimizer)
        attack(cpt, optimizer)
    guard.release()
    cpt.end(stage("law"))
    for module in cpt.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    assert same(states(cpt, "food"), kept)
    assert all(torch.equal(values, read[name]) for name, values in readings(cpt, "food").items())
    assert not same(states(cpt, "law"), kept)
    assert same(states(cpt, None), base)
    assert all(torch.equal(cpt.model.get_parameter(name), p) for name, p in frozen.items())


@pytest.mark.parametrize("make_optimizer", [adamw, sgd, recadam, rmsprop])
def test_each_of_these_optimizers_would_move_it(make_optimizer: Callable[[Cpt], Optimizer]) -> None:
    """The attacks above are attacks: without protection of the finished update the earlier domain changes."""
    cpt = make()
    optimizer = make_optimizer(cpt)
    learn(cpt, "food", optimizer)
    kept = states(cpt, "food")
    learn(cpt, "law", optimizer, protect=False)
    assert not same(states(cpt, "food"), kept)


def test_a_domain_that_diverged_is_not_closed() -> None:
    """A weight that is not finite reaches earlier domains through any mask: 0 * nan is nan."""
    cpt = make()
    learn(cpt, "food")
    cpt.begin(stage("law"))
    with torch.no_grad():
        cpt.adapters["encoder.layer.0.attention_plugin"].fc2.weight[0, 0] = float("inf")
    with pytest.raises(EunoeError, match="learning 'law' left plug-in weights that are not finite"):
        cpt.end(stage("law"))
    assert cpt.active.finished == [0]


def test_one_flipped_bit_in_what_a_domain_reads_is_seen() -> None:
    cpt = make()
    learn(cpt, "food")
    kept, read = states(cpt, "food"), readings(cpt, "food")
    name = "bert.encoder.layer.0.feed_forward_plugin.fc2.bias"
    weight = dict(cpt.model.named_parameters())[name]
    outputs_differ = []
    for row in cpt.reads("food")[name].nonzero().flatten().tolist():
        with torch.no_grad():
            weight.view(torch.int32)[row] ^= 1
            assert not torch.equal(readings(cpt, "food")[name], read[name])
            outputs_differ.append(not same(states(cpt, "food"), kept))
            weight.view(torch.int32)[row] ^= 1
    assert any(outputs_differ), "not all: a unit below zero on all these tokens hides its bias"
    assert same(states(cpt, "food"), kept)


def test_masks_and_layer_norms_of_earlier_domains_stay() -> None:
    cpt = make()
    optimizer = adamw(cpt)
    learn(cpt, "food", optimizer)
    norms = {n: p.clone() for n, p in cpt.model.named_parameters() if "LayerNorm" in n}
    bits = [mask.bits[0].clone() for mask in cpt._masks()]
    learn(cpt, "law", optimizer)
    assert norms
    assert all(torch.equal(p, norms[n]) for n, p in cpt.model.named_parameters() if n in norms)
    assert all(torch.equal(mask.bits[0], row) for row, mask in zip(bits, cpt._masks(), strict=True))


def test_a_domains_masks_start_from_the_seed_and_its_name_whatever_was_learnt_before() -> None:
    def start(cpt: Cpt, domain: str) -> list[Tensor]:
        cpt.begin(stage(domain))
        return [mask.embedding.detach().clone() for mask in cpt._masks()]

    cpt = make()
    learn(cpt, "food")
    sea = start(cpt, "sea")
    assert same(sea, start(make(), "sea"))
    assert not same(sea, start(make(), "food"))
    assert not same(sea, start(make(seed=1), "sea"))
    assert not same(sea[:1], sea[2:3]), "and the masks of one domain differ"


def test_learning_lowers_the_loss_that_the_hard_masks_give() -> None:
    cpt, ids = make(), tokens(4, 9)
    cpt.model.eval()
    with torch.no_grad():  # a random head gives almost equal logits whatever it reads
        cpt.model.get_output_embeddings().weight.mul_(20)

    def loss() -> Tensor:
        return cpt.model(input_ids=ids, labels=ids).loss

    before = loss().item()
    cpt.begin(stage("food"))
    optimizer = AdamW([p for _, p in trainable(cpt.model)], lr=0.01)
    for i in range(60):
        cpt.before_step(i, 60)
        loss().backward()
        cpt.on_gradients()
        optimizer.step()
        optimizer.zero_grad()
        cpt.after_step()
    cpt.end(stage("food"))
    assert loss().item() < before - 0.5


# -- hooks, one by one ----------------------------------------------------------------------------------------------
def test_only_plug_ins_train() -> None:
    cpt = make()
    assert {name for name, _ in trainable(cpt.model)} == {n for n, _ in cpt.model.named_parameters() if "_plugin." in n}
    assert not cpt.forgets
    assert (METHODS["cpt"].method, METHODS["cpt"].settings) == (Cpt, CptSettings)


def test_sizes_are_the_published_ones_at_width_768_and_in_proportion_elsewhere() -> None:
    settings = CptSettings()
    assert [settings.size(part, 768) for part in ("attention", "feed_forward")] == [512, 768]
    assert [settings.size(part, 384) for part in ("attention", "feed_forward")] == [256, 384]
    assert CptSettings(attention_size=7).size("attention", 768) == 7
    plugin = Cpt(tiny("bert"), settings, ["a"]).adapters["encoder.layer.0.attention_plugin"]
    assert plugin.fc1.weight.shape == (11, 16)


def test_the_start_depends_on_the_seed_alone() -> None:
    first, second, other = make(seed=1), make(seed=1), make(seed=2)
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(first.model.parameters(), other.model.parameters(), strict=True))


def test_the_temperature_follows_progress_and_an_evaluation_in_between_does_no_harm() -> None:
    cpt = make()
    learn(cpt, "food")
    cpt.begin(stage("law"))
    cpt.before_step(0, 1)
    assert (cpt.active.domain, cpt.active.s) == (1, 1 / 400)
    cpt.activate("food")
    assert (cpt.active.domain, cpt.active.s) == (0, 400.0)
    cpt.before_step(1, 2)
    assert (cpt.active.domain, cpt.active.s) == (1, pytest.approx(200.00125))


def test_embeddings_stay_within_the_limit() -> None:
    cpt = make(embedding_clip=0.5)
    cpt.begin(stage("food"))
    assert all(mask.embedding.abs().max() > 0.5 for mask in cpt._masks()), "else this test could not fail"
    step(cpt, "food", 0, adamw(cpt))
    assert all(mask.embedding.abs().max() <= 0.5 for mask in cpt._masks())


def test_gradients_of_closed_weights_are_zero_and_no_others() -> None:
    cpt = make()
    learn(cpt, "food")
    cpt.begin(stage("law"))
    cpt.before_step(1, 100)
    ids = tokens()
    cpt.model(input_ids=ids, labels=ids).loss.backward()
    for _, p in trainable(cpt.model):
        p.grad = torch.ones_like(p)
    cpt.on_gradients()
    closed = cpt.protected()
    for p, entries in closed.items():
        assert p.grad is not None
        assert not p.grad[entries].any()
        assert (p.grad[~entries] == 1).all()
    assert len(closed) == len([name for name, _ in trainable(cpt.model) if ".fc" in name])


def test_the_first_domain_finds_every_weight_open() -> None:
    cpt = make()
    cpt.begin(stage("food"))
    assert cpt.protected() == {}


def test_a_domain_never_trained_reads_like_the_base_model() -> None:
    cpt = make()
    base = states(cpt, None)
    learn(cpt, "food")
    assert same(states(cpt, "sea"), base)
    assert same(states(cpt, None), base)
    assert not same(states(cpt, "food"), base)


@pytest.mark.parametrize(("over", "places"), [("epoch", [0.0, 0.5, 0.0, 0.5]), ("all", [0.0, 0.25, 0.5, 0.75])])
def test_the_temperature_starts_anew_in_each_epoch_as_released_or_rises_once(over: Any, places: list[float]) -> None:
    cpt = make(anneal_over=over)
    cpt.begin(stage("food", epochs=2.0))
    for i, place in enumerate(places):
        cpt.before_step(i, 4)
        assert cpt.active.s == pytest.approx(1 / 400 + (400 - 1 / 400) * place)
    assert CptSettings().anneal_over == "epoch"


def test_sparsity_is_none_by_default_and_else_hats_term_times_its_weight() -> None:
    assert make().penalty() is None
    cpt = make(sparsity=0.75)
    cpt.begin(stage("food"))
    cpt.before_step(1, 100)
    gates = torch.cat([torch.sigmoid(cpt.active.s * mask.embedding) for mask in cpt._masks()])
    cost = cpt.penalty()
    assert cost is not None
    torch.testing.assert_close(cost, 0.75 * gates.mean())
    cost.backward()
    assert all(mask.embedding.grad is not None and (mask.embedding.grad > 0).any() for mask in cpt._masks())
    cpt.end(stage("food"))
    cpt.begin(stage("law"))
    free = torch.cat([1 - mask.taken for mask in cpt._masks()])
    gates = torch.cat([torch.sigmoid(cpt.active.s * mask.embedding) for mask in cpt._masks()])
    torch.testing.assert_close(cpt.penalty(), 0.75 * (gates * free).sum() / free.sum())


def test_sparsity_leaves_more_room() -> None:
    def used(weight: float) -> int:
        cpt = make(sparsity=weight)
        cpt.begin(stage("food"))
        optimizer = AdamW([p for _, p in trainable(cpt.model)], lr=0.05)
        for i in range(40):
            cpt.before_step(i, 40)
            cost = cpt.penalty()
            loss = cpt.model(input_ids=tokens(), labels=tokens()).loss
            (loss if cost is None else loss + cost).backward()
            cpt.on_gradients()
            optimizer.step()
            optimizer.zero_grad()
            cpt.after_step()
        cpt.end(stage("food"))
        return sum(row["used"] for row in capacity(cpt.model))

    assert used(20.0) < 0.8 * used(0.0)


@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"activation": "tanh", "init": "near_zero"},
                                    {"placement": "parallel", "skip": False}, {"sparsity": 0.75}])  # fmt: skip
def test_the_promise_holds_with_every_option(change: dict[str, Any]) -> None:
    cpt = make(**change)
    learn(cpt, "food")
    kept = states(cpt, "food")
    learn(cpt, "law")
    assert same(states(cpt, "food"), kept)
    assert not same(states(cpt, "law"), kept)
    assert {a.activation for a in cpt.adapters.values()} == {change.get("activation", "relu")}


def test_near_zero_plug_ins_start_as_nearly_the_base_model() -> None:
    gaps = []
    for init in ("library", "near_zero"):
        cpt = make(init=init)
        base = states(cpt, None)[-1]
        cpt.begin(stage("food"))
        gaps.append(float((states(cpt, "food")[-1] - base).abs().max()))
    assert 0 < gaps[1] < 0.01 * gaps[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cpt: CptSettings(activation="rel"), r"unknown activation 'rel'. Did you mean relu"),
        (lambda cpt: CptSettings(init="zero"), "unknown init 'zero'"),
        (lambda cpt: CptSettings(anneal_over="epochs"), r"unknown anneal_over 'epochs'. Did you mean epoch"),
        (lambda cpt: CptSettings(skip="no"), "skip is 'no'; give auto, true or false"),
        (lambda cpt: CptSettings(sparsity=-1), "sparsity is -1; give 0 or more"),
        (lambda cpt: make(skip=False), "skip is false, but a plug-in of placement sequential"),
        (lambda cpt: (cpt.begin(stage("food")), cpt.grow(ffn_size=20)), "domain 'food' is being learnt"),
        (lambda cpt: cpt.begin(stage("fod")), r"unknown domain 'fod'. Did you mean food\?"),
        (lambda cpt: cpt.activate("fod"), r"unknown domain 'fod'. Did you mean food\?"),
        (lambda cpt: (learn(cpt, "food"), cpt.begin(stage("food"))), "domain 'food' is learnt"),
        (lambda cpt: Cpt(cpt.model, cpt.settings, DOMAINS), "has plug-ins already"),
        (lambda cpt: Cpt(tiny("bert"), cpt.settings, ["a", "b", "a"]), "duplicate domain names: a"),
        (lambda cpt: CptSettings(placement="paralel"), r"unknown placement 'paralel'. Did you mean parallel"),
        (lambda cpt: CptSettings(attention_size=0), "attention_size is 0"),
        (lambda cpt: CptSettings(s_max=0.5), r"s_max is 0\.5"),
        (lambda cpt: CptSettings(cosh_clip=0), "cosh_clip is 0"),
    ],
)
def test_mistakes_are_refused_in_words(call: Callable[[Cpt], Any], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        call(make())


# -- state ----------------------------------------------------------------------------------------------------------
def carry(cpt: Cpt) -> Cpt:
    """A fresh process: a new model and method, the saved weights, the saved state."""
    state = copy.deepcopy(cpt.state_dict())
    fresh = make(seed=0)
    with torch.no_grad():
        for p in fresh.model.parameters():
            if p.requires_grad:
                p.normal_()
    fresh.model.load_state_dict(cpt.model.state_dict())
    fresh.load_state_dict(state)
    return fresh


def test_a_fresh_method_goes_on_exactly_between_domains() -> None:
    cpt = make()
    learn(cpt, "food")
    kept = states(cpt, "food")
    fresh = carry(cpt)
    assert same(states(fresh, "food"), kept)
    learn(cpt, "law")
    learn(fresh, "law")
    assert all(torch.equal(p, q) for p, q in zip(cpt.model.parameters(), fresh.model.parameters(), strict=True))
    assert same(states(fresh, "food"), kept)
    assert same(states(fresh, "law"), states(cpt, "law"))
    assert capacity(fresh.model) == capacity(cpt.model)


def test_the_order_of_learning_need_not_be_that_of_the_domains_and_is_carried_on() -> None:
    cpt = make()
    learn(cpt, "sea")
    first = capacity(cpt.model)
    learn(cpt, "food")
    state = cpt.state_dict()
    assert state["finished"] == ["sea", "food"]
    for row, before in zip(capacity(cpt.model), first, strict=True):
        assert list(row["domains"]) == ["sea", "food"]
        assert row["new"]["sea"] == before["new"]["sea"] == row["domains"]["sea"], "food came later"
        assert list(row["shared_with"]) == ["sea"]
    fresh = carry(cpt)
    assert capacity(fresh.model) == capacity(cpt.model)
    assert all(same(states(fresh, domain), states(cpt, domain)) for domain in ("sea", "food"))

    old = {**state, "finished": ["food", "sea"], "masks": state["masks"].flip(0)}  # as it was written before
    fresh.load_state_dict(old)
    assert fresh.active.finished == [0, 2]
    assert all(same(states(fresh, domain), states(cpt, domain)) for domain in ("sea", "food"))


def test_a_fresh_method_resumes_exactly_in_the_middle_of_a_domain() -> None:
    cpt = make()
    learn(cpt, "food")
    between = copy.deepcopy(cpt.state_dict())
    cpt.begin(stage("law"))
    optimizer = SGD([p for _, p in trainable(cpt.model)], lr=0.1)
    for i in range(5):
        step(cpt, "law", i, optimizer)
    inside, saved = copy.deepcopy(cpt.step_state()), {n: t.clone() for n, t in cpt.weights().items()}

    fresh = make(seed=0)
    fresh.load_state_dict(between)
    fresh.begin(stage("law"))
    put_back(fresh.model, saved, "held")
    fresh.load_step_state(inside)
    other = SGD([p for _, p in trainable(fresh.model)], lr=0.1)
    for i in range(5, STEPS):
        step(cpt, "law", i, optimizer)
        step(fresh, "law", i, other)
    assert all(torch.equal(p, q) for p, q in zip(cpt.model.parameters(), fresh.model.parameters(), strict=True))


def test_state_is_plain_and_a_finished_domain_costs_a_bit_per_unit() -> None:
    cpt = make()
    empty = cpt.state_dict()
    assert empty["masks"].shape[0] == 0
    learn(cpt, "food")
    learn(cpt, "sea")
    state = cpt.state_dict()
    assert (state["finished"], state["running"]) == (["food", "sea"], None)
    assert isinstance(state["s"], float)
    # 2 layers x (12 -> 2 bytes, 16 -> 2, 16 -> 2, 16 -> 2)
    assert state["masks"].dtype == torch.uint8
    assert state["masks"].shape == (2, 16)


def test_an_earlier_state_opens_again_what_was_closed_since() -> None:
    cpt = make()
    learn(cpt, "food")
    state, taken = copy.deepcopy(cpt.state_dict()), [mask.taken.clone() for mask in cpt._masks()]
    learn(cpt, "law")
    assert not all(torch.equal(mask.taken, before) for mask, before in zip(cpt._masks(), taken, strict=True))
    cpt.load_state_dict(state)
    assert all(torch.equal(mask.taken, before) for mask, before in zip(cpt._masks(), taken, strict=True))
    assert all("law" not in row["domains"] for row in capacity(cpt.model))


def test_state_of_other_sizes_is_refused() -> None:
    cpt = make()
    learn(cpt, "food")
    with pytest.raises(EunoeError, match="other sizes or another model"):
        make(ffn_size=40).load_state_dict(cpt.state_dict())


@pytest.mark.slow
def test_a_finished_domain_costs_less_than_8_kb_on_disk_at_the_shape_of_roberta_base(tmp_path: Path) -> None:
    def folder_size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*"))

    model = tiny("roberta", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=8)
    names = [f"a-domain-with-a-long-name-{i:03}" for i in range(101)]
    cpt = Cpt(model, CptSettings(), names)
    sizes = []
    for i, name in enumerate(names):
        cpt.begin(stage(name))
        cpt.end(stage(name))
        if i in (0, 100):
            checkpoint.save(tmp_path / f"{i}", {"weights": weights(model), "method": cpt.state_dict()})
            save_plugins(model, tmp_path / f"{i}-plugins")
            sizes.append([folder_size(tmp_path / f"{i}"), folder_size(tmp_path / f"{i}-plugins")])
    assert sum(mask.bits[0].nbytes for mask in cpt._masks()) == 33_792 // 8
    for one, all_of_them in zip(*sizes, strict=True):
        assert 33_792 // 8 < (all_of_them - one) / 100 < 8192


def test_nothing_that_trains_grows_with_the_number_of_domains() -> None:
    few, many = (Cpt(tiny("bert"), CptSettings(), [str(i) for i in range(n)]) for n in (1, 100))
    assert {n: p.shape for n, p in few.model.named_parameters()} == {
        n: p.shape for n, p in many.model.named_parameters()
    }


# -- growing ----------------------------------------------------------------------------------------------------------
def test_grown_plug_ins_keep_earlier_domains_and_later_ones_use_and_keep_the_new_units() -> None:
    cpt = make()
    kept = {}
    learn(cpt, "food")
    kept["food"] = states(cpt, "food")
    before = capacity_report(capacity(cpt.model))
    cpt.grow(attention_size=20, ffn_size=18)
    after = capacity_report(capacity(cpt.model))
    assert [a["free"] - b["free"] for a, b in zip(after["kinds"], before["kinds"], strict=True)] == [16, 0, 4, 0]
    assert same(states(cpt, "food"), kept["food"])
    fresh = {n: p.clone() for n, p in cpt.model.named_parameters() if ".grown." in n and "embedding" not in n}
    learn(cpt, "law")
    now = dict(cpt.model.named_parameters())
    assert fresh
    assert all(not torch.equal(now[name], p) for name, p in fresh.items()), "the new units must learn"
    kept["law"] = states(cpt, "law")
    cpt.grow(ffn_size=25)
    learn(cpt, "sea")
    for domain, expected in kept.items():
        assert same(states(cpt, domain), expected), domain

    again = make()
    again.grow(attention_size=20, ffn_size=18)
    again.grow(ffn_size=25)
    again.model.load_state_dict(cpt.model.state_dict())
    again.load_state_dict(cpt.state_dict())
    for domain in (None, *DOMAINS):
        assert same(states(again, domain), states(cpt, domain))
    with pytest.raises(EunoeError, match="other sizes"):
        make().load_state_dict(cpt.state_dict())


# -- what is read, what is left -------------------------------------------------------------------------------------
def test_reads_names_all_weights_and_whatever_it_leaves_out_has_no_influence() -> None:
    cpt = make()
    learn(cpt, "food")
    kept = states(cpt, "food")
    entries = cpt.reads("food")
    weights = dict(cpt.model.named_parameters())
    assert entries.keys() == weights.keys()
    assert all((e is None) == ("_plugin." not in name) for name, e in entries.items()), "of the base model all is read"
    some = {name: e for name, e in entries.items() if e is not None}
    assert {name: e.shape for name, e in some.items()} == {name: weights[name].shape for name in some}
    assert sum(int((~e).sum()) for e in some.values()) > 500
    with torch.no_grad():
        for name, e in some.items():
            weights[name][~e] = 3.0
    assert same(states(cpt, "food"), kept)


def test_what_is_read_is_closed_to_later_domains() -> None:
    cpt = make()
    learn(cpt, "food")
    cpt.begin(stage("law"))
    closed = cpt.protected()
    weights = dict(cpt.model.named_parameters())
    for name, entries in cpt.reads("food").items():
        if entries is None:
            assert "_plugin." not in name
            assert not weights[name].requires_grad
        elif name.endswith(".embedding"):
            assert not entries.any(), "a finished domain has its bits"
        else:
            assert closed[weights[name]][entries].all(), name


def test_capacity_counts_used_shared_and_free_units() -> None:
    cpt = make()
    assert all(row["free"] == row["size"] and row["domains"] == {} for row in capacity(cpt.model))
    units = {"food": [1.0] * 6 + [-1.0] * 10, "law": [-1.0] * 4 + [1.0] * 5 + [-1.0] * 7}
    for domain, chosen in units.items():
        cpt.begin(stage(domain))
        with torch.no_grad():
            cpt.adapters["encoder.layer.1.feed_forward_plugin"].mask1.embedding.copy_(torch.tensor(chosen))
        cpt.end(stage(domain))
    rows = capacity(cpt.model)
    assert len(rows) == 8
    assert rows[6] == {
        "layer": "encoder.layer.1",
        "part": "feed_forward",
        "units": "inner",
        "size": 16,
        "used": 9,
        "shared": 2,
        "free": 7,
        "domains": {"food": 6, "law": 5},
        "new": {"food": 6, "law": 3},
        "shared_with": {"food": 2},
    }


# -- end tasks ------------------------------------------------------------------------------------------------------
class WithHead(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.trunk(ids).last_hidden_state[:, 0])


def test_on_an_end_task_all_but_the_mask_embeddings_train_and_nothing_is_written_back() -> None:
    cpt = make()
    learn(cpt, "food")
    learn(cpt, "law")
    kept = states(cpt, "food"), states(cpt, "law")
    end = WithHead(copy.deepcopy(cpt.model.bert))
    rates = cpt.for_end_task(end, "food")
    names = {name for name, _ in trainable(end)}
    assert names == {name for name, _ in end.named_parameters() if ".embedding" not in name or "_plugin" not in name}
    assert set(rates) == {name for name in names if "_plugin" in name}
    assert set(rates.values()) == {END_TASK_LR} == {0.6}

    cpt.activate("law")
    assert {(a.active.domain, a.active.s) for a in adapters(end).values()} == {(0, 400.0)}
    optimizer = AdamW([p for _, p in trainable(end)], lr=0.01)
    for _ in range(3):
        end.train()(tokens()).square().sum().backward()
        optimizer.step()
    assert same(states(cpt, "food"), kept[0])
    assert same(states(cpt, "law"), kept[1])


def test_a_frozen_backbone_leaves_plug_ins_and_head() -> None:
    cpt = make()
    learn(cpt, "food")
    end = WithHead(copy.deepcopy(cpt.model.bert))
    rates = cpt.for_end_task(end, "food", "backbone")
    assert {name for name, _ in trainable(end)} == {*rates, "head.weight", "head.bias"}
    assert all("_plugin.fc" in name for name in rates)


def test_an_end_task_of_no_learnt_domain_runs_on_the_base_model() -> None:
    cpt = make()
    learn(cpt, "food")
    end = WithHead(copy.deepcopy(cpt.model.bert)).eval()
    cpt.for_end_task(end, None)
    base = states(cpt, None)[-2][:, 0]
    with torch.no_grad():
        assert torch.equal(end(tokens()), end.head(base))


# -- bounds ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("s_max", (1, 1.0, nan, inf), "give a finite number above 1"),
        ("cosh_clip", (0, -1.0, 80.5, nan, inf), "give a number above 0, at most 80"),
        ("embedding_clip", (0, -6.0, nan, inf), "give a finite number above 0"),
        ("sparsity", (-1, nan, inf), "give 0 or more"),
        ("attention_size", (0, 12.0, 12.5, True, "12", nan), "give a whole number of 1 or more, or leave it out"),
        ("ffn_size", (0, 12.0, 12.5, True, "12", nan), "give a whole number of 1 or more, or leave it out"),
    ],
)
def test_values_that_could_not_learn_are_refused_by_name(name: str, values: tuple[Any, ...], allowed: str) -> None:
    for value in values:
        with pytest.raises(EunoeError) as caught:
            CptSettings(**{name: value})
        assert f"cpt: {name} is {value!r}; {allowed}" in str(caught.value)


def test_the_largest_cosh_clip_is_finite_in_float32() -> None:
    CptSettings(cosh_clip=80, s_max=1.5, embedding_clip=0.1)
    assert torch.cosh(torch.tensor(80.0)).isfinite()


def test_without_a_domain_there_is_a_model_and_nothing_to_publish(tmp_path: Path) -> None:
    cpt = Cpt(tiny("bert"), CptSettings(), [])
    cpt.load_state_dict(cpt.state_dict())
    assert same(states(cpt, None), states(Cpt(tiny("bert"), CptSettings(), ["food"]), None))
    assert {row["used"] for row in capacity(cpt.model)} == {0}
    with pytest.raises(EunoeError, match=r"of their domains \(none\) none is learnt yet"):
        cpt.publish(tmp_path / "plugins")
    assert not (tmp_path / "plugins").exists()
