"""Weights sharded over two processes (FSDP2) end where one process ends, and have the same fingerprint of the anchor."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam, anchored_groups

DATA = torch.arange(24, dtype=torch.float64).reshape(4, 6) / 24


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 3)).double()  # 7 rows: the shards are unequal


def train(net: nn.Module, anchor: dict[str, Tensor], rows: slice) -> RecAdam:
    optimizer = RecAdam(anchored_groups(net, anchor=anchor, weight_decay=0.1), 1e-4, t0=2, k=1.0)
    for _ in range(5):
        net(DATA[rows]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def fingerprints(optimizer: RecAdam) -> list[str]:
    return [group["anchor"] for group in optimizer.state_dict()["param_groups"]]


def resume_flattened(net: nn.Module, optimizer: RecAdam, anchor: dict[str, Tensor]) -> None:
    """A flattened state, as FSDP2 is usually saved, put into a new optimizer: both take the same further step."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options))
    weights = [p.detach().clone() for p in net.parameters()]
    again = RecAdam(anchored_groups(net, anchor=anchor, weight_decay=0.1), 1e-4, t0=2, k=1.0)
    set_optimizer_state_dict(net, again, state, options=options)
    ends = []
    for each in (optimizer, again):
        with torch.no_grad():
            for p, before in zip(net.parameters(), weights, strict=True):
                p.copy_(before)
                p.grad = torch.ones_like(p)
        each.step()
        ends.append([p.to_local().clone() for p in net.parameters()])  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def one_of_two(rank: int, meeting: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    whole, sharded = model(), model()
    anchor = {name: p.detach() + 0.1 for name, p in whole.named_parameters()}
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    two, one = train(sharded, anchor, slice(2 * rank, 2 * rank + 2)), train(whole, anchor, slice(None))
    for own, alone in zip(sharded.parameters(), whole.parameters(), strict=True):
        assert own.to_local().shape != alone.shape
        torch.testing.assert_close(own.full_tensor(), alone.detach(), rtol=0, atol=1e-14)
    assert fingerprints(two) == fingerprints(one)
    resume_flattened(sharded, two, anchor)
    with pytest.raises(EunoeError, match=r"anchors: .*shard with FSDP2 instead"):
        ZeroRedundancyOptimizer(
            [{"params": list(whole.parameters()), "anchor": list(anchor.values())}], RecAdam, lr=1e-4
        )
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch with gloo")
def test_two_processes_with_sharded_weights_agree_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path / "meeting"),), nprocs=2)
