"""EWC: the Fisher against autograd over single blocks, how Fishers merge, the pull in the loop, and a pass that is resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.contract.way import CALM, MASK, Way, digest, gradients
from eunoe.data.collate import Batch, LMBatches
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods.base import Stage
from eunoe.methods.ewc import Ewc, EwcSettings, fisher
from eunoe.models.heads import lm_loss
from eunoe.progress import Bar
from eunoe.train import train
from tests.tiny import size, tiny_bert, tiny_gpt2

N = 5


def stage(model: nn.Module, name: str = "law", seed: int = 7) -> tuple[Stage, list[Batch]]:
    """A stage of five blocks, and the list of what its loss will have been asked for."""
    ids = np.random.default_rng(seed).integers(5, size(), (N, 12))
    kind: Any = "causal" if model.config.model_type == "gpt2" else "masked"  # type: ignore[union-attr]
    seen: list[Batch] = []

    def loss(batch: Batch) -> Any:
        seen.append(batch)
        return lm_loss(model, batch)

    batches = LMBatches(Blocks(ids, np.arange(5), name), kind, MASK, size(), 2, 1, seed, mask_rate=0.3)
    return Stage(name=name, domains=(name,), seed=seed, batches=batches, loss=loss), seen


def by_autograd(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the mean LM loss over a batch's targets, from the model's logits at all positions."""
    logits = model(input_ids=batch["input_ids"]).logits.flatten(0, 1)
    loss = F.cross_entropy(logits[batch["positions"]], batch["labels"])
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_the_fisher_is_the_mean_of_single_blocks_squared_gradients(make: Any) -> None:
    model = make().double()
    model.train()  # the pass itself turns dropout off
    given, seen = stage(model)
    found = fisher(model, given)
    assert [len(batch["input_ids"]) for batch in seen] == [1] * N
    ids = given.batches.blocks.ids  # type: ignore[attr-defined]
    for i, batch in enumerate(seen):  # its targets are of its own block, whatever the masks
        step = 0 if make is tiny_bert else 1
        assert batch["labels"].tolist() == [ids[i][p + step] for p in batch["positions"].tolist()]
    model.eval()
    each = [by_autograd(model, batch) for batch in seen]
    assert found.keys() == each[0].keys()
    for name, value in found.items():
        expected = sum(grads[name] ** 2 for grads in each) / N
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-18)
    assert max(float(value.max()) for value in found.values()) > 1e-6
    assert all(p.grad is None for p in model.parameters())


def test_squared_batches_are_far_below_the_fisher() -> None:
    model = tiny_bert().double()
    given, seen = stage(model)
    found = fisher(model, given, squared=2)
    assert [len(batch["input_ids"]) for batch in seen] == [2, 2, 1]
    each = [by_autograd(model, batch) for batch in seen]
    for name, value in found.items():
        expected = sum(len(b["input_ids"]) * g[name] ** 2 for b, g in zip(seen, each, strict=True)) / 3
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-18)
    del seen[:]
    fisher(model, given, blocks=3)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("settings", "weights"),
    [({}, (1 / 3, 1 / 3, 1 / 3)), ({"merge": "online", "gamma": 0.5}, (0.25, 0.5, 1.0)), ({"merge": "online"}, (1.0, 1.0, 1.0))],
)  # fmt: skip
def test_fishers_of_several_domains_merge(settings: dict[str, Any], weights: tuple[float, ...]) -> None:
    model = tiny_bert().double()
    method = Ewc(model, EwcSettings(**settings), ["law", "sea", "art"])
    alone = []
    for seed, name in enumerate(("law", "sea", "art")):
        given, _ = stage(model, name, seed)
        alone.append(fisher(model, given))
        method.begin(given)
        method.end(given)
    for name, value in method.state_dict()["fisher"].items():
        expected = sum(w * one[name] for w, one in zip(weights, alone, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-18)


def test_in_the_loop_each_weight_is_pulled_as_its_fisher_says() -> None:
    """SGD with learning rate r moves a weight by -r g, so the second gradient gains lambda F times that."""
    met, fishers = {}, {}
    for strength in (0.0, 40.0):
        way = Way({"name": "ewc", "strength": strength}, double=True, **CALM)
        way.walked(1)
        met[strength], fishers = gradients(way, 1, 2), way.finals[0]["method"]["fisher"]
    for name, first in met[0.0][0].items():
        torch.testing.assert_close(met[40.0][0][name], first, rtol=1e-12, atol=1e-15)
        gained = met[40.0][1][name] - met[0.0][1][name]
        torch.testing.assert_close(gained, -40 * fishers[name] * 0.01 * first, rtol=1e-6, atol=1e-13)
    assert max(float(value.max()) for value in fishers.values()) > 1e-6


def test_the_pass_is_resumed_to_the_same_bits_and_reads_no_block_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    monkeypatch.setattr("eunoe.methods.ewc._LOOK", 2)
    way = Way("ewc")
    whole = way.before(0)
    train(way.job(whole, 0))
    looks, real = [], Bar.advance

    def advance(self: Bar, *args: Any) -> None:
        real(self, *args)
        if self.name.startswith("Fisher"):
            looks.append(self.done)
            if len(looks) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Bar, "advance", advance)
    for place in ("saved after 6 of 8", None):
        again = way.before(0)
        job = way.job(again, 0, tmp_path / "steps")
        assert job.stage is not None
        job.stage = job.stage.bind(folder=tmp_path / "steps" / "end")
        if place:
            with pytest.raises(Interrupted, match=f"while measuring the Fisher of food; {place}"):
                train(job)
        else:
            train(job)
    assert looks == [1, 2, 3, 4]
    assert digest(again) == digest(whole)


def test_a_fisher_of_another_model_is_refused() -> None:
    method = Ewc(tiny_bert(), EwcSettings(), ["law"])
    with pytest.raises(EunoeError, match=r"ewc: the saved Fisher does not fit this model: cls\.odd differ"):
        method.load_state_dict({"fisher": {"cls.odd": torch.ones(2)}, "measured": 1})
