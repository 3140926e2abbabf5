"""NT-ASGD against torch's SGD and ASGD, and its trigger by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eunoe.errors import EunoeError
from eunoe.optim.averaged import NtAsgd, triggered


def steps(optimizer: Any, weight: torch.nn.Parameter, n: int) -> None:
    for i in range(n):
        weight.grad = torch.sin(weight.detach() * 3 + i)
        optimizer.step()


def test_it_steps_as_torchs_sgd_and_averages_as_its_asgd() -> None:
    weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)) for _ in range(3)]
    ours = NtAsgd([weights[0]], lr=0.1, weight_decay=0.01)
    sgd = torch.optim.SGD([weights[1]], lr=0.1, weight_decay=0.01)
    for optimizer, weight in ((ours, weights[0]), (sgd, weights[1])):
        steps(optimizer, weight, 3)
    assert torch.equal(weights[0], weights[1])
    assert not ours.means()
    ours.start_averaging()
    with torch.no_grad():
        weights[2].copy_(weights[0])
    asgd = torch.optim.ASGD([weights[2]], lr=0.1, lambd=0.0, t0=0, weight_decay=0.01)
    for optimizer, weight in ((ours, weights[0]), (asgd, weights[2])):
        steps(optimizer, weight, 4)
    torch.testing.assert_close(weights[0], weights[2])
    torch.testing.assert_close(ours.means()[weights[0]], asgd.state[weights[2]]["ax"])
    before = weights[0].detach().clone()
    with ours.averaged():
        assert torch.equal(weights[0], ours.means()[weights[0]])
    assert torch.equal(weights[0], before)


def test_its_state_is_saved_and_loaded() -> None:
    one, two = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    first = NtAsgd([one], lr=0.1)
    first.start_averaging()
    steps(first, one, 3)
    second = NtAsgd([two], lr=0.1)
    with torch.no_grad():
        two.copy_(one)
    second.load_state_dict(first.state_dict())
    assert second.averaging
    steps(first, one, 2)
    steps(second, two, 2)
    assert torch.equal(first.means()[one], second.means()[two])


@pytest.mark.parametrize(
    ("losses", "n", "expected"),
    [
        ([], 5, False),
        ([3.0], 0, False),
        ([3.0, 4.0], 0, True),
        ([3.0, 2.0], 0, False),
        ([3.0, 4.0, 4.0], 2, False),  # none is older than the last two before it
        ([3.0, 4.0, 4.0, 4.0], 2, True),
        ([3.0, 2.0, 4.0, 3.0], 2, False),  # not above 3.0, the one that is old enough
    ],
)
def test_the_trigger(losses: list[float], n: int, expected: bool) -> None:
    assert triggered(losses, n) == expected


def test_numbers_below_0_are_refused() -> None:
    with pytest.raises(EunoeError, match=r"lr is -1"):
        NtAsgd([torch.nn.Parameter(torch.ones(1))], lr=-1)
