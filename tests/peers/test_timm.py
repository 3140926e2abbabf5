"""RecAdam in timm: its registry and factory, its schedulers with layer decay, Lookahead, and the problems of its suite.

Needs ``timm`` (and a torchvision that fits the installed torch). After tests/test_optim.py of
https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eunoe.optim import RecAdam, anchored_groups
from tests.peers import MAKERS, anchored, linear_problem, plain, run

try:
    import timm.optim as peer
    from timm.optim._optim_factory import default_registry
    from timm.scheduler import create_scheduler_v2
except Exception as error:  # a torchvision of another torch fails with RuntimeError
    pytest.skip(f"needs timm and a torchvision that fits torch: {error}", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    for name, kwargs in (("recadam", {"t0": 5, "gamma": 0.5}), ("recadamplain", {"anchor": None})):
        default_registry.register(peer.OptimInfo(name=name, opt_class=RecAdam, has_betas=True, defaults=kwargs))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 8, generator=g), torch.tensor([0, 1, 0, 1])


def loss_of(model: nn.Module) -> Any:
    x, y = batch()
    return lambda: nn.functional.cross_entropy(model(x), y)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["recadam", "recadamplain"])
def test_the_factory_builds_it_and_it_overfits_four_images(name: str, decay: float) -> None:
    model = net()
    groups = {"param_group_fn": lambda m: anchored_groups(m, weight_decay=decay)} if name == "recadam" else {}
    optimizer = peer.create_optimizer_v2(model, name, lr=1e-2, weight_decay=decay, **groups)
    assert isinstance(optimizer, RecAdam)
    assert {bool(group["weight_decay"]) for group in optimizer.param_groups} == ({True, False} if decay else {False})
    losses = run(optimizer, loss_of(model), 40)
    assert losses[-1] < losses[0] / 4


def test_layer_decay_scales_the_rates_of_its_groups_under_timms_cosine() -> None:
    class Layered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
            return {"stem": "^stem", "blocks": "^head"}

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).relu())

    torch.manual_seed(0)
    model = Layered()
    optimizer = peer.create_optimizer_v2(model, "recadamplain", lr=1e-2, weight_decay=0.1, layer_decay=0.5)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(scales) > 1
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=20, warmup_epochs=4, warmup_lr=1e-4, step_on_epochs=True
    )
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for epoch in range(20):
        losses += run(optimizer, lambda: (model(x) - 1).square().mean(), 1)[:1]
        scheduler.step(epoch + 1)
        rates = {group["lr"] / group["lr_scale"] for group in optimizer.param_groups}
        assert max(rates) == pytest.approx(min(rates))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_basic_problem_falls_with_groups_and_schedulers(maker: str, transposed: bool) -> None:
    for split in (False, True):
        for schedule in (None, torch.optim.lr_scheduler.StepLR):
            ps, loss = linear_problem(transposed=transposed)
            params: Any = [{"params": [ps[0]]}, {"params": [ps[1]], "lr": 1e-3}] if split else ps
            optimizer = MAKERS[maker](params, 1e-2)
            schedulers = [] if schedule is None else [schedule(optimizer, step_size=10, gamma=0.9)]
            losses = run(optimizer, loss, 100, *schedulers)
            assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("maker", MAKERS)
def test_a_state_loaded_in_the_middle_takes_the_same_steps(maker: str) -> None:
    (ps, loss), (qs, other) = linear_problem(), linear_problem()
    first, second = MAKERS[maker](ps, 1e-2), MAKERS[maker](qs, 1e-2)
    run(first, loss, 20)
    with torch.no_grad():
        for p, q in zip(ps, qs, strict=True):
            q.copy_(p)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    for _ in range(20):
        assert run(first, loss, 1) == run(second, other, 1)
    assert state["state"][0]["step"] == 20  # what was loaded is not moved along


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    "named",
    [{}, {"weight_decay": 1e-6}, {"betas": (0.8, 0.9)}, {"correct_bias": False}, {"form": "paper", "gamma": 0.1}],
)
def test_rosenbrock_comes_nearer_to_its_minimum(maker: str, named: dict[str, Any]) -> None:
    p = nn.Parameter(torch.tensor([1.5, 1.5]))
    optimizer = MAKERS[maker]([p], 5e-2, **named)

    def rosenbrock() -> Tensor:
        x, y = p
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    start = (p.detach() - 1).norm()
    run(optimizer, rosenbrock, 2000, torch.optim.lr_scheduler.StepLR(optimizer, 1000, 0.5))
    assert (p.detach() - 1).norm() < start / 2


@pytest.mark.parametrize("maker", MAKERS)
def test_lookahead_wraps_it_and_resumes(maker: str) -> None:
    (ps, loss), (qs, other) = linear_problem(), linear_problem()
    first, second = peer.Lookahead(MAKERS[maker](ps, 1e-2), k=3), peer.Lookahead(MAKERS[maker](qs, 1e-2), k=3)
    losses = run(first, loss, 12)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        for p, q in zip(ps, qs, strict=True):
            q.copy_(p)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert run(first, loss, 7) == run(second, other, 7)


@pytest.mark.xfail(
    strict=True, raises=TypeError, reason="timm's own Adam-like optimizers are 'cautious' on request; RecAdam is not"
)
def test_caution() -> None:
    plain(linear_problem()[0], caution=True)


def test_its_learning_rate_may_be_changed_by_hand_to_0() -> None:
    ps, loss = linear_problem()
    optimizer = anchored(ps)
    run(optimizer, loss, 2)
    before = [p.detach().clone() for p in ps]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    run(optimizer, loss, 3)
    assert all(torch.equal(p, b) for p, b in zip(ps, before, strict=True))
