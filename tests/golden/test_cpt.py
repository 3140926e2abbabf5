"""Our plug-ins against the numbers of the CPT authors' own RoBERTa: golden/cpt, both placements, float64, to 1e-10."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM

from eunoe.methods.cpt import Cpt, CptSettings
from tests.conftest import shared
from tests.stages import stage

LIMIT = 1e-10
OURS = {
    "sequential": [
        ("attention.output.adapter_mask.", "attention_plugin."),
        ("output.adapter_mask.", "feed_forward_plugin."),
        ("self_output.", ""),
    ],
    "parallel": [
        ("attention.self.adapter_mask.", "attention_plugin."),
        ("output.adapter_mask.", "feed_forward_plugin."),
        ("attention.self.self_attn.", "attention.self."),
        ("self_output.", ""),
    ],
}
"""The authors' names and ours, per placement."""


@dataclass
class Golden:
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    cpt: Cpt
    tables: dict[str, Tensor]
    """The authors' mask embeddings, a row a task, by the name of ours, which has one row."""

    def name(self, theirs: str) -> str:
        """Our name of a weight that the authors call ``theirs``."""
        for old, new in OURS[self.spec["mode"]]:
            theirs = theirs.replace(old, new)
        return theirs.replace("efc1.weight", "mask1.embedding").replace("efc2.weight", "mask2.embedding")

    def starting(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def mask(self, theirs: str) -> Any:
        adapter, which = self.name(theirs).removeprefix("roberta.").rsplit(".", 1)
        return getattr(self.cpt.adapters[adapter], which.replace("fc", "mask"))

    def row(self, theirs: str, gradient: Tensor, task: int) -> Tensor:
        """Of a table's gradient the task's row, once it is seen that all others are zero; else the gradient itself."""
        if self.name(theirs) not in self.tables:
            return gradient
        others = torch.arange(len(gradient)) != task
        assert not gradient[others].any()
        return gradient[task]

    def embed(self, task: int) -> None:
        """Put the task's row of every table where we keep the running domain's."""
        with torch.no_grad():
            for name, table in self.tables.items():
                self.cpt.model.get_parameter(name).copy_(table[task])

    def run(self, task: int, s: float) -> tuple[Tensor, Tensor]:
        self.cpt.active.running = self.cpt.active.domain = task
        self.cpt.active.s = s
        self.embed(task)
        out = self.cpt.model(input_ids=self.tensors["input_ids"], labels=self.tensors["labels"])
        return out.logits, out.loss


@pytest.fixture(params=sorted(OURS))
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = shared("golden/cpt")
    spec = json.loads((folder / f"{request.param}.json").read_text())
    keep = RobertaConfig().to_dict().keys() - {"transformers_version", "torch_dtype", "dtype"}
    config = RobertaConfig(**{key: value for key, value in spec["config"].items() if key in keep})
    model = RobertaForMaskedLM(config).double().eval()
    settings = CptSettings(
        placement=spec["mode"],
        attention_size=spec["attention_size"],
        ffn_size=spec["ffn_size"],
        s_max=spec["s_max"],
    )
    case = Golden(
        spec,
        load_file(folder / f"{request.param}.safetensors"),
        Cpt(model, settings, [str(task) for task in range(spec["n_tasks"])]),
        {},
    )
    weights = {case.name(key): value for key, value in case.starting("model.").items()}
    del weights["roberta.embeddings.position_ids"]  # a buffer that transformers no longer saves
    case.tables = {name: table for name, table in weights.items() if name.endswith(".embedding")}
    assert len(case.tables) == 8
    model.load_state_dict({**weights, **{name: table[0] for name, table in case.tables.items()}})
    return case


def test_all_the_authors_weights_have_a_place_and_ours_have_no_other(golden: Golden) -> None:
    theirs = {golden.name(key) for key in golden.starting("model.")} - {"roberta.embeddings.position_ids"}
    assert theirs == set(golden.cpt.model.state_dict())


def test_logits_loss_and_masks_at_every_temperature(golden: Golden) -> None:
    for case in golden.spec["cases"]:
        logits, loss = golden.run(case["task"], case["s"])
        torch.testing.assert_close(logits, golden.tensors[case["key"] + ".logits"], atol=LIMIT, rtol=0)
        assert loss.item() == pytest.approx(case["loss"], abs=LIMIT)
        masks = golden.starting(case["key"] + ".mask.")
        assert len(masks) == 8
        for name, expected in masks.items():
            torch.testing.assert_close(golden.mask(name)(), expected[0].double(), atol=LIMIT, rtol=0)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_gradients_before_and_after_compensation(golden: Golden, task: int) -> None:
    golden.run(task, 37.0)[1].backward()
    weights = dict(golden.cpt.model.named_parameters())
    gradients = golden.starting(f"t{task}.s37.grad.")
    assert len(gradients) == 24
    for name, expected in gradients.items():
        torch.testing.assert_close(
            weights[golden.name(name)].grad, golden.row(name, expected, task), atol=LIMIT, rtol=0
        )

    golden.cpt.on_gradients()
    compensated = golden.starting(f"t{task}.s37.compensated.")
    assert len(compensated) == 8
    for name, expected in compensated.items():
        torch.testing.assert_close(
            weights[golden.name(name)].grad, golden.row(name, expected, task), atol=LIMIT, rtol=0
        )


def test_accumulated_masks_and_blocking_after_two_tasks(golden: Golden) -> None:
    cpt = golden.cpt
    for task in ("0", "1"):
        cpt.begin(stage(task))
        golden.embed(int(task))
        cpt.end(stage(task))
    accumulated = golden.starting("accumulated.")
    assert len(accumulated) == 8
    for name, expected in accumulated.items():
        torch.testing.assert_close(golden.mask(name).taken, expected[0].double(), atol=LIMIT, rtol=0)

    cpt.begin(stage("2"))
    weights = dict(cpt.model.named_parameters())
    factors = golden.starting("free.")
    assert len(factors) == 16
    for name in factors:  # a gradient of ones comes out as the factor itself
        weights[golden.name(name)].grad = torch.ones_like(weights[golden.name(name)])
    cpt.on_gradients()
    keep = cpt.protected()
    for name, expected in factors.items():
        weight = weights[golden.name(name)]
        torch.testing.assert_close(weight.grad, expected.double(), atol=LIMIT, rtol=0)
        assert torch.equal(keep[weight], expected <= 0.5)
