"""The capacity of plug-ins: shares, warnings, maps; files that are missing or broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eunoe.plugins.capacity import capacity_report
from eunoe.report.capacity import Side, Use, free_shares, sides, uses, warning
from eunoe.report.page import write_report
from eunoe.report.read import Capacity, read_run
from tests.report.made_up import DOMAINS, made_up_capacity, made_up_rows, made_up_run
from tests.report.test_page import page


def state(
    place: int,
    free: int,
    seed: int = 0,
    layer: str = "encoder.layer.0",
    new: int = 0,
    shared: int = 0,
    names: str = "ab",
) -> Capacity:
    mask = {
        "layer": layer,
        "part": "attention",
        "units": "inner",
        "size": 100,
        "used": 100 - free,
        "shared": 0,
        "free": free,
        "domains": dict.fromkeys(names[: place + 1], new + shared),
        "new": dict.fromkeys(names[: place + 1], new),
        "shared_with": dict.fromkeys(names[:place], shared),
    }
    return Capacity("cpt", "given", seed, place, names[place], [mask])


def test_free_shares_are_means_over_sequences_domain_by_domain() -> None:
    states = [state(0, 60), state(1, 20), state(0, 40, seed=1), state(1, 10, seed=1)]
    assert sides(states) == [Side("attention", "inner")]
    assert free_shares(states, Side("attention", "inner")) == {"encoder.layer.0": [0.5, pytest.approx(0.15)]}
    assert free_shares(states, Side("attention", "outer")) == {}


def test_the_page_warns_by_the_rule_and_in_the_words_of_the_run() -> None:
    assert warning([state(0, 5), state(1, 10)], "cpt") == ("", "")  # the state at the end counts, and 10 % are enough
    ends = [state(1, 9), state(1, 3, seed=1, new=2), state(1, 4, seed=2)]
    message, advice = warning([state(0, 50), state(0, 50, seed=1), *ends], "cpt")
    assert message == "cpt · seed 1 (0, 2 too): attention 3 % free, b newly took 2 %"
    assert capacity_report(ends[1].masks)["warning"].endswith(f" {advice}")
    assert advice.startswith("The next domain can still read")
    assert all(way in advice for way in ("grow", "sparsity", "ffn_size"))
    assert "24 % free, b newly took 49 %" in warning([state(1, 24, new=49)], "cpt")[0], "less than half of it"
    assert warning([state(1, 25, new=50)], "cpt") == ("", "")


def test_uses_are_sums_over_layers_and_means_over_sequences() -> None:
    first, second = state(1, 20, new=30, shared=5), state(1, 10, seed=1, new=35, shared=8)
    first.masks.append({**first.masks[0], "layer": "encoder.layer.1", "free": 1, "shared_with": {"a": 2}})
    side = Side("attention", "inner")
    states = [state(0, 60, new=40), state(0, 50, seed=1, new=50), first, second]
    assert uses(states, side) == [
        Use("a", 100, 45, 45, {}, 55),
        Use("b", 150, (35 + 35 + 43) / 2, (30 + 30 + 35) / 2, {"a": (5 + 2 + 8) / 2}, (20 + 1 + 10) / 2),
    ]
    assert [use.free for use in uses([first], side, "encoder.layer.1")] == [1]
    assert uses(states, Side("attention", "outer")) == []


def test_the_page_maps_each_kind_of_mask_and_warns(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "four")
    assert "Capacity" not in page(write_report([run])).text
    made_up_capacity(run, free=0.5)
    read = page(write_report([run]))
    for words in (
        "Capacity",
        "feed-forward, outer",
        "cpt · seed",
        "Capacity runs out. The next domain can still read",
        "bbc_news newly took",
        "mean of 3 seeds",
        "Free units, %",
        "no unit taken",
        "All methods and orders: units used, shared and free",
        "Least free of any seed, %",
        "Units by domain: used, shared with each earlier domain, free",
        "The same layer by layer",
        *(f"Shared with {domain}" for domain in DOMAINS[:-1]),
    ):
        assert words in read.text, words
    labels = [a.get("aria-label") or "" for _, a in read.elements]
    assert sum("share of free units" in label for label in labels) == 4
    assert sum("shares with each earlier domain" in label for label in labels) == 4
    for domain in DOMAINS:
        assert sum(f"after learning {domain}, layer by layer" in label for label in labels) == 4
    assert read.text.index("no unit taken") < read.text.index("Free units, %")
    made_up_capacity(run, free=0.9)
    assert "apacity runs out" not in page(write_report([run])).text


def test_what_to_do_is_said_once_and_methods_and_orders_come_as_in_the_rows(tmp_path: Path) -> None:
    orders = {"turned": DOMAINS[::-1], "given": DOMAINS}
    rows = [
        row
        for order, domains in orders.items()
        for row in made_up_rows(methods=("ncl", "cpt", "a"), seeds=(9, 10), order=order, domains=domains)
    ]
    run = made_up_run(tmp_path / "orders", rows)
    made_up_capacity(run, free=0.5, method="*")
    text = page(write_report([run])).text
    assert text.count("(grow)") == 1
    places = [text.index(f"{method}, order {order} ·") for method in ("ncl", "cpt", "a") for order in orders]
    assert places == sorted(places)
    curves = text[text.index("Learning curves") :]
    assert curves.index("Order turned") < curves.index("Order given")
    assert [one.seed for one in read_run(run).capacity][:: len(DOMAINS)] == 6 * [9, 10]
    assert [one.method for one in read_run(run).capacity][:: 4 * len(DOMAINS)] == ["ncl", "cpt", "a"]


def test_names_from_the_file_are_escaped(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "four")
    made_up_capacity(run)
    bad = "<b>$x$\ud800&"
    for file in sorted(run.glob("sequences/*/domains/*/capacity.json")):
        rows = json.loads(file.read_text())
        for row in rows:
            row["layer"] = row["layer"].replace("encoder.layer.0", bad)
            row["shared_with"] = {bad: 1, **row["shared_with"]}
            row["domains"] = {bad: 1, **row["domains"]}
        file.write_text(json.dumps(rows))
    html = write_report([run]).read_text()
    assert "Shared with &lt;b&gt;$x$\\ud800&amp;" in html
    assert "<b>$x" not in html


def test_a_broken_capacity_is_left_out_and_named(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "four")
    made_up_capacity(run)
    whole = read_run(run).capacity
    assert len(whole) == 3 * len(DOMAINS)
    files = sorted(run.glob("sequences/*/domains/*/capacity.json"))
    for file, text in zip(files, ("[", "[]", "{}", '[{"layer": 1}]', '[{"layer": "a", "part": "b", "units": "c", "size": 0, "used": 0, '
                                  '"shared": 0, "free": 0}]'), strict=False):  # fmt: skip
        file.write_text(text)
    assert len(read_run(run).capacity) == len(whole) - 5
    rows = json.loads(files[5].read_text())
    for shared in ({"a": "b"}, [1], {"a": -1}, {"a": 1e300}):
        files[5].write_text(json.dumps([{**rows[0], "shared_with": shared}]))
        assert len(read_run(run).capacity) == len(whole) - 6
    assert len(read_run(run).damaged) == 6
    files[5].write_text(
        json.dumps([{key: rows[0][key] for key in rows[0] if key not in ("domains", "new", "shared_with")}])
    )
    assert len(read_run(run).capacity) == len(whole) - 5, "what was written before domains were counted"
    text = page(write_report([run])).text
    for file in files[:5]:
        assert f"damaged, and left out: {file.relative_to(run)}" in text
    assert str(tmp_path) not in text
