"""``adapter``: nothing is learnt before an end task, in which fresh adapters and the classifier alone train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from eunoe.contract.tiny import tiny_bert
from eunoe.contract.tiny_run import tiny_settings
from eunoe.engine import run
from eunoe.methods import METHODS, choose_method
from eunoe.models.heads import Classifier
from eunoe.plugins.bottleneck import Bottleneck
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows


def test_it_learns_no_stage_and_trains_fresh_adapters_in_an_end_task() -> None:
    chosen = choose_method({"name": "adapter", "reduction": 4}, "here")
    assert chosen.stages(["a", "b"]) == []
    method = chosen.build(tiny_bert(), ["a", "b"])
    assert torch.equal(method.model(torch.arange(5, 13)[None]).logits, tiny_bert()(torch.arange(5, 13)[None]).logits)
    model = Classifier(method.model, 2, "first")
    method.for_end_task(model, None)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert (
        {n for n in trains if n.startswith("trunk.")}
        == {n for n, _ in model.named_parameters() if "_adapter." in n}
        != set()
    )
    for part in model.modules():
        if isinstance(part, Bottleneck):
            assert part.on
            assert float(part.up.weight.detach().abs().max()) < 0.2, "as it was drawn, N(0, 0.02)"
            assert not part.up.bias.any()


def test_both_lines_without_post_training_have_the_pretrained_models_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ``none`` its scores in end tasks, to the last digit; ``adapter`` has others."""
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    made = tiny_settings(tmp_path, methods=["none", "adapter"], seeds=[0])
    made["transfer"] |= {"lr": 0.02, "epochs": 4}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    run(load_recipe(file), tmp_path / "out", "x")
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    text = {
        m: {row.task: row.value for row in rows if row.method == m and not row.transfer}
        for m in ("base", "none", "adapter")
    }
    ends = {m: {(row.task, row.metric): row.detail or row.value for row in rows if row.method == m and row.transfer}
            for m in ("base", "none", "adapter")}  # fmt: skip
    assert text["none"] == text["adapter"] == text["base"] != {}
    assert ends["none"] == ends["base"] != {}
    assert ends["adapter"] != ends["base"]
    assert all(row.learnt == () for row in rows)
    assert not METHODS["none"].method.forgets
