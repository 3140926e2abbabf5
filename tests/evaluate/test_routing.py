"""Choosing a plug-in by LM loss: the sums by hand, then tiny models that have really learnt two domains."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eunoe.cli import main
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError
from eunoe.evaluate.routing import (
    MASKS,
    lm_losses,
    mixed_log_probs,
    mixed_losses,
    mixture,
    route,
    routing_batches,
    row_means,
    rows_of,
    second_half,
    token_losses,
)
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.models.load import LanguageModel, load_lm
from eunoe.plugins.inject import adapters, set_domain
from eunoe.recipe import ModelSettings
from tests.stages import stage
from tests.tiny import tiny_folder
from tests.tiny_run import tiny_recipe, tiny_settings


# -- by hand ----------------------------------------------------------------------------------------------------------
def test_means_are_taken_over_a_rows_own_tokens() -> None:
    losses = torch.tensor([[1.0, 10.0], [3.0, 20.0], [5.0, 60.0]])
    assert row_means(losses, torch.tensor([0, 0, 2]), 3).tolist() == [[2.0, 15.0], [0.0, 0.0], [5.0, 60.0]]


def test_the_least_loss_is_chosen_and_of_equal_ones_the_first() -> None:
    assert route(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 2.0], [4.0, 3.0, 0.5]])).tolist() == [1, 0, 2]


def test_the_best_two_are_weighed_by_softmax_of_minus_their_losses() -> None:
    weights = mixture(torch.tensor([[2.0, 2.0 + math.log(3), 9.0], [7.0, 5.0, 5.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]))
    assert mixture(torch.tensor([[2.0, 1.0]]), top=1).tolist() == [[0.0, 1.0]]
    assert torch.equal(mixture(torch.tensor([[2.0, 1.0]]), top=5), torch.softmax(torch.tensor([[-2.0, -1.0]]), 1))
    with pytest.raises(EunoeError, match="top is 0"):
        mixture(torch.ones(1, 2), top=0)


def test_the_loss_of_a_mixture_of_a_half_and_a_quarter() -> None:
    losses = -torch.tensor([[0.5, 0.25, 0.9]]).log()
    assert mixed_losses(losses, torch.tensor([[0.5, 0.5, 0.0]])).item() == pytest.approx(-math.log(0.375))


@given(st.lists(st.lists(st.floats(0.01, 20), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(1, 4))
def test_a_mixture_is_a_distribution_and_loses_no_more_than_its_worst_part(rows: list[list[float]], top: int) -> None:
    losses = torch.tensor(rows, dtype=torch.float64)
    weights = mixture(losses, top)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(rows), dtype=torch.float64))
    assert ((weights > 0).sum(1) <= top).all()
    # the chosen one has the most; losses that differ in their last bit have equal weights, of which argmax takes the first
    assert torch.equal(weights.gather(1, route(losses)[:, None])[:, 0], weights.amax(1))
    mixed, taken = mixed_losses(losses, weights), losses.masked_fill(weights == 0, 0).amax(1)
    assert (mixed <= taken + 1e-9).all()
    assert (mixed >= losses.amin(1) - 1e-9).all()


# -- tiny models ------------------------------------------------------------------------------------------------------
def learnt(folder: Path, kind: str) -> LanguageModel:
    """A tiny model with plug-ins of two domains that differ by hand: b's add a lot, a's nothing."""
    lm = load_lm(ModelSettings(name=str(tiny_folder(folder, kind)), dropout=0.0))
    method = Cpt(lm.model, CptSettings(), ["a", "b"])
    for domain in ("a", "b"):
        method.begin(stage(domain))
        with torch.no_grad():
            for adapter in adapters(lm.model).values():
                for p in adapter.parameters():
                    if p.requires_grad and p.dim() == 2 and domain == "b":
                        p.mul_(3)
        method.end(stage(domain))
    return lm


def text(n: int, length: int = 12) -> Blocks:
    ids = np.random.default_rng(0).integers(5, 90, (n, length))
    return Blocks(ids, np.array([0, 1, 2, 3, 4]), "made up")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_rows_losses_are_those_it_has_alone_under_each_plug_in(kind: str, tmp_path: Path) -> None:
    lm = learnt(tmp_path, kind)
    ((batch, owners),) = routing_batches(lm, text(3), 32, 0.3)
    masks = MASKS if kind == "bert" else 1
    assert len(batch["input_ids"]) == 3 * masks
    assert torch.equal(owners, rows_of(batch) // masks)
    actual = lm_losses(lm.model, batch, ["b", None, "a"])
    for row in range(len(batch["input_ids"])):
        own = rows_of(batch) == row
        one = {"input_ids": batch["input_ids"][row : row + 1], "labels": batch["labels"][own],
               "positions": batch["positions"][own] - row * 12}  # fmt: skip
        torch.testing.assert_close(lm_losses(lm.model, one, ["b", None, "a"])[0], actual[row], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        set_domain(lm.model, "b")
        logits = lm.model(input_ids=batch["input_ids"]).logits.flatten(0, 1)[batch["positions"]]
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    torch.testing.assert_close(token_losses(lm.model, batch, ["b"])[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(actual[:, 0], actual[:, 2])


def test_blocks_keep_their_numbers_over_batches_and_masks_are_the_same_every_time(tmp_path: Path) -> None:
    lm = learnt(tmp_path, "bert")
    batches = routing_batches(lm, text(5), 2 * MASKS, 0.3)
    assert [sorted(set(owners.tolist())) for _, owners in batches] == [[0, 1], [2, 3], [4]]
    again = routing_batches(lm, text(5), 5 * MASKS, 0.3)[0][0]
    assert torch.equal(torch.cat([batch["input_ids"] for batch, _ in batches]), again["input_ids"])
    assert len({tuple(row) for row in again["input_ids"][:MASKS].tolist()}) == MASKS, "masks of one block differ"


def test_mixed_probabilities_have_the_mixed_loss_and_skip_who_has_no_weight(tmp_path: Path) -> None:
    lm = learnt(tmp_path, "llama")
    ((batch, _),) = routing_batches(lm, text(4), 8, 0.3)
    losses = token_losses(lm.model, batch, ["a", "b"])
    weights = mixture(row_means(losses, rows_of(batch), 4))
    logits = mixed_log_probs(lm.model, batch, weights, ["a", "b"])
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(len(logits)))
    actual = -logits.gather(1, batch["labels"][:, None])[:, 0]
    torch.testing.assert_close(
        actual.double(), mixed_losses(losses.double(), weights[rows_of(batch)]), atol=1e-5, rtol=1e-5
    )
    alone = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    only = mixed_log_probs(lm.model, batch, alone, ["a", "never learnt"])
    torch.testing.assert_close(-only.gather(1, batch["labels"][:, None])[:, 0], losses[:, 0])


def test_tokens_are_told_by_where_they_stand(tmp_path: Path) -> None:
    lm = learnt(tmp_path, "llama")
    ((batch, _),) = routing_batches(lm, text(2, 8), 8, 0.3)
    assert second_half(batch).tolist() == [False] * 4 + [True] * 3 + [False] * 4 + [True] * 3


# -- a whole run --------------------------------------------------------------------------------------------------
def put_apart(folder: Path) -> Path:
    """The tiny recipe with domains that share no word, learnt long enough to tell them apart."""
    settings = tiny_settings(folder)
    words = {"sport": "goal match team player coach", "money": "stock bank price profit share"}
    for domain in settings["domains"]:
        draw = np.random.default_rng(len(domain["name"]))
        own = words[domain["name"]].split()
        lines = [" ".join(draw.choice(own, 12)) + f" {i}" for i in range(80)]
        Path(domain["corpus"]["source"]).write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        del domain["task"]
    kept = {"domains": settings["domains"], "methods": [{"name": "cpt", "training": {"lr": 0.03, "clip_by": "tensor"}}],
            "training": {**settings["training"], "steps": 25, "batch": 8}, "seeds": [0, 1]}  # fmt: skip
    text = {d["name"]: Path(d["corpus"]["source"]).read_text(encoding="utf-8") for d in settings["domains"]}
    recipe = tiny_recipe(folder, **kept)
    for domain in settings["domains"]:  # tiny_recipe wrote its own text again
        Path(domain["corpus"]["source"]).write_text(text[domain["name"]], encoding="utf-8")
    return recipe


def test_a_run_is_routed_and_the_files_say_the_same_as_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["route", str(out)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["run", str(put_apart(tmp_path)), "--out", str(out)]) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(["route", str(out)]) == 0
    printed = capsys.readouterr().out
    loaded = json.loads((out / "routing.json").read_text())
    assert [(s["method"], s["seed"], s["domains"]) for s in loaded["sequences"]] == [
        ("cpt", 0, ["sport", "money"]),
        ("cpt", 1, ["sport", "money"]),
    ]
    for sequence in loaded["sequences"]:
        blocks = [sum(row) for row in sequence["confusion"]]
        assert blocks == [sum(row) for row in sequence["half"]]
        right = sum(sequence["confusion"][i][i] for i in range(2)) / sum(blocks)
        assert right > 0.8, "domains without a common word are told apart"
        told_loss, base = sum(sequence["loss"]["told"]), sum(sequence["loss"]["base"])
        assert told_loss < base
        assert all(math.isfinite(x) for losses in sequence["loss"].values() for x in losses)
    with open(out / "routing.csv", newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 2 * 4
    assert [int(c["blocks"]) for c in cells] == [n for s in loaded["sequences"] for row in s["confusion"] for n in row]
    total = sum(int(c["blocks"]) for c in cells)
    right = sum(int(c["blocks"]) for c in cells if c["text"] == c["chosen"])
    assert f"right: {100 * right / total:.1f} % of {total:,} whole blocks" in printed
    assert {p: p.read_bytes() for p in before} == before, "nothing of the run is touched"
    assert main(["route", str(out), "--top", "0"]) == 2
    assert "--top is 0" in capsys.readouterr().err


def test_a_run_without_plug_ins_or_without_its_last_domain_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tiny_recipe(tmp_path, methods=["ncl"], seeds=[0]))
    small = ["--domains.*.task", "null", "--training.steps", "1"]
    assert main(["run", recipe, "--out", str(tmp_path / "ncl"), *small]) == 0
    assert main(["route", str(tmp_path / "ncl")]) == 2
    assert "no method of" in capsys.readouterr().err
    assert main(["run", recipe, "--out", str(tmp_path / "cpt"), "--methods", "[cpt]", *small]) == 0
    (last,) = (tmp_path / "cpt" / "sequences").glob("*/domains/1-money/final")
    last.rename(last.with_name("gone"))
    assert main(["route", str(tmp_path / "cpt")]) == 2
    assert "is not finished" in capsys.readouterr().err
