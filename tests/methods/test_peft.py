"""Every tuner of the list trains, is merged and goes through a checkpoint; the others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eunoe.contract.way import Way, digest
from eunoe.errors import EunoeError
from eunoe.methods.peft import REFUSED, TUNERS, Peft, PeftSettings
from tests.methods.test_lora import read, stage
from tests.tiny import tiny_bert

pytest.importorskip("peft", reason="needs the peft library (pip install eunoe[peft])")
OPTIONS: dict[str, Any] = {
    "lora": {"r": 2, "use_dora": True}, "loha": {"r": 2}, "lokr": {"r": 2}, "oft": {"oft_block_size": 4, "r": 0}, "hra": {"r": 2},
    "miss": {"r": 2}, "delora": {"r": 2}, "fourierft": {"n_frequency": 10},
}  # fmt: skip


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("merge", ["never", "each"])
def test_it_learns_is_merged_and_restored(tuner: str, merge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    choice = {"name": "peft", "tuner": tuner, "options": OPTIONS.get(tuner, {}), "merge": merge}
    way = Way(choice, order=("food", "law"))
    before = read(way.make().model)
    way.learn(0)
    learnt = read(way.after(0).model)
    assert not torch.equal(learnt, before)
    way.learn(1)
    assert not torch.equal(read(way.after(1).model), learnt)
    assert digest(way.after(1)) == digest(way.after(1))
    names = {n for n, _ in way.make().model.named_parameters()}
    kept = set(way.finals[1]["weights"])
    assert any("base_layer" in n for n in kept) == (merge == "each")
    assert kept <= names | {n for n, _ in way.make().model.named_buffers()}


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_merge_changes_what_the_model_computes_by_rounding_only(tuner: str) -> None:
    model = tiny_bert()
    method = Peft(model, PeftSettings(tuner=tuner, options=OPTIONS.get(tuner, {}), merge="each"), ["law", "sea"])
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    before = read(model)
    method.end(stage())
    torch.testing.assert_close(read(model), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tuner", [*REFUSED, "lorra"])
def test_other_tuners_are_refused_by_name(tuner: str) -> None:
    with pytest.raises(EunoeError, match=rf"'{tuner}'.*lora"):
        Peft(tiny_bert(), PeftSettings(tuner=tuner), ["law"])


@pytest.mark.parametrize("options", [{"rank": 3}, {"target_modules": ["query"]}, {"r": "many"}, {"r": -1}])
def test_options_that_the_tuner_does_not_take_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EunoeError, match=r"tuner lora|PEFT cannot put"):
        Peft(tiny_bert(), PeftSettings(options=options), ["law"])
