"""CPT that goes on from the plug-ins of a finished run: old domains keep every bit, new ones are learnt, room is made."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from eunoe import checkpoint
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.methods.base import trainable
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.models.load import load_lm
from eunoe.plugins.capacity import capacity
from eunoe.plugins.capacity_report import capacity_report
from eunoe.plugins.files import load_plugins
from eunoe.plugins.inject import adapters, set_domain
from eunoe.recipe import Recipe, load_recipe
from eunoe.route import route_run
from eunoe.verify import verify
from tests.methods.test_cpt import DOMAINS, STEPS, adamw, learn, readings, same, sgd, states, step
from tests.models.families import tiny, tokens
from tests.stages import put_back, stage
from tests.tiny_run import state, tiny_recipe, tiny_settings

SIZES = {"attention_size": 12, "ffn_size": 16}
GROWN = {"attention_size": 20, "ffn_size": 18}


def saved(folder: Path, family: str = "bert", **change: Any) -> str:
    """The plug-ins of a run that learnt "food"."""
    cpt = Cpt(tiny(family), CptSettings(**SIZES, **change), ["food"])
    learn(cpt, "food")
    cpt.publish(folder / "old")
    return str(folder / "old")


def go_on(
    plugins: str, family: str = "bert", seed: int = 0, domains: tuple[str, ...] = ("law", "sea"), **change: Any
) -> Cpt:
    model = tiny(family)
    torch.manual_seed(seed)
    return Cpt(model, CptSettings(plugins=plugins, **change), list(domains))


def read(folder: str | Path, domain: str | None, family: str = "bert") -> list[Tensor]:
    """What a fresh model with the plug-ins of a folder gives."""
    model = tiny(family)
    load_plugins(model, folder)
    set_domain(model, domain)
    with torch.no_grad():
        out = model(tokens(), output_hidden_states=True)
    return [*out.hidden_states, out.logits]


# -- the promise ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [{}, GROWN, {"ffn_size": 40, "init": "normal", "s_max": 200.0, "sparsity": 0.75}])
@pytest.mark.parametrize("make_optimizer", [adamw, sgd])
def test_old_domains_keep_every_bit_while_two_more_are_learnt(
    make_optimizer: Callable[[Cpt], Optimizer], change: dict[str, Any], tmp_path: Path
) -> None:
    old = saved(tmp_path)
    kept = read(old, "food")
    cpt = go_on(old, **change)
    assert cpt.domains == ["food", "law", "sea"]
    assert same(states(cpt, "food"), kept)
    before = readings(cpt, "food")
    optimizer = make_optimizer(cpt)  # one for both, so that moments of a domain reach into the next
    for domain in ("law", "sea"):
        learn(cpt, domain, optimizer)
        assert same(states(cpt, "food"), kept), domain
    assert all(torch.equal(values, before[name]) for name, values in readings(cpt, "food").items())
    law = states(cpt, "law")
    assert not same(law, kept)
    cpt.publish(tmp_path / "new")
    assert json.loads((tmp_path / "new/adapter_config.json").read_text())["domains"] == DOMAINS
    assert same(read(tmp_path / "new", "food"), kept)
    assert same(read(tmp_path / "new", "law"), law)
    assert same(read(tmp_path / "new", "sea"), states(cpt, "sea"))
    assert same(read(tmp_path / "new", None), read(old, None))


@pytest.mark.parametrize("make_optimizer", [adamw, sgd])
def test_without_protection_the_old_domain_would_move(
    make_optimizer: Callable[[Cpt], Optimizer], tmp_path: Path
) -> None:
    cpt = go_on(saved(tmp_path), **GROWN)
    kept = states(cpt, "food")
    learn(cpt, "law", make_optimizer(cpt), protect=False)
    learn(cpt, "sea", make_optimizer(cpt), protect=False)
    assert not same(states(cpt, "food"), kept)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gpt2", {}),
        ("albert", {}),
        ("llama", {"placement": "parallel_clean", "activation": "gelu"}),
        ("bert", {"placement": "parallel"}),
        ("bert", {"placement": "parallel", "skip": False}),
        ("bert", {"activation": "tanh", "init": "near_zero"}),
    ],
)
def test_it_goes_on_with_what_the_plug_ins_are(family: str, change: dict[str, Any], tmp_path: Path) -> None:
    old = saved(tmp_path, family, **change)
    again = {key: change[key] for key in ("placement", "activation") if key in change}  # skip: auto is theirs
    cpt = go_on(old, family, **again, **GROWN)
    assert {a.skip for a in cpt.adapters.values()} == {a.skip for a in _plain(old, family).values()}
    learn(cpt, "law")
    assert same(states(cpt, "food"), read(old, "food", family))
    assert not same(states(cpt, "law"), states(cpt, "food"))


def _plain(folder: str, family: str) -> dict[str, Any]:
    model = tiny(family)
    load_plugins(model, folder)
    return adapters(model)


def test_plug_ins_go_on_again_and_again(tmp_path: Path) -> None:
    old = saved(tmp_path)
    first = go_on(old, domains=("law",), **GROWN)
    learn(first, "law")
    first.publish(tmp_path / "second")
    second = go_on(str(tmp_path / "second"), domains=("sea",), attention_size=20, ffn_size=30)
    assert [sorted({a.size for n, a in second.adapters.items() if part in n}) for part in ("attention_p", "forward_p")] == [
        [20], [30]
    ]  # fmt: skip
    learn(second, "sea")
    second.publish(tmp_path / "third")
    assert same(read(tmp_path / "third", "food"), read(old, "food"))
    assert same(read(tmp_path / "third", "law"), states(first, "law"))


# -- what it starts from -------------------------------------------------------------------------------------------
def test_sizes_left_out_are_the_saved_ones_and_larger_ones_are_grown_before_anything_is_learnt(tmp_path: Path) -> None:
    old = saved(tmp_path)
    for change, expected in (({}, (12, 16)), (SIZES, (12, 16)), ({"ffn_size": 17}, (12, 17)), (GROWN, (20, 18))):
        cpt = go_on(old, **change)
        assert {adapter.size for name, adapter in cpt.adapters.items() if "attention_plugin" in name} == {expected[0]}
        assert {adapter.size for name, adapter in cpt.adapters.items() if "forward_plugin" in name} == {expected[1]}
    room = [capacity_report(capacity(go_on(old, **change).model))["kinds"] for change in (SIZES, GROWN)]
    assert [b["free"] - a["free"] for a, b in zip(*room, strict=True)] == [16, 0, 4, 0]


def test_only_the_plug_ins_train_and_the_seed_alone_decides_the_fresh_units(tmp_path: Path) -> None:
    old = saved(tmp_path)
    one, same_seed, other = (go_on(old, seed=seed, **GROWN) for seed in (1, 1, 2))
    assert {name for name, _ in trainable(one.model)} == {n for n, _ in one.model.named_parameters() if "_plugin." in n}
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), same_seed.model.parameters(), strict=True))
    changed = {
        name for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True)
        if not torch.equal(p, q)
    }  # fmt: skip
    assert changed
    assert all(".grown." in name or name.endswith(".embedding") for name in changed)
    assert one.seed == same_seed.seed != other.seed


def test_fresh_units_start_as_the_settings_say(tmp_path: Path) -> None:
    cpt = go_on(saved(tmp_path), init="near_zero", **GROWN)
    fresh = [p for name, p in cpt.model.named_parameters() if ".grown." in name and name.endswith("weight")]
    assert fresh
    assert all(0 < p.abs().max() < 0.01 for p in fresh)


def test_an_old_domain_is_closed_and_can_be_read_and_fine_tuned(tmp_path: Path) -> None:
    cpt = go_on(saved(tmp_path), **GROWN)
    base = states(cpt, None)
    assert same(states(cpt, "law"), base)
    with pytest.raises(EunoeError, match="domain 'food' is learnt"):
        cpt.begin(stage("food"))
    assert cpt.protected()
    copied = copy.deepcopy(cpt.model)
    assert cpt.for_end_task(copied, "food")
    assert {a.active.domain for a in adapters(copied).values()} == {0}
    learn(cpt, "law")
    learn(cpt, "sea")
    rows = capacity(cpt.model)
    assert all(list(row["domains"]) == DOMAINS and list(row["shared_with"]) == ["food", "law"] for row in rows)
    set_domain(cpt.model, "food")
    assert cpt.active.domain == 0


# -- state ---------------------------------------------------------------------------------------------------------
def test_a_fresh_method_of_the_same_settings_goes_on_in_the_middle_of_a_domain(tmp_path: Path) -> None:
    old = saved(tmp_path)
    cpt = go_on(old, **GROWN)
    learn(cpt, "law")
    checkpoint.save(tmp_path / "law", {"weights": cpt.weights(), "method": cpt.state_dict()})
    cpt.begin(stage("sea"))
    optimizer = SGD([p for _, p in trainable(cpt.model)], lr=0.1)
    for i in range(5):
        step(cpt, "sea", i, optimizer)
    checkpoint.save(tmp_path / "held", {"weights": cpt.weights(), "method": cpt.step_state()})

    fresh = go_on(old, seed=9, **GROWN)
    law, loaded = (checkpoint.load(tmp_path / name).groups for name in ("law", "held"))
    fresh.restore("law", law["weights"], law["method"], "law")
    fresh.begin(stage("sea"))
    put_back(fresh.model, loaded["weights"], "held")
    fresh.load_step_state(loaded["method"])
    other = SGD([p for _, p in trainable(fresh.model)], lr=0.1)
    for i in range(5, STEPS):
        step(cpt, "sea", i, optimizer)
        step(fresh, "sea", i, other)
    cpt.end(stage("sea"))
    fresh.end(stage("sea"))
    assert checkpoint.digest(cpt.state_dict()) == checkpoint.digest(fresh.state_dict())
    assert cpt.state_dict()["finished"] == DOMAINS
    for domain in (None, *DOMAINS):
        assert same(states(fresh, domain), states(cpt, domain))
    with pytest.raises(EunoeError, match="other sizes"):
        go_on(old, ffn_size=40).load_state_dict(cpt.state_dict())


# -- mistakes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_size": 8}, "attention_size is 8, but the plug-ins of .*old have 12 inner units there, and they only"),
        ({"ffn_size": 15}, "ffn_size is 15, but .* 16 inner units"),
        ({"placement": "parallel"}, r"placement is parallel, but .* learnt with sequential.* Give placement: sequential\."),
        ({"activation": "gelu"}, "activation is gelu, but .* Give activation: relu"),
        ({"skip": False}, "skip is false, but .* Give skip: true"),
        ({"domains": ("law", "food")}, "food is learnt already in .*old, and closed.* under a new name"),
        ({"domains": ("law", "law")}, "duplicate domain names: law"),
        ({"family": "gpt2"}, "are for a 'bert' model, this one is 'gpt2'"),
        ({"plugins": "no/such/folder"}, "no/such/folder/adapter_config.json cannot be read"),
        ({"plugins": "$NO_SUCH_PLACE/plugins"}, "NO_SUCH_PLACE, which is not set"),
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_refused_in_words(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    change = {"plugins": saved(tmp_path), "domains": ("law",), "family": "bert", **change}
    model, domains = tiny(change.pop("family")), list(change.pop("domains"))
    with pytest.raises(EunoeError, match=message):
        Cpt(model, CptSettings(**change), domains)
    assert not adapters(model), "a model that was refused is left without plug-ins"


def test_a_model_with_plug_ins_is_refused_and_keeps_them(tmp_path: Path) -> None:
    cpt = go_on(saved(tmp_path))
    with pytest.raises(EunoeError, match="has plug-ins already"):
        Cpt(cpt.model, cpt.settings, ["sea"])
    assert adapters(cpt.model) == cpt.adapters


# -- a run ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The folder of a finished run, the recipe of one that goes on from it with other domains, and that one's folder."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eunoe.progress.console.quiet", True)
        patch.setenv("EUNOE_CACHE", str(folder / "cache"))
        run(load_recipe(tiny_recipe(folder, methods=["cpt"], seeds=[0])), folder / "old", "")
        domains = [{**d, "name": f"more-{d['name']}"} for d in tiny_settings(folder)["domains"]]
        method = {"name": "cpt", "plugins": str(folder / "old/sequences/cpt.given.seed0/plugins"),
                  "attention_size": 20, "ffn_size": 24}  # fmt: skip
        file = tiny_recipe(folder, methods=[method], domains=domains, seeds=[0, 1])
        run(load_recipe(file), folder / "new", "")
    return folder / "old", file, folder / "new"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)


def answers(plugins: Path, runs: tuple[Path, Path, Path], domain: str) -> Tensor:
    """Logits of the runs' model with the plug-ins of a folder."""
    recipe = load_recipe(runs[1])
    assert isinstance(recipe, Recipe)
    model = load_lm(recipe.model).model.eval()
    load_plugins(model, plugins)
    set_domain(model, domain)
    with torch.no_grad():
        return model(torch.arange(5, 37).reshape(2, 16)).logits


