"""DER++: a uniform reservoir, two draws, and both losses by hand from passes of the whole model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from eunoe.contract.way import Way, text
from eunoe.data.buffer import target_rows
from eunoe.errors import EunoeError
from eunoe.methods.derpp import Derpp, DerSettings, reservoir
from eunoe.models.heads import lm_loss, target_outputs
from tests.tiny import size, tiny_bert, tiny_gpt2


@pytest.mark.parametrize("capacity", [1, 7])
def test_the_reservoir_is_uniform_over_all_that_passed(capacity: int) -> None:
    """Of 30 items in three domains each is in the buffer equally often, and in equally many pairs with its neighbour."""
    runs, stages = 4000, (5, 20, 5)
    kept, pairs = np.zeros(30), 0
    for run in range(runs):
        places: list[int] = []
        for i, new in enumerate(stages):
            seen = sum(stages[:i])
            chosen = reservoir(len(places), seen, new, capacity, np.random.default_rng((run, i)))
            places += [-1] * (len({*range(len(places)), *chosen}) - len(places))
            for place, item in chosen.items():
                places[place] = seen + item
        assert len(places) == capacity == len(set(places))
        assert min(places) >= 0
        kept[places] += 1
        pairs += {0, 1} <= set(places)
    assert chisquare(kept).pvalue > 0.001
    expected = runs * capacity * (capacity - 1) / (30 * 29)
    assert abs(pairs - expected) <= 4 * max(1, expected) ** 0.5


def test_a_reservoir_that_is_not_full_takes_all_in_order() -> None:
    rng = np.random.default_rng(0)
    assert reservoir(0, 0, 3, 5, rng) == {0: 0, 1: 1, 2: 2}
    full = reservoir(3, 3, 4, 5, rng)
    assert {3: 0, 4: 1}.items() <= full.items() or set(full) <= set(range(5))
    assert reservoir(5, 10**9, 3, 5, rng) == {}, "after a billion others three have no chance"


@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize("top", [None, 3])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_both_losses_are_worked_out_by_hand(micro_batch: int | None, top: int | None, model: Any) -> None:
    choice = {"name": "der++", "alpha": 0.3, "beta": 0.7, "rows": 3, "top": top, "capacity": 5}
    way = Way(choice, model, double=True).walked(1)
    method, teacher, stage = way.before(1), way.after(0).model.eval(), way.stage(1, micro_batch=micro_batch)
    method.begin(stage)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in method.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    words = torch.from_numpy(text("food").ids[0])
    batches = method.batches(stage)
    for step in range(3):
        distances, losses, got, items, own = [], [], 0.0, 0, 0
        for batch in batches[step]:
            outputs = target_outputs(method.model, batch)
            own += lm_loss.items(batch)
            if method.extra_items(batch):
                got, items = got + method.extra_loss(batch, outputs), items + method.extra_items(batch)
            old, new = teacher(batch["input_ids"]).logits, method.model(batch["input_ids"]).logits
            for row in range(len(batch["input_ids"])):
                here = batch["positions"][target_rows(batch) == row] % 16
                if batch["der_answers"][row] if "der_answers" in batch else False:
                    z, f = old[row, here], new[row, here]
                    if top:
                        at = z.argsort(-1, descending=True)[:, :top]
                        z, f = z.gather(-1, at), f.gather(-1, at)
                    distances.append(((z - f) ** 2).mean())
                if batch["der_labels"][row] if "der_labels" in batch else False:
                    gold = words[here] if model is tiny_bert else words[here + 1]
                    losses.append(F.cross_entropy(new[row, here], gold))
        assert len(distances) == len(losses) == 3
        assert items == 6
        assert own == sum(lm_loss.items(batch) for batch in stage.batches[step]), "the LM loss leaves the buffer out"
        expected = 0.3 * sum(distances) / 3 + 0.7 * sum(losses) / 3
        torch.testing.assert_close(got / items, expected, rtol=1e-8, atol=1e-10)
        assert max(float(d.detach()) for d in distances) > 1e-3


def drawn(way: Way, mark: str) -> list[tuple[int, ...]]:
    method = way.before(1)
    stage = way.stage(1)
    method.begin(stage)
    batches = method.batches(stage)
    return [tuple(batch[mark][batch[mark] > 0].tolist()) for step in range(6) for batch in batches[step]]


def test_the_two_draws_are_independent_and_cover_the_buffer() -> None:
    way = Way({"name": "der++", "rows": 2}).walked(1)
    answers, labels = drawn(way, "der_answers"), drawn(way, "der_labels")
    assert answers == drawn(way, "der_answers")
    assert answers != labels
    assert {len(a) for a in answers} == {len(b) for b in labels} == {2}
    assert len(Counter(i for a in (*answers, *labels) for i in a)) > 4


@pytest.mark.parametrize(("top", "values"), [(None, size()), (3, 3), (10**6, size())])
def test_the_buffer_holds_what_it_says(top: int | None, values: int) -> None:
    way = Way({"name": "der++", "top": top, "capacity": 11}, tiny_gpt2).walked(steps=2)
    state = way.finals[-1]["method"]
    assert state["seen"] == 24
    assert state["kept"]["ids"].shape == (11, 16)
    assert state["kept"]["logits"].shape == (11 * 15, values)
    assert ("tokens" in state["kept"]) == (values == 3)
    first = [tuple(words) for words in state["kept"]["ids"].tolist()]
    assert set(first) <= {tuple(text(d).ids[0].tolist()) for d in ("food", "law", "sea")}
    assert len(set(first)) > 1


@pytest.mark.parametrize("state", [{}, {"seen": 3}, {"seen": 3, "kept": {"ids": torch.ones(2)}}])
def test_another_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(EunoeError, match=r"der\+\+: the saved state holds .*belongs to another method"):
        Derpp(tiny_bert(), DerSettings(), ["law"]).load_state_dict(state)
