"""Joint training against plain gradient descent on all text at once; it has as many steps as the domains have together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from eunoe.contract.tiny_run import tiny_settings
from eunoe.contract.way import DOMAINS, text
from eunoe.engine import run
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from tests.methods.by_hand import MODELS, batches, cross_entropy, descend, learn, plain, way


@pytest.mark.parametrize("kind", MODELS)
def test_all_weights_descend_on_the_text_of_all_domains(kind: str) -> None:
    walk = way("joint", kind)
    assert walk.names == ["all"]
    read = batches(walk, 0)
    words = [set(text(domain).ids.flatten().tolist()) for domain in DOMAINS]
    for k in range(3):
        seen = {int(label) for batch in read for label in batch["labels"]}
        assert seen & (words[k] - set().union(*(words[:k] + words[k + 1 :]))), "some targets are of this domain alone"
    method = learn(walk, 0)
    model = plain(kind)
    descend(model.parameters(), lambda b: cross_entropy(model(b["input_ids"]).logits, b), read)
    for name, p in model.named_parameters():
        torch.testing.assert_close(dict(method.model.named_parameters())[name], p, rtol=1e-9, atol=1e-12)


def test_a_recipes_steps_are_a_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    made = tiny_settings(tmp_path, methods=["joint", "ncl"], seeds=[0])
    made["training"] |= {"steps": 3}
    for domain in made["domains"]:
        domain["task"] = None
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    run(load_recipe(file), tmp_path / "out", "x")
    steps = {row.method: row.steps for row in read_rows(tmp_path / "out" / "rows.jsonl") if len(row.learnt) == 2}
    assert steps == {"joint": 6, "ncl": 3}, "of the stage: two domains at once, and one"
