"""CPT's ablations: without masks it is plug-ins trained in turn, by the numbers of plain gradient descent, and forgets."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml

from eunoe.contract.tiny import tiny_bert
from eunoe.contract.tiny_run import tiny_settings
from eunoe.contract.way import states
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.methods.cpt import CptSettings
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import Classifier
from eunoe.plugins.files import load_plugins
from eunoe.plugins.inject import set_domain
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from eunoe.verify import verify
from tests.methods.by_hand import MODELS, batches, cross_entropy, descend, learn, plain, way


def relu(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


@pytest.mark.parametrize("kind", MODELS)
def test_without_masks_all_units_of_the_plugins_learn_each_domain_in_turn(kind: str) -> None:
    walk = way({"name": "cpt", "masks": False, "ffn_size": 5, "attention_size": 3}, kind)
    begun = dict(walk.make().model.named_parameters())
    for i in range(2):
        learn(walk, i)
    model = plain(kind)
    own = {n: torch.nn.Parameter(p.detach().clone()) for n, p in begun.items() if "_plugin.fc" in n}
    for layer in anatomy(model).layers:
        for place in ("attention", "feed_forward"):
            prefix = next(n for n in own if f"{layer.name}.{place}_plugin." in n).split("_plugin.")[0] + "_plugin."
            w1, b1, w2, b2 = (own[prefix + n] for n in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"))

            def add(_m: object, _a: object, x: torch.Tensor, w1=w1, b1=b1, w2=w2, b2=b2) -> torch.Tensor:  # type: ignore[no-untyped-def]
                return x + relu(relu(x @ w1.T + b1) @ w2.T + b2)

            getattr(layer, f"{place}_out").register_forward_hook(add)
    for i in range(2):
        descend(own.values(), lambda b: cross_entropy(model(b["input_ids"]).logits, b), batches(walk, i))
    method = walk.after(1)
    for name, p in method.model.named_parameters():
        if name in own:
            torch.testing.assert_close(p, own[name], rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(p, begun[name]), name
    assert method.forgets
    assert not torch.equal(states(method, "food"), states(walk.after(0), "food")), "food's plug-ins went on to law"
    assert torch.equal(states(method, "food"), states(method, "law"))
    assert not any(mask.any() for mask in method.protected().values())


def test_a_run_of_the_ablations_says_the_truth_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    small = {"name": "cpt", "ffn_size": 8, "attention_size": 8}
    methods = [small, {**small, "masks": False, "label": "open"}, {**small, "backbone": "frozen", "label": "still"}]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(tiny_settings(tmp_path, methods=methods, seeds=[0], general=None)), encoding="utf-8")
    out = tmp_path / "out"
    run(load_recipe(file), out, "x")
    findings = verify(out)
    lost = {f.sequence.split(".")[0]: f.equal for f in findings if f.domain == "sport"}
    promised = {f.sequence.split(".")[0] for f in findings if f.domain == "sport" and f.promised}
    assert lost == {"cpt": True, "open": False, "still": True}
    assert promised == {"cpt", "still"}
    assert not [f.text for f in findings if f.broken]
    rows = read_rows(out / "rows.jsonl")
    text = {m: [r.value for r in rows if r.method == m and not r.transfer] for m in ("cpt", "still")}
    assert text["cpt"] == text["still"]
    capacity = {p.relative_to(out).parts[1].split(".")[0] for p in out.rglob("capacity.json")}
    assert capacity == {"cpt", "still"}, "without masks no unit is taken"
    model = plain_model(tmp_path)
    load_plugins(model, out / "sequences/open.given.seed0/plugins")
    ids = torch.arange(5, 21)[None]
    set_domain(model, "sport")
    first = model(ids).logits
    set_domain(model, "money")
    assert torch.equal(model(ids).logits, first), "what is published reads as the method does"


def plain_model(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForMaskedLM

    loaded: torch.nn.Module = AutoModelForMaskedLM.from_pretrained(folder / "bert").eval()
    return loaded


@pytest.mark.parametrize(("backbone", "trains"), [("trained", True), ("frozen", False)])
def test_in_an_end_task_the_backbone_trains_or_stays(backbone: str, trains: bool) -> None:
    walk = way({"name": "cpt", "backbone": backbone, "ffn_size": 5, "attention_size": 3}, "masked")
    learn(walk, 0)
    method = walk.after(0)
    copied = Classifier(deepcopy(method.model), 2, "first")
    method.for_end_task(copied, "food")
    inside = {n: p.requires_grad for n, p in copied.trunk.named_parameters() if ".embedding" not in n}
    assert {on for n, on in inside.items() if "_plugin." in n} == {True}
    assert {on for n, on in inside.items() if "_plugin." not in n} == {trains}


def test_options_that_need_masks_are_refused_without() -> None:
    with pytest.raises(EunoeError, match=r"cpt: masks is false, but sparsity is 0\.75: there are none to make sparse"):
        CptSettings(masks=False, sparsity=0.75)
    with pytest.raises(
        EunoeError, match=r"cpt: masks is false, but plugins is 'there': those of the folder have masks"
    ):
        CptSettings(masks=False, plugins="there")


def test_plugins_without_masks_grow_without_masks() -> None:
    from eunoe.methods.cpt import Cpt

    method = Cpt(tiny_bert(), CptSettings(masks=False, ffn_size=4, attention_size=4), ["a"])
    method.grow(ffn_size=6)
    assert not [n for n, p in method.model.named_parameters() if n.endswith("embedding") and p.requires_grad]
