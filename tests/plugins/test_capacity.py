"""What is counted of the plug-ins' units, and when it is said that capacity runs out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eunoe.plugins.adapter import Adapter
from eunoe.plugins.capacity import capacity, capacity_report
from eunoe.plugins.files import load_plugins, save_plugins
from eunoe.plugins.inject import adapters, grow
from tests.models.families import tiny
from tests.plugins.test_inject import finish, plug


def row(free: int, new: dict[str, int], size: int = 100, **change: Any) -> dict[str, Any]:
    return {
        "layer": "0", "part": "feed_forward", "units": "inner", "size": size, "used": size - free, "shared": 0, "free": free,
        "domains": new, "new": new, "shared_with": {}, **change,
    }  # fmt: skip


def test_units_are_counted_per_layer_and_kind_and_with_each_earlier_domain() -> None:
    model = tiny("bert")
    active = plug(model)
    chosen = {0: [0, 1, 2], 1: [2, 3]}
    for domain, units in chosen.items():
        for adapter in adapters(model).values():
            for mask in adapter.masks().values():
                mask.embedding.data.fill_(-1.0)
                mask.embedding.data[units] = 1.0
                mask.keep(domain)
        active.finished.append(domain)
    rows = capacity(model)
    assert [(r["layer"], r["part"], r["units"], r["size"]) for r in rows[:4]] == [
        ("encoder.layer.0", "attention", "inner", 12),
        ("encoder.layer.0", "attention", "outer", 16),
        ("encoder.layer.0", "feed_forward", "inner", 14),
        ("encoder.layer.0", "feed_forward", "outer", 16),
    ]
    for counts in rows:
        assert (counts["used"], counts["shared"], counts["free"]) == (4, 1, counts["size"] - 4)
        assert (counts["domains"], counts["new"], counts["shared_with"]) == (
            {"a": 3, "b": 2},
            {"a": 3, "b": 1},
            {"a": 1},
        )
    grow(model, attention_size=20)
    assert [r["free"] for r in capacity(model)[:2]] == [16, 12], "grown units are inner units"


def test_domains_are_counted_in_the_order_they_were_learnt(tmp_path: Path) -> None:
    model = tiny("bert")
    active = plug(model)
    finish(model, 1, 0)
    assert active.finished == [1, 0]
    rows = capacity(model)
    for counts in rows:
        assert list(counts["domains"]) == ["b", "a"]
        assert counts["new"]["b"] == counts["domains"]["b"]
        assert counts["new"]["a"] == counts["domains"]["a"] - counts["shared_with"]["b"]
    assert capacity_report(rows)["domains"] == ["b", "a"]
    save_plugins(model, tmp_path)
    fresh = tiny("bert")
    load_plugins(fresh, tmp_path)
    assert capacity(fresh) == rows


def test_the_report_sums_over_layers_and_goes_through_json() -> None:
    model = tiny("bert")
    plug(model)
    assert capacity_report(capacity(model))["domains"] == []
    assert capacity_report(capacity(model))["warning"] is None
    finish(model, 0, 1)
    rows = capacity(model)
    report = capacity_report(rows)
    assert json.loads(json.dumps(report)) == report
    assert report["masks"] == rows
    assert report["domains"] == ["a", "b"]
    assert [(kind["part"], kind["units"]) for kind in report["kinds"]] == [
        ("attention", "inner"), ("attention", "outer"), ("feed_forward", "inner"), ("feed_forward", "outer"),
    ]  # fmt: skip
    for kind in report["kinds"]:
        own = [r for r in rows if (r["part"], r["units"]) == (kind["part"], kind["units"])]
        assert len(own) == 2
        for key in ("size", "used", "shared", "free"):
            assert kind[key] == sum(r[key] for r in own)
        assert kind["new"]["b"] == sum(r["new"]["b"] for r in own)
        assert kind["shared_with"]["a"] == sum(r["shared_with"]["a"] for r in own) == kind["shared"]


@pytest.mark.parametrize(
    ("rows", "warned"),
    [
        ([row(50, {"a": 50})], False),
        ([row(25, {"a": 50, "b": 25})], False),
        ([row(12, {"a": 50, "b": 25, "c": 12})], False),
        ([row(9, {"a": 50, "b": 41})], True),  # below a tenth
        ([row(10, {"a": 85, "b": 5})], False),
        ([row(24, {"a": 27, "b": 49})], True),  # below half of what b newly took
        ([row(25, {"a": 25, "b": 50})], False),
        ([row(0, {"a": 100}), row(100, {"a": 0}, layer="1")], False),  # kinds are summed over layers
        (
            [row(50, {"a": 50}), row(5, {"a": 95}, units="outer")],
            False,
        ),  # free inner units may write to taken outer ones
    ],
)
def test_a_warning_comes_before_capacity_runs_out(rows: list[dict[str, Any]], warned: bool) -> None:
    assert (capacity_report(rows)["warning"] is not None) == warned


def test_the_warning_gives_figures_and_what_to_do() -> None:
    text = capacity_report([row(5, {"food": 60, "law": 35})])["warning"]
    for part in (
        "2 domains (law)",
        "feed-forward inner: 5 of 100 (5 %)",
        "newly took 35",
        "sparsity",
        "grow",
        "ffn_size",
    ):
        assert part in text


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32))
def test_counts_add_up(domains: int, size: int, seed: int) -> None:
    model = tiny("bert")
    active = plug(model)
    active.domains = tuple("abcd")
    torch.manual_seed(seed)
    layer = model.bert.encoder.layer[0]
    layer.attention_plugin = Adapter(16, size, active)
    for adapter in adapters(model).values():
        for mask in adapter.masks().values():
            mask.bits = torch.zeros(4, mask.bits.shape[1], dtype=torch.uint8)
    finish(model, *range(domains))
    for counts in capacity(model):
        assert counts["used"] + counts["free"] == counts["size"]
        assert sum(counts["new"].values()) == counts["used"]
        assert all(0 <= counts["new"][d] <= n <= counts["size"] for d, n in counts["domains"].items())
        assert all(n <= counts["shared"] for n in counts["shared_with"].values())
