"""RecAdam against numbers recorded from the authors' optimizer: golden/recadam, eight cases, float64, 30 steps."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eunoe.optim import RecAdam
from tests.conftest import shared

CASES = (
    "constant",
    "flat_k0",
    "linear",
    "no_bias_correction",
    "scaled_w",
    "sigmoid",
    "sigmoid_weight_decay_warmup",
    "steep",
)
WAYS = ("plain", "by torch's kernel", "in C", "chosen", "under torch.compile")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_thirty_steps_are_the_authors_to_1e_12(case: str, way: str) -> None:
    settings = json.loads(shared(f"golden/recadam/{case}.json").read_text())
    recorded = load_file(shared(f"golden/recadam/{case}.safetensors"))
    trunk = [nn.Parameter(recorded[f"start.{i}"].clone()) for i in range(3)]
    head = [nn.Parameter(recorded[f"head_start.{i}"].clone()) for i in range(2)]
    optimizer = RecAdam(
        [{"params": trunk, "anchor": [recorded[f"anchor.{i}"] for i in range(3)]}, {"params": head, "anchor": None}],
        lr=settings["lr_schedule"][0],
        betas=settings["betas"],
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        gamma=settings["pretrain_cof"],
        anneal=settings["anneal_fun"],
        k=settings["anneal_k"],
        t0=settings["anneal_t0"],
        weight=settings["anneal_w"],
        correct_bias=settings["correct_bias"],
        fused={"plain": False, "chosen": None, "under torch.compile": None}.get(way, True),
        compiled={"in C": True, "by torch's kernel": False}.get(way),
    )
    step: Callable[[], object] = torch.compile(optimizer.step) if way == "under torch.compile" else optimizer.step
    compared = 0
    for t, lr in enumerate(settings["lr_schedule"]):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, weight in enumerate(trunk + head):
            weight.grad = recorded[f"grad.{t}.{i}"].clone()
        step()
        for kind, weights in (("param", trunk), ("head", head)):
            for i, weight in enumerate(weights):
                expected = recorded.get(f"after.{t + 1}.{kind}.{i}")
                if expected is not None:
                    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)
                    compared += 1
    assert compared == 6 * 5  # six recorded steps of five weights
