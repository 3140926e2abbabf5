"""RecAdam beside kozistr's pytorch_optimizer: the problems and wrong inputs of its suite, its wrappers and its schedulers.

Needs ``pytorch_optimizer``. After tests/ of https://github.com/kozistr/pytorch_optimizer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam, anchored_groups
from tests.peers import MAKERS, anchored, linear_problem, plain, run

peer = pytest.importorskip("pytorch_optimizer", reason="needs the package pytorch_optimizer")


def logistic(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """Two linear layers and two clouds of points, the problem that every optimizer of the suite must halve the loss of."""
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).to(dtype)
    x = torch.cat([torch.randn(500, 2) - 1, torch.randn(500, 2) + 1]).to(dtype)
    y = torch.cat([torch.zeros(500, 1), torch.ones(500, 1)]).to(dtype)
    return model, lambda: nn.functional.binary_cross_entropy_with_logits(model(x).float(), y.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    "named",
    [
        {},
        {"weight_decay": 1e-3},
        {"correct_bias": False},
        {"anneal": "linear"},
        {"anneal": "constant"},
        {"k": float("inf")},
    ],
)
def test_the_loss_of_the_logistic_problem_is_halved(named: dict[str, Any], maker: str, dtype: torch.dtype) -> None:
    model, loss = logistic(dtype)
    losses = run(MAKERS[maker](model.parameters(), 5e-2, **named), loss, 100)
    assert losses[0] / losses[-1] > 2


@pytest.mark.parametrize(
    "named",
    [{"lr": -1e-3}, {"eps": -1e-6}, {"weight_decay": -1e-3}, {"betas": (-0.1, 0.1)}, {"betas": (0.1, -0.1)}, {"betas": (0.1, 1.0)}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(named: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(named))} (is|are)"):
        RecAdam([nn.Parameter(torch.zeros(1))], **{"lr": 1e-3, "anchor": None, **named})


def test_weights_without_gradients_and_without_needing_any_are_left_alone() -> None:
    ps = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3), requires_grad=False)]
    optimizer = anchored(ps)
    ps[0].grad = torch.ones(3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert (ps[0] < 0).all()
    assert all((p == 0).all() for p in ps[1:])


def test_a_closure_gives_its_loss() -> None:
    ps, loss = linear_problem()
    optimizer = anchored(ps)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    assert optimizer.step(closure).item() > loss().item()


def test_half_gradients_of_float_weights_under_autocast_train() -> None:
    model, _ = logistic()
    x, y = torch.randn(64, 2), torch.ones(64, 1)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.binary_cross_entropy_with_logits(model(x).float(), y)

    losses = run(anchored(model.parameters(), 5e-2), loss, 30)
    assert losses[-1] < losses[0] / 2


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(EunoeError, match="sparse"):
        plain(table.parameters()).step()


@pytest.mark.xfail(
    strict=True, raises=EunoeError, reason="complex weights are refused: give torch.view_as_real(weight)"
)
def test_complex_weights() -> None:
    p = nn.Parameter(torch.randn(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    plain([p]).step()


@pytest.mark.xfail(
    strict=True, raises=AttributeError, reason="its optimizers can be reset; a new RecAdam is made instead"
)
def test_reset() -> None:
    plain(linear_problem()[0]).reset()


@pytest.mark.xfail(strict=True, raises=TypeError, reason="RecAdam minimises: negate the loss")
def test_maximize() -> None:
    plain(linear_problem()[0], maximize=True)


@pytest.mark.xfail(strict=True, raises=NotImplementedError, reason="its table of names takes no optimizer from outside")
def test_its_table_finds_it_by_name() -> None:
    peer.load_optimizer("eunoe_recadam")


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("pullback", ["none", "reset", "pullback"])
def test_lookahead(maker: str, pullback: str) -> None:
    model, loss = logistic()
    wrapped = peer.Lookahead(MAKERS[maker](model.parameters(), 5e-2), k=5, alpha=0.5, pullback_momentum=pullback)
    losses = run(wrapped, loss, 150)
    assert losses[0] / losses[-1] > 1.5


@pytest.mark.parametrize("maker", MAKERS)
def test_orthograd(maker: str) -> None:
    (model, loss), (twin, other) = logistic(), logistic()
    losses = run(peer.OrthoGrad(MAKERS[maker](model.parameters(), 5e-2)), loss, 100)
    adamws = run(peer.OrthoGrad(torch.optim.AdamW(twin.parameters(), 5e-2, weight_decay=0.0)), other, 100)
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(adamws[-1], rel=0.05)


@pytest.mark.parametrize("maker", MAKERS)
def test_schedule_free(maker: str) -> None:
    model, loss = logistic()
    wrapped = peer.ScheduleFreeWrapper(MAKERS[maker](model.parameters(), 5e-2), momentum=0.9)
    wrapped.train()
    losses = run(wrapped, loss, 150)
    wrapped.eval()
    assert losses[0] / loss().item() > 1.5


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_aware_minimisation_over_anchored_groups(adaptive: bool) -> None:
    model, loss = logistic()
    sam = peer.SAM(anchored_groups(model), RecAdam, rho=0.02, adaptive=adaptive, lr=5e-2, gamma=0.5, t0=5, k=1.0)
    first = loss().item()
    for _ in range(100):
        loss().backward()
        sam.first_step(zero_grad=True)
        loss().backward()
        sam.second_step(zero_grad=True)
    assert first / loss().item() > 1.5
    assert any(group["anchor"] for group in sam.param_groups)


def test_pcgrad_of_two_losses() -> None:
    model, loss = logistic()
    optimizer = peer.PCGrad(anchored(model.parameters(), 5e-2))
    first = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        optimizer.pc_backward([loss(), 0.5 * loss()])
        optimizer.step()
    assert first / loss().item() > 1.5


@pytest.mark.parametrize("maker", MAKERS)
def test_its_schedulers(maker: str) -> None:
    for make in (
        lambda o: peer.get_wsd_schedule(o, 3, 50, 10),
        lambda o: peer.CosineAnnealingWarmupRestarts(o, 40, max_lr=5e-2, min_lr=1e-3, warmup_steps=5),
        lambda o: peer.LinearScheduler(o, t_max=60, max_lr=5e-2, min_lr=1e-3, warmup_steps=5),
        lambda o: peer.REXScheduler(o, total_steps=60, max_lr=5e-2, min_lr=1e-3),
    ):
        model, loss = logistic()
        optimizer = MAKERS[maker](model.parameters(), 5e-2)
        losses = run(optimizer, loss, 60, make(optimizer))
        assert losses[-1] < losses[0]
