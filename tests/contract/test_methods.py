"""The contract that every method of METHODS keeps, so that a run can take any of them without knowing which.

The table is read, not listed again: a new method is tested by being there.
"""

from __future__ import annotations

import shutil
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eunoe import checkpoint
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError, Interrupted
from eunoe.evaluate.evaluator import hidden_states
from eunoe.methods import METHODS, Method
from eunoe.methods.base import Stage, trainable
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import Classifier, lm_loss
from eunoe.recipe import LoopSettings
from eunoe.train import Job, Trained, train
from tests.stages import put_back, stage, weights
from tests.test_train import MASK, Stopping, bits, same
from tests.tiny import size, tiny_bert, tiny_gpt2

DOMAINS = ["food", "law", "sea"]
STEPS = 6
NAMES = sorted(METHODS)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def make(name: str, model: nn.Module | None = None) -> Method:
    model = tiny_bert() if model is None else model
    torch.manual_seed(0)
    entry = METHODS[name]
    return entry.method(model, entry.settings(), list(DOMAINS))


def text(domain: str, steps: int = STEPS, objective: Any = "masked") -> LMBatches:
    """A corpus that repeats one sentence, another for each domain."""
    words = np.random.default_rng(DOMAINS.index(domain)).permutation(np.arange(5, size()))[:16]
    return LMBatches(Blocks(np.tile(words, (8, 1)), np.arange(5), domain), objective, MASK, size(), 8, steps, 1)


def job(method: Method, domain: str, steps: int = STEPS, folder: Path | None = None, **change: Any) -> Job:
    settings = LoopSettings(**{"batch": 8, "lr": 0.01, "warmup": 0.0, "checkpoint_every": 2, **change})
    optimizer = {"name": "adamw", "weight_decay": 0.1}
    objective = "causal" if "GPT2" in type(method.model).__name__ else "masked"
    return Job(name=domain, model=method.model, batches=text(domain, steps, objective), loss=lm_loss, settings=settings, seed=2,
               method=method, folder=folder, optimizer=lambda m: make_optimizer(optimizer, m, settings.lr, steps))  # fmt: skip


def learn(method: Method, domain: str, **change: Any) -> Trained:
    return train(job(method, domain, **change))


def states(method: Method, domain: str | None) -> Tensor:
    method.activate(domain)
    ids = torch.arange(5, 37).reshape(2, 16)
    return hidden_states(method.model, anatomy(method.model).base, ids)


# -- the hooks ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_loop_calls_the_hooks_in_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = make(name), []
    hooks = ("begin", "batches", "protected", "before_step", "penalty", "on_gradients", "after_step", "end")
    for hook in hooks:
        real = getattr(method, hook)

        def spy(*args: Any, hook: str = hook, real: Any = real) -> Any:
            calls.append((hook, *(arg.name if isinstance(arg, Stage) else arg for arg in args)))
            return real(*args)

        monkeypatch.setattr(method, hook, spy)
    learn(method, "food", steps=2, micro_batch=None)
    steps = [[("before_step", i, 2), ("penalty",), ("on_gradients",), ("after_step",)] for i in (0, 1)]
    first = [("begin", "food"), ("batches", "food"), ("protected",)]
    assert calls == [*first, *steps[0], *steps[1], ("end", "food")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
def test_it_learns(name: str, model: Any) -> None:
    """Random weights are made larger than usual: of smaller ones a frozen head makes almost equal logits."""
    losses = [point[1] for point in learn(make(name, model(initializer_range=0.5)), "food", steps=40, lr=0.02).curve]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("name", NAMES)
def test_some_weights_train_and_learning_moves_some_of_them(name: str) -> None:
    method = make(name)
    before = weights(method.model)
    before = {n: t.clone() for n, t in before.items()}
    learn(method, "food")
    assert before
    assert any(not torch.equal(before[n], t) for n, t in weights(method.model).items())


# -- kept and taken up ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_its_state_goes_through_a_checkpoint(name: str, tmp_path: Path) -> None:
    method = make(name)
    for domain in DOMAINS[:2]:
        learn(method, domain)
    checkpoint.save(tmp_path / "final", {"weights": weights(method.model), "method": method.state_dict()})
    held = checkpoint.load(tmp_path / "final").groups
    fresh = make(name)
    put_back(fresh.model, held["weights"], "final")
    fresh.load_state_dict(held["method"])
    for domain in (None, *DOMAINS[:2]):
        assert torch.equal(states(fresh, domain), states(method, domain))
    assert same(bits(fresh.model), bits(method.model))
    for one in (method, fresh):
        learn(one, "sea")
    assert same(bits(fresh.model), bits(method.model)), "and both must go on alike"


@pytest.mark.parametrize("name", NAMES)
def test_state_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(EunoeError):
        make(name).load_state_dict({"nonsense": 1})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [0, 2, 5])
def test_taken_up_it_ends_in_the_bits_of_one_never_stopped(name: str, step: int, tmp_path: Path) -> None:
    """In the second domain, where what the first one kept matters."""
    whole = make(name)
    learn(whole, "food")
    start, kept = bits(whole.model), whole.state_dict()
    learn(whole, "law", micro_batch=4)

    def taken_up() -> Method:
        method = make(name)
        with torch.no_grad():
            for n, p in method.model.named_parameters():
                p.copy_(start[n])
        method.load_state_dict(kept)
        return method

    work = job(taken_up(), "law", folder=tmp_path, micro_batch=4)
    work.batches = Stopping(work.batches, step, signal.SIGTERM)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        train(work)
    shutil.copytree(tmp_path, tmp_path / "fresh")
    again = taken_up()
    done = train(job(again, "law", folder=tmp_path, micro_batch=4))
    assert done.steps == STEPS
    assert same(bits(again.model), bits(whole.model))
    assert checkpoint.digest(again.state_dict()) == checkpoint.digest(whole.state_dict())
    for domain in (None, "food", "law"):
        assert torch.equal(states(again, domain), states(whole, domain))
    if kept:  # one that lacks what was kept between the stages would be another method
        with pytest.raises(EunoeError, match="belongs to another training"):
            train(job(make(name), "law", folder=tmp_path / "fresh", micro_batch=4))


