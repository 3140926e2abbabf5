"""The contract on a recurrent model: methods that need no sub-layers learn it, resume to the bit, and cut steps alike.

The others say why not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eunoe.contract.tiny import size
from eunoe.contract.way import STEPS, Way, digest, gradients, states, stopping
from eunoe.errors import EunoeError, Interrupted
from eunoe.methods import METHODS
from eunoe.models.awd.config import RATES, AwdLstmConfig
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.train import train

OWN = {name for name, entry in METHODS.items() if not entry.package}
NEEDS_SUBLAYERS = {
    "adapter", "adapter-ncl", "adapter-one", "bcl", "classic", "cpt", "das", "demix", "hat", "lora", "o-lora", "peft",
}  # fmt: skip
CALM = dict.fromkeys(RATES, 0.0)


def tiny_awd(seed: int = 0, **change: Any) -> AwdLstmForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": size(), "hidden_size": 16, "cell_size": 24, "num_hidden_layers": 2, "pad_token_id": 0}
    return AwdLstmForCausalLM(AwdLstmConfig(**{**sizes, **change})).eval()


learning = sorted(
    name for name in OWN - NEEDS_SUBLAYERS if METHODS[name].method.stages(("a", "b"), METHODS[name].settings())
)


@pytest.mark.parametrize("name", sorted(OWN & NEEDS_SUBLAYERS))
def test_methods_that_stand_in_sub_layers_say_why_not(name: str) -> None:
    with pytest.raises(EunoeError, match=r"recurrent layer|hold no linear layers"):
        Way(name, tiny_awd).make()


@pytest.mark.parametrize("name", learning)
def test_a_method_learns_it_and_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    way = Way(name, tiny_awd).walked()
    method = way.after(way.last)
    before = states(way.make(), None)
    assert not torch.equal(states(method, way.way.order[0]), before)
    whole = way.before(way.last)
    train(way.job(whole, way.last, micro_batch=2))
    killed = way.job(way.before(way.last), way.last, tmp_path, micro_batch=2)
    killed.observe = stopping(3)
    with pytest.raises(Interrupted):
        train(killed)
    again = way.before(way.last)
    assert train(way.job(again, way.last, tmp_path, micro_batch=2)).steps == STEPS
    for one in (whole, again):
        one.activate(None)
    assert digest(again) == digest(whole)


@pytest.mark.parametrize("name", learning)
def test_a_step_has_the_same_gradient_however_it_is_cut(name: str) -> None:
    way = Way(name, tiny_awd, double=True, **CALM).walked(1, steps=2)
    one, three = (gradients(way, min(1, way.last), micro)[-1] for micro in (None, 2))
    assert one.keys() == three.keys()
    for weight, grad in one.items():
        torch.testing.assert_close(three[weight], grad, rtol=1e-11, atol=1e-11)
