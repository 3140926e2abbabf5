"""Layer-wise rates, slanted triangle and unfreezing in the Trainer: every weight at every step, and the same bits after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from eunoe.errors import EunoeError
from eunoe.integrations.trainer import layerwise_groups, slanted_triangle, unfreezing
from eunoe.models.depth import depth_groups
from eunoe.optim.schedules import slanted_triangle as share
from tests.integrations.test_trainer import Stop, arguments, rows, same, tiny

PASS = 6
"""Optimizer steps of one pass: 24 rows, 4 at once."""


def three(model: Any, args: Any, callback: Any, **more: Any) -> Trainer:
    """A Trainer with all three techniques."""
    optimizer = torch.optim.AdamW(layerwise_groups(model, args.learning_rate, weight_decay=0.1))
    scheduler = slanted_triangle(optimizer, args.max_steps)
    callbacks = [callback, *more.pop("callbacks", [])]
    return Trainer(model, args, train_dataset=rows(), optimizers=(optimizer, scheduler), callbacks=callbacks, **more)


class Watch(TrainerCallback):
    """For each step: which groups moved, and the learning rate of each group's first weight."""

    def __init__(self, model: Any) -> None:
        self.model, self.groups = model, depth_groups(model)
        self.before: dict[str, torch.Tensor] = {}
        self.moved: list[str] = []
        self.rates: list[list[float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        rate_of = {p: g["lr"] for g in kwargs["optimizer"].param_groups for p in g["params"]}
        named = dict(self.model.named_parameters())
        for group in self.groups:
            assert len({rate_of[named[name]] for name in group.weights}) == 1
        self.rates.append([rate_of[named[group.weights[0]]] for group in self.groups])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = dict(self.model.named_parameters())
        moved = [{name: not torch.equal(named[name], self.before[name]) for name in g.weights} for g in self.groups]
        # a key's bias has no gradient but rounding (softmax does not see it), and rows of a table that no text has none
        either = [any(group.values()) for group in moved]
        self.moved.append("".join(str(i) for i, any_moved in enumerate(either) if any_moved))


PHASES = {
    ("gradual", None): ["3", "23", "123", "0123", "0123"],
    ("gradual", 2): ["3", "23", "0123", "0123", "0123"],
    ("chain-thaw", None): ["3", "0", "1", "2", "0123"],
    ("last", None): ["3"] * 5,
}


@pytest.mark.parametrize(("order", "most"), PHASES)
def test_the_group_and_rate_of_every_weight_at_every_step(tmp_path: Path, order: Any, most: int | None) -> None:
    model = tiny()
    watch = Watch(model)
    args = arguments(tmp_path, max_steps=5 * PASS, lr_scheduler_type="constant")
    three(model, args, unfreezing(order, most=most), callbacks=[watch]).train()
    assert watch.moved == [phase for phase in PHASES[order, most] for _ in range(PASS)]
    for step, rates in enumerate(watch.rates):
        height = share(step, 5 * PASS)
        assert rates == pytest.approx([1e-3 * height / 2.6**below for below in (3, 2, 1, 0)])
    assert all(p.requires_grad for p in model.parameters())  # as they were before


def test_a_phase_of_so_many_steps_with_accumulation(tmp_path: Path) -> None:
    model = tiny()
    watch = Watch(model)
    args = arguments(tmp_path, max_steps=9, gradient_accumulation_steps=2)
    three(model, args, unfreezing(every=2), callbacks=[watch]).train()
    assert watch.moved == ["3", "3", "23", "23", "123", "123", "0123", "0123", "0123"]
    whole = tiny()
    other = Watch(whole)
    args = arguments(tmp_path / "pass", max_steps=10, gradient_accumulation_steps=2)
    three(whole, args, unfreezing(), callbacks=[other]).train()  # a pass has 3 steps now
    assert other.moved == ["3"] * 3 + ["23"] * 3 + ["123"] * 3 + ["0123"]


@pytest.mark.parametrize("stopped", [4, 6, 9])
def test_resumed_in_the_middle_of_unfreezing_it_ends_in_the_same_bits(tmp_path: Path, stopped: int) -> None:
    """In the middle of a phase, at the boundary of two, and in the middle of an accumulated pass."""
    change = {"max_steps": 14, "save_strategy": "steps", "save_steps": stopped}
    whole, cut, resumed = tiny(), tiny(), tiny()
    three(whole, arguments(tmp_path / "whole", **{**change, "save_steps": 50}), unfreezing(every=3)).train()
    args = arguments(tmp_path / "cut", **change)
    three(cut, args, unfreezing(every=3), callbacks=[Stop(stopped)]).train()
    assert not same(cut, whole)
    watch = Watch(resumed)
    again = three(resumed, args, unfreezing(every=3), callbacks=[watch])
    again.train(resume_from_checkpoint=str(tmp_path / f"cut/checkpoint-{stopped}"))
    assert same(resumed, whole)
    assert watch.moved == (["3"] * 3 + ["23"] * 3 + ["123"] * 3 + ["0123"] * 5)[stopped:]


class Broken(TrainerCallback):
    """Breaks off a run within a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_broken_off_and_resumed_in_the_same_process_all_layers_train(tmp_path: Path) -> None:
    """The same model and a new Trainer, and the same Trainer: what waited for its phase is not taken for frozen by the user."""
    change = {"max_steps": 14, "save_strategy": "steps", "save_steps": 4}
    whole, model = tiny(), tiny()
    model.bert.embeddings.LayerNorm.weight.requires_grad_(False)
    whole.bert.embeddings.LayerNorm.weight.requires_grad_(False)
    three(whole, arguments(tmp_path / "whole", **{**change, "save_steps": 50}), unfreezing(every=3)).train()
    args, stop = arguments(tmp_path / "cut", **change), Broken(5)
    first = three(model, args, unfreezing(every=3), callbacks=[stop])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    stop.step = -1
    first.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-4"))
    assert same(model, whole)
    again = tiny()
    again.bert.embeddings.LayerNorm.weight.requires_grad_(False)
    with pytest.raises(KeyboardInterrupt):
        three(again, args, unfreezing(every=3), callbacks=[Broken(5)]).train()
    three(again, args, unfreezing(every=3)).train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-4"))
    assert same(again, whole)
    assert not again.bert.embeddings.LayerNorm.weight.requires_grad


@pytest.mark.parametrize("added", [False, True])
def test_broken_off_and_begun_anew_with_the_trainers_own_optimizer(tmp_path: Path, added: bool) -> None:
    """The Trainer leaves frozen weights out of its optimizer: they are freed before it is made, or the run is refused."""
    model, args = tiny(), arguments(tmp_path, max_steps=14, warmup_steps=0)
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, args, train_dataset=rows(), callbacks=[unfreezing(every=3), Broken(3)]).train()
    watch = Watch(model)
    trainer = Trainer(model, args, train_dataset=rows(), callbacks=[watch] if added else [unfreezing(every=3), watch])
    if added:  # too late to free them
        trainer.add_callback(unfreezing(every=3))
        with pytest.raises(EunoeError, match=r"weights \(bert.* are still frozen by a run that was broken off"):
            trainer.train()
    else:
        trainer.train()
        assert watch.moved == ["3"] * 3 + ["23"] * 3 + ["123"] * 3 + ["0123"] * 5


def test_what_the_user_freezes_after_a_broken_run_stays_frozen(tmp_path: Path) -> None:
    model, args = tiny(), arguments(tmp_path, max_steps=14)
    with pytest.raises(KeyboardInterrupt):
        three(model, args, unfreezing(every=3), callbacks=[Broken(2)]).train()
    model.requires_grad_(True)
    model.bert.embeddings.requires_grad_(False)
    before = model.bert.embeddings.word_embeddings.weight.detach().clone()
    three(model, args, unfreezing(every=3)).train()
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before)
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad


def test_each_technique_alone(tmp_path: Path) -> None:
    """Rates without unfreezing move everything; unfreezing works with the Trainer's own optimizer and schedule."""
    model = tiny()
    watch = Watch(model)
    optimizer = torch.optim.SGD(layerwise_groups(model, 1e-2, factor=2.0))
    args = arguments(tmp_path, max_steps=2, lr_scheduler_type="constant", warmup_steps=0)
    Trainer(model, args, train_dataset=rows(), optimizers=(optimizer, None), callbacks=[watch]).train()
    assert watch.moved == ["0123"] * 2
    assert watch.rates == [pytest.approx([1e-2 / 8, 1e-2 / 4, 1e-2 / 2, 1e-2])] * 2

    frozen = tiny()
    before = {n: p.detach().clone() for n, p in frozen.named_parameters()}
    args = arguments(tmp_path, max_steps=3, warmup_steps=0)
    Trainer(frozen, args, train_dataset=rows(), callbacks=[unfreezing("last")]).train()
    moved = {n for n, p in frozen.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[-2] for n in moved} == {"classifier", "dense"}  # the pooler's


def test_what_the_user_froze_stays_frozen(tmp_path: Path) -> None:
    model = tiny()
    model.bert.embeddings.requires_grad_(False)
    before = model.bert.embeddings.word_embeddings.weight.detach().clone()
    groups = layerwise_groups(model, 1e-3)
    assert not any("embeddings" in name for group in groups for name, _ in group["params"])
    three(model, arguments(tmp_path, max_steps=5), unfreezing(every=1)).train()
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before)
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad


def test_only_matrices_decay() -> None:
    groups = layerwise_groups(tiny(), 1e-3, weight_decay=0.1)
    assert {p.ndim > 1: g["weight_decay"] for g in groups for _, p in g["params"]} == {True: 0.1, False: 0.0}
    assert sum(len(g["params"]) for g in groups) == len(list(tiny().parameters()))


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EunoeError, match=r"lr 0, factor 2\.6"):
        layerwise_groups(tiny(), 0)
    with pytest.raises(EunoeError, match="every weight of the model is frozen"):
        layerwise_groups(tiny().requires_grad_(False), 1e-3)
    with pytest.raises(EunoeError, match=r"cut_frac 1\.5"):
        slanted_triangle(torch.optim.SGD(layerwise_groups(tiny(), 1e-3)), 10, cut_frac=1.5)
    for change, message in (
        ({"order": "up"}, "order is 'up'; allowed: gradual, chain-thaw, last"),
        ({"every": 0}, "every is 0; give a whole number"),
        ({"most": 1.5}, "most is 1.5"),
        ({"order": "last", "every": 3}, "reads neither every nor most"),
    ):
        with pytest.raises(EunoeError, match=message):
            unfreezing(**change)  # type: ignore[arg-type]
    with pytest.raises(EunoeError, match="4 phases of 6 steps need 19 steps at least, and the run has 18"):
        three(tiny(), arguments(tmp_path, max_steps=3 * PASS), unfreezing()).train()
    args = arguments(tmp_path, max_steps=30)
    monkeypatch.setattr(type(args), "world_size", property(lambda self: 2))
    with pytest.raises(EunoeError, match="ddp_find_unused_parameters=True"):
        unfreezing().on_train_begin(args, None, None, model=tiny(), train_dataloader=[])  # type: ignore[arg-type]