# -- what it protects ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_protecting_masks_fit_their_weights(name: str) -> None:
    method = make(name)
    for domain in DOMAINS:
        method.begin(stage(domain))
        held = {id(p) for p in method.model.parameters()}
        kept = method.protected()
        for weight, mask in kept.items():
            assert id(weight) in held
            assert mask.dtype == torch.bool
            assert mask.shape == weight.shape
        room = sum(int((~kept[p]).sum()) if p in kept else p.numel() for _, p in trainable(method.model))
        assert room > 0, "something must be free to learn"
        learn(method, domain)


def three_domains(method: Method) -> dict[str, Tensor]:
    """Hidden states of each domain right after it was learnt, by ``eunoe.train.train`` with AdamW's weight decay."""
    kept = {}
    for domain in DOMAINS:
        learn(method, domain)
        kept[domain] = states(method, domain)
    return kept


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
def test_forgets_says_the_truth(name: str, model: Any) -> None:
    """False: earlier domains keep every bit. True: they do not, so that this test can fail."""
    method = make(name, model())
    before = states(method, None)
    kept = three_domains(method)
    equal = {domain: torch.equal(kept[domain], states(method, domain)) for domain in DOMAINS}
    assert equal == {"food": not method.forgets, "law": not method.forgets, "sea": True}
    assert not torch.equal(kept["food"], before), "a domain that changed nothing proves nothing"
    if not method.forgets:
        assert torch.equal(states(method, None), before), "text of no domain reads the base model"


@pytest.mark.parametrize("name", [n for n in NAMES if not METHODS[n].method.forgets])
def test_what_a_finished_domain_reads_is_named_and_stays(name: str) -> None:
    method = make(name)
    learn(method, "food")
    named = dict(method.model.named_parameters())
    reads = method.reads("food")
    assert reads.keys() <= named.keys()
    reads = {n: torch.ones_like(named[n], dtype=torch.bool) if mask is None else mask for n, mask in reads.items()}
    assert all(entries.dtype == torch.bool and entries.shape == named[n].shape for n, entries in reads.items())
    kept = {n: named[n].detach()[entries].clone() for n, entries in reads.items()}
    expected = states(method, "food")
    learn(method, "law")
    assert all(torch.equal(named[n].detach()[reads[n]], values) for n, values in kept.items())
    with torch.no_grad():  # what is not named may take any value
        for n, p in named.items():
            p[~reads[n]] = 7.0
    assert torch.equal(states(method, "food"), expected)


# -- use -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_any_domain_and_none_can_be_activated_at_any_time(name: str) -> None:
    method = make(name)
    for domain in (None, *DOMAINS):
        assert states(method, domain).isfinite().all()
    learn(method, "food")
    for domain in (None, *DOMAINS, "food"):
        first = states(method, domain)
        assert torch.equal(first, states(method, domain))
    assert torch.equal(states(method, "sea"), states(method, None)) or METHODS[name].method.forgets


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_between_two_domains_changes_nothing(name: str) -> None:
    one, two = make(name), make(name)
    for method in (one, two):
        learn(method, "food")
    for domain in (None, "food", "sea"):
        states(two, domain)
    for method in (one, two):
        learn(method, "law")
    assert same(bits(one.model), bits(two.model))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("freeze", ["none", "backbone"])
@pytest.mark.parametrize("domain", [None, "food"])
def test_an_end_task_trains_a_copy_and_leaves_the_original_untouched(
    name: str, freeze: str, domain: str | None
) -> None:
    method = make(name)
    learn(method, "food")
    before, state, grads = (
        bits(method.model),
        checkpoint.digest(method.state_dict()),
        [n for n, _ in trainable(method.model)],
    )
    expected = states(method, "food")
    copy = Classifier(deepcopy(method.model), 2, "first")
    start = bits(copy)
    rates = method.for_end_task(copy, domain, freeze)
    training = dict(trainable(copy))
    assert rates.keys() <= training.keys()
    assert all(0 < factor <= 1 for factor in rates.values())
    assert {"dense.weight", "out.weight", "out.bias"} <= training.keys()
    word = "trunk.embeddings.word_embeddings.weight"
    assert (word in training) == (freeze == "none")
    ids = torch.arange(5, 37).reshape(2, 16)
    optimizer = torch.optim.AdamW(list(training.values()), lr=0.1, weight_decay=0.1)
    copy(input_ids=ids).square().sum().backward()
    optimizer.step()
    changed = {n for n, value in bits(copy).items() if not torch.equal(value, start[n])}
    assert {"dense.weight", "out.weight"} <= changed <= training.keys()
    assert (word in changed) == (freeze == "none")
    assert same(bits(method.model), before)
    assert [n for n, _ in trainable(method.model)] == grads
    assert checkpoint.digest(method.state_dict()) == state
    assert torch.equal(states(method, "food"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_freeze_is_refused(name: str) -> None:
    method = make(name)
    with pytest.raises(EunoeError, match=r"unknown freeze 'backbon'\. Did you mean backbone\?"):
        method.for_end_task(Classifier(method.model, 2, "first"), None, "backbon")
