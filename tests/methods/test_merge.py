"""Merging: TIES by hand and against numpy on whole models, averages and sums of what each domain changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eunoe.contract.way import Way
from eunoe.methods.merge import agreed, trim
from tests.tiny import tiny_bert, tiny_gpt2


def test_trim_keeps_the_largest_over_all_weights_together() -> None:
    change = {"a": torch.tensor([0.1, -5.0, 0.3]), "b": torch.tensor([[2.0, -0.2]])}
    kept = trim(change, 0.4)
    assert kept["a"].tolist() == [0.0, -5.0, 0.0]
    assert kept["b"].tolist() == [[2.0, 0.0]]
    assert trim(change, 1.0)["a"].tolist() == change["a"].tolist()


def test_agreed_is_the_mean_of_those_with_the_sign_of_the_sum() -> None:
    changes = [
        torch.tensor([3.0, -1.0, 0.0, 2.0]),
        torch.tensor([1.0, -3.0, 0.0, -2.0]),
        torch.tensor([-2.0, 0.0, 0.0, 0.0]),
    ]
    # sum 2: mean of 3 and 1; sum -4: mean of -1 and -3; all 0; they cancel
    assert agreed(changes).tolist() == [2.0, -2.0, 0.0, 0.0]


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    return np.concatenate([tensors[name].detach().double().numpy().ravel() for name in sorted(tensors)])


@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize(
    ("how", "scale"), [("average", None), ("average", 0.5), ("task_arithmetic", None), ("ties", None)]
)
def test_the_model_in_use_is_all_domains_merged(how: str, scale: float | None, model: Any) -> None:
    way = Way({"name": "merge", "how": how, "scale": scale, "density": 0.3}, model).walked(steps=3)
    base = flat(dict(way.make().model.named_parameters()))
    changes = [flat(final["weights"]) - base for final in way.finals]
    alone = Way("ncl", model).walked(1, steps=3)
    np.testing.assert_array_equal(flat(alone.finals[0]["weights"]) - base, changes[0])
    for i in range(3):
        if how == "average":
            merged = (scale or 1) * sum(changes[: i + 1]) / (i + 1)
        elif how == "task_arithmetic":
            merged = 0.4 * sum(changes[: i + 1])
        else:
            trimmed = []
            for change in changes[: i + 1]:
                smallest = np.argsort(np.abs(change), kind="stable")[: len(change) - round(0.3 * len(change))]
                cut = change.copy()
                cut[smallest] = 0
                trimmed.append(cut)
            sign = np.sign(sum(trimmed))
            agree = [np.where(np.sign(cut) == sign, cut, 0) for cut in trimmed]
            count = sum((cut != 0).astype(float) for cut in agree)
            merged = sum(agree) / np.maximum(count, 1)
        got = flat(dict(way.after(i).model.named_parameters())) - base
        assert np.abs(merged).max() > 1e-3
        off = np.abs(got - merged) > 1e-6
        assert off.mean() < (1e-3 if how == "ties" else 1e-9), "equal sizes at the edge of a trim may be cut either way"
