"""O-LoRA's penalty by hand, who trains, and that all domains' matrices act together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eunoe.errors import EunoeError
from eunoe.methods.olora import OLora, OLoraSettings, overlap
from eunoe.methods.peft import adapted
from tests.methods.test_lora import read, stage
from tests.tiny import tiny_bert, tiny_gpt2

peft = pytest.importorskip("peft", reason="needs the peft library (pip install eunoe[peft])")


def drawn(model: object) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for layer in adapted(model):  # type: ignore[arg-type]
            for part in (layer.lora_A, layer.lora_B):
                for linear in part.values():
                    linear.weight.normal_(std=0.2)


def test_overlap_is_what_the_row_spaces_share() -> None:
    old = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]])
    assert overlap(old, torch.tensor([[0, 0, 1.0, 3.0]]), "squares") == 0
    assert overlap(old, torch.tensor([[3.0, -1.0, 5.0, 0]]), "squares") == 3**2 + 2**2
    assert overlap(old, torch.tensor([[3.0, -1.0, 5.0, 0]]), "absolute") == 3 + 2


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize("norm", ["squares", "absolute"])
def test_the_penalty_is_worked_out_by_hand_and_moves_the_new_domain_alone(make: type, norm: str) -> None:
    model = make()
    method = OLora(model, OLoraSettings(r=2, strength=0.25, norm=norm), ["law", "sea", "art"])  # type: ignore[arg-type]
    method.begin(stage(0))
    assert method.penalty() is None
    method.end(stage(0))
    method.end(stage(1))
    method.begin(stage(2))
    drawn(model)
    weights = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    total = 0.0
    for name, new in weights.items():
        if ".lora_A.stage2." in name:
            for i in (0, 1):
                products = np.einsum("ik,jk->ij", weights[name.replace("stage2", f"stage{i}")], new)
                total += (products**2).sum() if norm == "squares" else np.abs(products).sum()
    penalty = method.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.25 * total, rel=1e-5)
    penalty.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n in weights if ".lora_A.stage2." in n
    }
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n in weights if "stage2" in n}


def test_all_learnt_domains_act_and_those_to_come_do_not(tmp_path: Path) -> None:
    model = tiny_bert()
    method = OLora(model, OLoraSettings(r=2, dropout=0.0), ["law", "sea", "art"])
    base = read(model)
    drawn(model)
    assert torch.equal(read(model), base)
    method.begin(stage(0))
    method.end(stage(0))
    first = read(model)
    method.begin(stage(1))
    method.end(stage(1))
    second = read(model)
    assert not torch.allclose(first, base, atol=1e-3)
    assert not torch.allclose(second, first, atol=1e-3)
    method.publish(tmp_path / "made")
    loaded = peft.PeftModel.from_pretrained(tiny_bert(), str(tmp_path / "made" / "0"), adapter_name="a")
    torch.testing.assert_close(read(loaded), first, rtol=1e-5, atol=1e-6)
    loaded.load_adapter(str(tmp_path / "made" / "1"), adapter_name="b")
    loaded.base_model.set_adapter(["a", "b"])
    torch.testing.assert_close(read(loaded), second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("state", [{}, {"learnt": ["sea"]}, {"learnt": "law"}, {"learnt": ["law"], "more": 1}])
def test_the_state_of_another_order_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(EunoeError, match="belongs to another method or order"):
        OLora(tiny_bert(), OLoraSettings(), ["law", "sea"]).load_state_dict(state)
