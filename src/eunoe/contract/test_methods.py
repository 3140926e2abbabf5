"""The contract that every method of METHODS keeps, so that a run can take any of them without knowing which.

The table is read, not listed again: a new method is tested by being there.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eunoe import checkpoint
from eunoe.contract.over_methods import *  # noqa: F403
from eunoe.contract.tiny import tiny_bert, tiny_gpt2, tiny_tokenizer
from eunoe.contract.way import CALM, STEPS, Way, digest, gradients, states, stopping, undisturbed, walked
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods import METHODS, Method
from eunoe.methods.base import Stage, trainable
from eunoe.models.heads import Classifier
from eunoe.models.load import LanguageModel
from eunoe.train import train
from eunoe.transfer.readers import LayerReader


def bits(method: Method) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- the hooks ---------------------------------------------------------------------------------------------------------
def test_the_loop_calls_the_hooks_in_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    way = Way(name)
    method, calls = way.make(), []
    hooks = ("begin", "batches", "protected", "before_step", "penalty", "on_gradients", "after_step", "end")
    for hook in hooks:
        real = getattr(method, hook)

        def spy(*args: Any, hook: str = hook, real: Any = real) -> Any:
            calls.append((hook, *(arg.name if isinstance(arg, Stage) else arg for arg in args)))
            return real(*args)

        monkeypatch.setattr(method, hook, spy)
    train(way.job(method, 0, steps=2, micro_batch=2))
    steps = [[("before_step", i, 2), ("penalty",), ("on_gradients",), ("after_step",)] for i in (0, 1)]
    stage = way.names[0]
    assert calls == [("begin", stage), ("batches", stage), ("protected",), *steps[0], *steps[1], ("end", stage)]


@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
def test_it_learns(name: str, model: Any) -> None:
    """Random weights are made larger than usual: of smaller ones a frozen head makes almost equal logits."""
    if METHODS[name].method.extra_tokens:
        pytest.skip(
            "a few vectors before a text cannot teach a frozen model that was never trained; they only have to move"
        )
    losses = [point[1] for point in Way(name, model, initializer_range=0.5).learn(0, steps=40, lr=0.02).curve]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_some_weights_train_and_a_checkpoint_holds_all_that_learning_moves(name: str) -> None:
    way = walked(name, 1)
    before, after = bits(way.make()), way.after(0)
    assert any(not torch.equal(before[n], t) for n, t in bits(after).items())


# -- kept and resumed ----------------------------------------------------------------------------------------------------
def test_its_state_goes_through_a_checkpoint_and_learns_alike(name: str, tmp_path: Path) -> None:
    way = walked(name)
    loaded = Way(name)
    for i, final in enumerate(way.finals):
        checkpoint.save(tmp_path / str(i), final)
        loaded.finals.append(checkpoint.load(tmp_path / str(i)).groups)
    assert digest(loaded.after(way.last)) == digest(way.after(way.last))
    for domain in (None, *way.way.order):
        assert torch.equal(states(loaded.after(way.last), domain), states(way.after(way.last), domain))
    loaded.learn(way.last)
    assert digest(loaded.after(way.last)) == digest(way.after(way.last))


@pytest.mark.parametrize("state", [{"nonsense": 1}, {"nonsense": torch.ones(2), "seeds": {}}])
def test_state_of_something_else_is_refused(name: str, state: dict[str, Any]) -> None:
    with pytest.raises(EunoeError):
        Way(name).make().load_state_dict(state)


def test_weights_of_something_else_are_refused(name: str) -> None:
    way = walked(name, 1)
    with pytest.raises(EunoeError, match="does not fit this model"):
        way.make().restore(way.names[0], {"nonsense": torch.ones(2)}, way.finals[0]["method"], "the final")


def test_stopped_again_and_again_it_ends_in_the_bits_of_one_never_stopped(name: str, tmp_path: Path) -> None:
    """In the last stage, where what the ones before kept matters; after its first step, its third and its last."""
    way = walked(name)
    for step in (1, 3, STEPS):
        killed = way.job(way.before(way.last), way.last, tmp_path, micro_batch=2)
        killed.observe = stopping(step)
        with pytest.raises(Interrupted):
            train(killed)
    again = way.before(way.last)
    assert train(way.job(again, way.last, tmp_path, micro_batch=2)).steps == STEPS
    again.activate(None)
    whole, read = undisturbed(name)
    assert digest(again) == whole
    for domain, expected in read.items():
        assert torch.equal(states(again, domain), expected)
    fresh = way.make()
    if checkpoint.digest(fresh.state_dict()) != checkpoint.digest(way.before(way.last).state_dict()):
        with pytest.raises(EunoeError, match="belongs to another training"):  # it lacks what the stages before kept
            train(way.job(fresh, way.last, tmp_path, micro_batch=2))


# -- a step, however it is cut -------------------------------------------------------------------------------------------
def test_a_step_has_the_same_gradient_in_one_and_in_three_micro_batches(name: str) -> None:
    way = Way(name, double=True, **CALM)
    way.walked(way.last, steps=3)
    whole, cut = gradients(way, way.last, None), gradients(way, way.last, 2)
    assert len(whole) == len(cut) == 3
    for one, three in zip(whole, cut, strict=True):
        assert one.keys() == three.keys()
        for weight, grad in one.items():
            assert grad.dtype == torch.float64
            torch.testing.assert_close(three[weight], grad, rtol=1e-12, atol=1e-12)
    assert max(float(grad.abs().max()) for grad in whole[-1].values()) > 1e-5


# -- what it protects ----------------------------------------------------------------------------------------------------
def test_protecting_masks_fit_their_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    way = Way(name)
    for i in range(len(way.stages)):
        method = way.before(i)
        asked: list[dict[nn.Parameter, Tensor]] = []
        real = method.protected
        monkeypatch.setattr(method, "protected", lambda real=real, asked=asked: asked.append(real()) or asked[-1])
        train(way.job(method, i, steps=2))
        (kept,) = asked
        for weight, mask in kept.items():
            assert id(weight) in {id(p) for p in method.model.parameters()}
            assert mask.dtype == torch.bool
            assert mask.shape == weight.shape
        free = sum(int((~kept[p]).sum()) if p in kept else p.numel() for _, p in trainable(method.model))
        assert free > 0, "something must be free to learn"
        way.keep(i, method)


@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
def test_forgets_says_the_truth(name: str, model: Any) -> None:
    """False: earlier domains keep every bit. True: they do not, so that this test can fail."""
    way = walked(name, model=model)
    before, read = states(way.make(), None), []
    for i, (domain, *_) in enumerate(way.stages):
        read.append(states(way.after(i), domain))
    method, forgets = way.after(way.last), METHODS[name].method.forgets
    for i, (domain, *_) in enumerate(way.stages[:-1]):
        assert torch.equal(read[i], states(method, domain)) != forgets, domain
    assert not torch.equal(read[0], before), "a domain that changed nothing proves nothing"
    if not forgets:
        assert torch.equal(states(method, None), before), "text of no domain reads the base model"


def test_what_a_finished_domain_reads_is_named_and_stays(name: str) -> None:
    if METHODS[name].method.forgets:
        pytest.skip("it forgets, and need not say")
    way = walked(name, 1)
    method = way.after(0)
    method.activate("food")
    named = dict(method.model.named_parameters())
    reads = method.reads("food")
    assert reads.keys() <= named.keys()
    assert all(e is None or (e.dtype == torch.bool and e.shape == named[n].shape) for n, e in reads.items())
    entries = {n: torch.ones_like(named[n], dtype=torch.bool) if e is None else e for n, e in reads.items()}
    kept = {n: named[n].detach()[e].clone() for n, e in entries.items()}
    expected = states(method, "food")
    then = walked(name, 2).after(1)
    then.activate("food")
    later = dict(then.model.named_parameters())
    assert all(torch.equal(later[n].detach()[e], kept[n]) for n, e in entries.items())
    with torch.no_grad():  # what is not named may take any value
        for n, p in named.items():
            p[~entries[n] if n in entries else ...] = 7.0
    assert torch.equal(states(method, "food"), expected)


# -- use -------------------------------------------------------------------------------------------------------------------
def test_any_domain_and_none_can_be_activated_at_any_time(name: str) -> None:
    way = walked(name, 1)
    for method in (way.make(), way.after(0)):
        for domain in (None, *way.way.order, way.way.order[0]):
            first = states(method, domain)
            assert first.isfinite().all()
            assert torch.equal(first, states(method, domain))
    if not METHODS[name].method.forgets:
        assert torch.equal(states(method, "sea"), states(method, None)), "a domain that is not learnt reads the base"


def test_features_on_the_disk_are_those_of_the_domains_own_state(name: str) -> None:
    """Their key follows what the domain reads, whichever domain is active when it is asked for."""
    seen, keys = [], []
    for steps in (2, 3):
        way = Way(name).walked(1, steps=steps)
        method, domain = way.after(0), way.stages[0][0]
        seen.append(states(method, domain))
        method.activate(None)
        lm = LanguageModel(method.model, tiny_tokenizer(), "masked", "tiny")
        keys.append(LayerReader(lm, method, domain, 16).identity)
    assert torch.equal(*seen) or keys[0] != keys[1]


def test_evaluation_inside_and_between_stages_changes_nothing(name: str) -> None:
    way = walked(name)
    method = way.before(way.last)
    job = way.job(method, way.last, micro_batch=2)
    for domain in (None, *way.way.order):
        states(method, domain)
    job.observe = lambda step: {"mean": float(states(method, None).mean())}
    train(job)
    method.activate(None)
    assert digest(method) == undisturbed(name)[0]


def test_text_is_scored_at_its_target_positions(name: str) -> None:
    way = walked(name, 1)
    method = way.after(0)
    method.model.eval()
    (batch,) = way.stage(0).batches[0]
    for domain in (None, "food"):
        read = method.log_probs(batch, domain)
        assert read.shape[0] == len(batch["labels"])
        torch.testing.assert_close(read.exp().sum(-1), torch.ones(len(read)))


@pytest.mark.parametrize("freeze", ["none", "backbone"])
@pytest.mark.parametrize("domain", [None, "food"])
def test_an_end_task_trains_a_copy_and_leaves_the_original_untouched(
    name: str, freeze: str, domain: str | None
) -> None:
    method = walked(name, 1).after(0)
    before, grads = digest(method), [n for n, _ in trainable(method.model)]
    expected = states(method, "food")
    copy = Classifier(deepcopy(method.model), 2, "first")
    rates = method.for_end_task(copy, domain, freeze)
    start = {n: p.detach().clone() for n, p in copy.named_parameters()}
    training = dict(trainable(copy))
    assert rates.keys() <= training.keys()
    assert all(0 < factor <= 1 for factor in rates.values())
    assert {"dense.weight", "out.weight", "out.bias"} <= training.keys()
    word = "trunk.embeddings.word_embeddings.weight"
    trains = freeze == "none" and not method.freezes_backbone
    assert (word in training) == trains
    ids = torch.arange(5, 37).reshape(2, 16)
    optimizer = torch.optim.AdamW(list(training.values()), lr=0.1, weight_decay=0.1)
    copy(input_ids=ids).square().sum().backward()
    optimizer.step()
    changed = {n for n, p in copy.named_parameters() if not torch.equal(p, start[n])}
    assert {"dense.weight", "out.weight"} <= changed <= training.keys()
    assert (word in changed) == trains
    assert [n for n, _ in trainable(method.model)] == grads
    assert torch.equal(states(method, "food"), expected)
    assert digest(method) == before


def test_an_unknown_freeze_is_refused(name: str) -> None:
    method = Way(name).make()
    with pytest.raises(EunoeError, match=r"unknown freeze 'backbon'\. Did you mean backbone\?"):
        method.for_end_task(Classifier(method.model, 2, "first"), None, "backbon")
