"""KD: the divergence by hand, on text without masks, from the model as it was when the stage began."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eunoe.contract.way import CALM, Way
from eunoe.methods.kd import distillation
from eunoe.models.heads import target_outputs
from tests.tiny import tiny_bert, tiny_gpt2


def test_distillation_is_worked_out_by_hand() -> None:
    student, teacher, tau = (
        np.array([[1.0, 0.0, -1.0], [0.0, 0.0, 3.0]]),
        np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]]),
        2.0,
    )
    p = np.exp(teacher / tau) / np.exp(teacher / tau).sum(-1, keepdims=True)
    q = np.exp(student / tau) / np.exp(student / tau).sum(-1, keepdims=True)
    expected = tau**2 * (p * np.log(p / q)).sum(-1)
    assert expected[0] > 0.05
    assert expected[1] == 0
    got = distillation(torch.tensor(student), torch.tensor(teacher), tau)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-12, atol=1e-14)
    other = distillation(torch.tensor(teacher), torch.tensor(student), tau)
    assert abs(float(other[0] - got[0])) > 1e-3, "who teaches whom makes a difference"


@pytest.mark.parametrize("model", [tiny_bert, tiny_gpt2])
def test_the_student_is_held_to_the_model_of_before_on_text_without_masks(model: Any) -> None:
    calm = CALM if model is tiny_bert else {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    way = Way({"name": "kd", "weight": 0.3, "temperature": 2.0}, model, double=True, **calm)
    method, before, stage = way.make(), way.make().model, way.stage(0)
    method.begin(stage)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in method.model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    (batch,) = stage.batches[0]
    words = torch.from_numpy(stage.batches.blocks.ids[0])  # type: ignore[attr-defined]  # every block has the same text
    text = words.expand(len(batch["input_ids"]), -1)
    assert torch.equal(text, batch["input_ids"]) == (model is tiny_gpt2)
    p, log_q = (
        torch.softmax(before(text).logits / 2, -1).flatten(0, 1),
        torch.log_softmax(method.model(text).logits / 2, -1).flatten(0, 1),
    )
    divergence = (p * (p.log() - log_q)).sum(-1)[batch["positions"]]
    expected = 0.3 * 2.0**2 * divergence.sum()
    assert expected > 1e-3
    loss = method.extra_loss(batch, target_outputs(method.model, batch))
    assert method.extra_items(batch) == len(batch["labels"])
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    grads = [torch.autograd.grad(x, list(method.model.parameters())) for x in (loss, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