def test_a_run_goes_on_from_a_run_and_its_plug_ins_hold_all_domains(runs: tuple[Path, Path, Path]) -> None:
    old, _, new = runs
    before = old / "sequences/cpt.given.seed0/plugins"
    for seed in (0, 1):
        after = new / f"sequences/cpt.given.seed{seed}/plugins"
        learnt = json.loads((after / "adapter_config.json").read_text())["domains"]
        assert learnt == ["sport", "money", "more-sport", "more-money"]
        for domain in ("sport", "money"):
            assert torch.equal(answers(after, runs, domain), answers(before, runs, domain))
    room = json.loads((new / "sequences/cpt.given.seed0/domains/0-more-sport/capacity.json").read_text())
    assert list(room[0]["domains"]) == ["sport", "money", "more-sport"]
    assert {row["size"] for row in room if row["units"] == "inner"} == {20, 24}


def test_such_a_run_is_verified_and_routed(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(runs[2], out)
    findings = verify(out)
    assert not [f for f in findings if not f.equal]
    assert {f.domain for f in findings} == {"sport", "money", "more-sport", "more-money", "plugins"}
    table = route_run(out)
    head, *rows = (line.split() for line in table.splitlines()[1:4])
    assert head == ["text", "of", "sport", "money", "more-sport", "more-money", "right"], "all plug-ins may be chosen"
    assert [row[0] for row in rows] == ["more-sport", "more-money"]


def test_verify_fails_where_a_domain_that_was_learnt_before_the_run_has_changed(
    runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Cpt, "_free", lambda self: {})  # nothing is closed
    run(load_recipe(runs[1]), tmp_path / "out", "")
    findings = {f.domain for f in verify(tmp_path / "out") if f.broken}
    assert {"sport", "money"} <= findings


def test_such_a_run_taken_up_after_its_first_domain_ends_in_the_same_bytes(
    runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "copy"
    shutil.copytree(runs[2], out)
    whole = state(out, ("times.jsonl", "environment.json", "report.html"))
    (out / "finished.json").unlink()
    for seed in (0, 1):
        shutil.rmtree(out / f"sequences/cpt.given.seed{seed}/domains/1-more-money")
        shutil.rmtree(out / f"sequences/cpt.given.seed{seed}/plugins")
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if len(json.loads(line)["learnt"]) == 2)
    (out / "rows.jsonl").write_text("".join(lines[:end]))
    run(load_recipe(runs[1]), out, "")
    assert state(out, ("times.jsonl", "environment.json", "report.html")) == whole


def test_plug_ins_that_do_not_fit_are_refused_before_anything_is_written(
    runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    method = {"name": "cpt", "plugins": str(runs[0] / "sequences/cpt.given.seed0/plugins"), "placement": "parallel"}
    domains = [{**d, "name": f"more-{d['name']}"} for d in tiny_settings(tmp_path)["domains"]]
    with pytest.raises(EunoeError, match="placement is parallel, but"):
        run(
            load_recipe(tiny_recipe(tmp_path, methods=["ncl", method], domains=domains, seeds=[0])),
            tmp_path / "out",
            "",
        )
    assert not (tmp_path / "out").exists()


def test_a_run_does_not_go_on_from_other_plug_ins_than_it_began_with(
    runs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    plugins, out = runs[0] / "sequences/cpt.given.seed0/plugins", tmp_path / "copy"
    shutil.copytree(runs[2], out)
    (out / "finished.json").unlink()
    config = (plugins / "adapter_config.json").read_text()
    try:
        (plugins / "adapter_config.json").write_text(config.replace('"s_max": 400.0', '"s_max": 300.0'))
        with pytest.raises(EunoeError, match=r"no longer the same: cpt \(plug-ins\)"):
            run(load_recipe(runs[1]), out, "")
    finally:
        (plugins / "adapter_config.json").write_text(config)
