"""A method on its way through its stages, as ``sequence.py`` takes it through a run, but in memory and with any rows of METHODS."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eunoe import checkpoint, sequence
from eunoe.choices import make_optimizer
from eunoe.contract.tiny import size, tiny_bert
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks, joined
from eunoe.evaluate.evaluator import hidden_states
from eunoe.methods import METHODS, Method, choose_method
from eunoe.methods.base import Stage, trainable
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import lm_loss
from eunoe.recipe import LoopSettings, TrainingSettings
from eunoe.train import Job, Trained, train

DOMAINS = ("food", "law", "sea")
STEPS = 6
MASK = 4
CALM: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def order_of(name: str) -> tuple[str, ...]:
    """One that names a domain again, for methods that allow it."""
    return (*DOMAINS[:2], DOMAINS[0]) if METHODS[name].method.returns else DOMAINS


def text(domain: str) -> Blocks:
    """A corpus that repeats one sentence, another for each domain."""
    words = np.random.default_rng(DOMAINS.index(domain)).permutation(np.arange(5, size()))[:16]
    return Blocks(np.tile(words, (8, 1)), np.arange(5), domain)


class Way:
    """``after(i)``: a fresh method in the state after stage i, from what the stages left. ``learn(i)`` adds what the next one leaves.

    ``double``: in float64 and without dropout, to hold gradients against each other; a method that contrasts the rows of a
    micro-batch does so without this term.
    """

    def __init__(
        self, choice: Any, model: Callable[..., nn.Module] = tiny_bert, order: Sequence[str] | None = None, *,
        double: bool = False, rank: int = 0, world: int = 1, **change: Any,
    ) -> None:  # fmt: skip
        alone = double and isinstance(choice, str) and METHODS[choice].method.contrasts
        self.chosen = choose_method({"name": choice, "contrast": 0.0} if alone else choice, "test")
        given = order or (order_of(choice) if isinstance(choice, str) else DOMAINS)
        self.way = sequence.Sequence("test", self.chosen, TrainingSettings(), "given", tuple(given), 0)
        self.stages, self.names = self.way.stages, self.way.names
        self.last = len(self.stages) - 1
        self._model, self.double, self.rank, self.world, self.change = model, double, rank, world, change
        self.finals: list[dict[str, Any]] = []

    def make(self) -> Method:
        model = self._model(**self.change)
        model = model.double() if self.double else model
        torch.manual_seed(0)
        method = self.chosen.build(model, sequence._unique(self.way))
        if self.double:
            method.model.double()
            for part in method.model.modules():  # a method's own; the model's is off by CALM
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
        return method

    def after(self, i: int) -> Method:
        method = self.make()
        for k in range(i + 1) if self.chosen.starts_from == "base" else [i] if i >= 0 else []:
            final = copy.deepcopy(self.finals[k])
            method.restore(self.names[k], final["weights"], final["method"], "the final")
        return method

    def before(self, i: int) -> Method:
        """A fresh method in the state that stage ``i`` begins in."""
        return self.after(i - 1 if self.way.needs(i) else -1)

    def stage(self, i: int, steps: int = STEPS, micro_batch: int | None = None) -> Stage:
        objective: Any = "causal" if self._model is not tiny_bert else "masked"
        domains, seed = self.stages[i], 3 + i
        blocks = joined([text(domain) for domain in domains])
        batches = LMBatches(blocks, objective, MASK, size(), 6, steps, seed, micro_batch, 0.3, self.rank, self.world)
        earlier = self.way.learnt(i - 1) if "earlier" in self.chosen.reads else ()
        return Stage(name=self.names[i], domains=domains, index=i, epochs=steps * 6 / len(blocks), seed=seed, batches=batches,
                     earlier={domain: text(domain) for domain in earlier})  # fmt: skip

    def job(self, method: Method, i: int, folder: Path | None = None, steps: int = STEPS, **change: Any) -> Job:
        settings = LoopSettings(
            **{"batch": 6, "lr": 0.01, "warmup": 0.0, "checkpoint_every": 2, "precision": "float32", **change}
        )
        stage = self.stage(i, steps, settings.micro_batch)
        # gradients are compared in float64, and Adam would make a rounding of 1e-16 in a gradient near 0 a step of its full size
        plain = lambda model: torch.optim.SGD([p for _, p in trainable(model)], lr=0.1)  # noqa: E731
        adamw = lambda model: make_optimizer({"name": "adamw", "weight_decay": 0.1}, model, settings.lr, steps)  # noqa: E731
        return Job(name=self.names[i], model=method.model, batches=stage.batches, loss=lm_loss, settings=settings, seed=2, method=method,
                   folder=folder, stage=stage, optimizer=plain if self.double else adamw)  # fmt: skip

    def keep(self, i: int, method: Method) -> None:
        """What stage ``i`` left, through a checkpoint's form."""
        final = {"weights": method.weights(), "method": method.state_dict()}
        del self.finals[i:]
        self.finals.append(copy.deepcopy(final))

    def learn(self, i: int, **change: Any) -> Trained:
        """Learn stage ``i`` from what the stages before left."""
        method = self.before(i)
        done = train(self.job(method, i, **change))
        self.keep(i, method)
        return done

    def walked(self, upto: int | None = None, **change: Any) -> Way:
        """The same way with all stages before ``upto`` (default: all) learnt."""
        for i in range(len(self.finals), len(self.stages) if upto is None else upto):
            self.learn(i, **change)
        return self


@cache
def _walked(name: str, model: Callable[..., nn.Module]) -> list[dict[str, Any]]:
    return Way(name, model).walked().finals


def walked(name: str, upto: int | None = None, model: Callable[..., nn.Module] = tiny_bert) -> Way:
    """``Way(name, model)`` with the stages before ``upto`` (default: all) learnt; what they left is learnt once for all tests."""
    way = Way(name, model)
    way.finals = _walked(name, model)[:upto]
    return way


@cache
def undisturbed(name: str) -> tuple[str, dict[str | None, Tensor]]:
    """The digest of a method that has just learnt its last stage, in micro-batches of 2, and its states by domain."""
    way = walked(name)
    method = way.before(way.last)
    train(way.job(method, way.last, micro_batch=2))
    method.activate(None)
    return digest(method), {domain: states(method, domain) for domain in (None, *way.way.order)}


def stopping(step: int) -> Callable[[int], Mapping[str, float]]:
    """``Job.observe``: a signal after that step (from 1), as a user sends one."""

    def look(done: int) -> Mapping[str, float]:
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return look


def digest(method: Method) -> str:
    """Of everything: each weight and buffer, bit for bit, and what is kept between the stages."""
    named = {**dict(method.model.named_parameters()), **dict(method.model.named_buffers())}
    return checkpoint.digest({"all": {n: t.detach() for n, t in named.items()}, "state": method.state_dict()})


def states(method: Method, domain: str | None) -> Tensor:
    method.activate(domain)
    ids = torch.arange(5, 37).reshape(2, 16)
    return hidden_states(method.model, anatomy(method.model).base, ids)


def gradients(way: Way, i: int, micro_batch: int | None) -> list[dict[str, Tensor]]:
    """What the optimizer meets in each step of stage ``i``; its steps are large enough that penalties count."""
    method = way.before(i)
    job = way.job(method, i, steps=3, micro_batch=micro_batch, clip=None, lr=0.01)
    met: list[dict[str, Tensor]] = []

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        made = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        grads = lambda *_: met.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})  # noqa: E731
        made.register_step_pre_hook(grads)
        return made

    job.optimizer = optimizer
    train(job)
    return met
