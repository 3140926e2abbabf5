"""WiSE: the weights lie where they should between the old and the new ones, and alpha is chosen on held-out text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eunoe.contract.way import Way, text
from eunoe.methods.wise import GRID, Wise, WiseSettings, interpolate
from eunoe.models.heads import lm_loss, target_logits
from tests.stages import stage
from tests.tiny import tiny_bert, tiny_gpt2


def test_interpolation_by_hand() -> None:
    into, old, new = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    for alpha, expected in ((0.25, [1.5, 1.0]), (0.0, [1.0, 2.0]), (1.0, [3.0, -2.0])):
        interpolate(into, old, new, alpha)
        assert into["w"].tolist() == expected


@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
def test_a_learnt_domain_goes_back_a_part_of_the_way(model: Any) -> None:
    start = {n: p.detach() for n, p in Way("ncl", model).make().model.named_parameters()}
    free, back = Way("ncl", model).walked(1), Way({"name": "wise", "alpha": 0.3}, model).walked(1)
    moved = 0.0
    for name, end in free.finals[0]["weights"].items():
        torch.testing.assert_close(back.finals[0]["weights"][name], 0.7 * start[name] + 0.3 * end, rtol=1e-5, atol=1e-7)
        moved = max(moved, float((end - start[name]).abs().max()))
    assert moved > 0.01
    assert back.finals[0]["method"] == {"alphas": {"food": 0.3}}


def test_the_old_weights_may_be_the_pretrained_ones() -> None:
    model = tiny_bert()
    method = Wise(model, WiseSettings(alpha=0.25, anchor="base"), ["law", "sea"])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)  # an earlier domain
    method.begin(stage("sea"))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    method.end(stage("sea"))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] + 0.5, rtol=1e-5, atol=1e-5)


def test_alpha_is_chosen_where_the_mean_held_out_loss_of_all_domains_is_lowest() -> None:
    way = Way({"name": "wise", "alpha": None}, order=("food", "law"), initializer_range=0.5)
    method = way.make()
    learnt = Way("ncl", order=("food", "law"), initializer_range=0.5).walked(steps=30, lr=0.02)
    old, new = learnt.finals[0]["weights"], learnt.finals[1]["weights"]
    valid = {d: [Way("ncl", order=(d,)).stage(0, steps=1).batches[0][0]] for d in ("food", "law")}
    assert text("food").ids[0].tolist() != text("law").ids[0].tolist()
    given = way.stage(1).bind(valid=valid, loss=lambda batch: lm_loss(method.model, batch))
    named = method.weights()
    for name, tensor in old.items():
        named[name].copy_(tensor)
    method.begin(given)
    for name, tensor in new.items():
        named[name].copy_(tensor)
    method.end(given)
    losses = {}
    mixed = tiny_bert(initializer_range=0.5)
    for alpha in GRID:
        with torch.no_grad():
            for name, p in mixed.named_parameters():
                p.copy_((1 - alpha) * old[name] + alpha * new[name])
            each = [
                float(torch.nn.functional.cross_entropy(target_logits(mixed, batch), batch["labels"]))
                for (batch,) in valid.values()
            ]
        losses[alpha] = sum(each) / 2
    best = min(losses, key=lambda alpha: losses[alpha])
    assert 0 < best < 1, "else the choice proves little"
    assert method.state_dict() == {"alphas": {"law": best}}
    for name, tensor in named.items():
        torch.testing.assert_close(tensor, (1 - best) * old[name] + best * new[name], rtol=1e-4, atol=1e-6)
    assert method.notes()["lines"] == [f"Share of the new weights (alpha): {best:g} after law."]
