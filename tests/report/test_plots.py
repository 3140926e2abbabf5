"""Plots: the same bytes each time, ids of their own, text that stays text and is never read as markup or as a formula."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import pytest

from eunoe.report.curves import Curve
from eunoe.report.draw import LOOKS, RAMP, SHAPES, STYLES, ramp, style
from eunoe.report.html import CSS, MARKS
from eunoe.report.lines import frontier, over_layers, over_steps
from eunoe.report.matrices import Scores, matrices
from eunoe.report.metrics import DISTANCE, LM_LOSS, Estimate, metric_of
from eunoe.report.plots import colour_bar, colour_limit, heat_maps
from eunoe.report.small import curve_panel, forgotten, forgotten_panel, stretches
from eunoe.report.study import Spot
from eunoe.report.summary import summarize
from eunoe.report.tradeoff import tradeoff, undominated
from eunoe.report.tradeoff_plot import tradeoff_plot
from tests.report.made_up import made_up_rows


def of_metric(name: str, **more: object) -> list[Scores]:
    return [s for s in matrices(made_up_rows(**more)) if s.key.metric == name]  # type: ignore[arg-type]


def words(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def fills(svg: str) -> list[str]:
    return [f for f in re.findall(r"fill: (#[0-9a-f]{6})", svg) if f != "#0c0d0e"]


SPOTS = [
    Spot("ncl[k=1]", "ncl[k=1]", "ncl", True, Estimate((0.5,)), Estimate((0.125,)), 1.0),
    Spot("ncl[k=2]", "ncl[k=2]", "ncl", True, Estimate((0.75,)), Estimate((0.25,)), None),
    Spot("ncl[k=2]", "ncl", "ncl", False, Estimate((0.625, 0.75)), Estimate((0.25, 0.375)), 2.0),
    Spot("cpt", "cpt", "cpt", False, Estimate((0.5,)), Estimate((-0.125,)), 2.0),
]


def all_plots() -> list[str]:
    rows = made_up_rows()
    looks = {"ncl": style(0), "cpt": style(1)}
    curves = [
        Curve("ncl", 0, (1, 2, 3), (3.0, 2.5, 2.25)),
        Curve("ncl", 1, (1, 2, 3), (3.1, 2.6, 2.2)),
        Curve("cpt", 0, (1,), (3.0,)),
    ]
    both = tradeoff([line for line in summarize(rows).lines if line.metric is LM_LOSS])
    assert both is not None
    paths = forgotten(of_metric("lm_loss")[0], LM_LOSS)
    return [
        *heat_maps(of_metric("lm_loss"), "heat"), colour_bar(0.25, LM_LOSS, "bar"),
        over_steps(curves, looks, "curve"), over_steps(curves, looks, "log", "distance", log_steps=True),
        tradeoff_plot(both, looks, "tradeoff", 400, 300),
        forgotten_panel(paths, {p.domain: style(i) for i, p in enumerate(paths)}, LM_LOSS, (-1, 1), 4, "panel"),
        curve_panel(stretches({0: curves[:2]}), [], style(0), (0, 4), 1, "small"),
        over_layers({"ncl": {"embeddings": 0.5, "layer.0": 1.0}}, looks, DISTANCE, "layers"),
        frontier(SPOTS, looks, metric_of("matthews"), "frontier"),
    ]  # fmt: skip


def test_the_same_numbers_give_the_same_bytes_and_touch_no_global_setting() -> None:
    before = dict(mpl.rcParams)
    assert all_plots() == all_plots()
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or mpl.pyplot.get_fignums() == []


def test_no_id_is_used_twice_on_a_page_and_every_reference_is_met() -> None:
    text = "".join(all_plots())
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    assert {a or b for a, b in used} <= set(ids)


def test_nothing_points_out_of_the_page_and_text_stays_text() -> None:
    for svg in all_plots():
        assert set(re.findall(r"https?://[^\"' ]+", svg)) == {"http://www.w3.org/2000/svg"}
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert "DejaVu" not in svg
        assert words(svg)


def test_a_heat_map_shows_each_score_its_move_and_what_was_before() -> None:
    ncl, cpt = heat_maps(of_metric("lm_loss", seeds=(0,)), "heat")
    scores = of_metric("lm_loss", seeds=(0,))[0]
    R = scores.seeds[0]
    assert R[3][0] is not None and R[0][0] is not None  # noqa: PT018
    assert f"{R[3][0]:.3f}" in words(ncl)
    assert f"+{R[3][0] - R[0][0]:.3f}" in words(ncl)
    assert "4.100" in words(ncl)
    assert "same" not in words(ncl)
    assert words(cpt).count("same") == 6


def test_all_methods_share_one_scale_on_which_worse_is_orange_for_losses_and_scores_alike() -> None:
    for name in ("lm_loss", "accuracy"):
        both = of_metric(name, seeds=(0,))
        ncl, cpt = heat_maps(both, "heat")
        assert "#f0953f" in fills(ncl)  # the largest move of all ends the scale, and it is a loss
        assert len(set(fills(cpt))) == 1  # nothing moved: one neutral colour
        assert colour_limit(both) == max(colour_limit(both[:1]), colour_limit(both[1:])) > 0
        assert heat_maps(both[:1], "heat")[0] == ncl


@pytest.mark.parametrize("name", ["</text><script>alert(1)</script>", "$x^2$", "--><b>", 'a"b', "&amp;", "中文"])
def test_names_are_drawn_as_they_are(name: str) -> None:
    (svg,) = heat_maps(of_metric("lm_loss", domains=(name, "b"), methods=("ncl",), seeds=(0,)), "heat")
    assert any(name[:6] in word for word in words(svg))
    assert "<script" not in svg
    both = tradeoff([replace(line, label=name) for line in summarize(made_up_rows(seeds=(0,))).lines[1:2]])
    assert both is not None
    svg = tradeoff_plot(both, {name: style(0)}, "tradeoff", 400, 300)
    assert any(word.startswith(name[:19]) for word in words(svg))
    assert "<script" not in svg


def test_twenty_six_methods_differ_by_colour_by_dash_and_by_shape_each_alone() -> None:
    assert len(STYLES) >= 26
    for part in ("name", "light", "dark", "dash", "mark"):
        seen = [(look.shape, look.open) if part == "mark" else getattr(look, part) for look in STYLES]
        assert len(set(seen)) == len(STYLES), part
    assert style(len(STYLES)) == STYLES[0]
    assert {look.shape for look in STYLES} == set(SHAPES) == set(MARKS), "every shape has a mark for keys"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_every_colour_stands_out_from_the_page() -> None:
    """WCAG 2.1 asks 3 to 1 of graphics."""
    page = re.findall(r"--page: (#[0-9a-f]{6})", CSS)
    assert len(page) == 2
    for look in STYLES:
        assert 1.05 / (luminance(look.light) + 0.05) >= 3, look
        assert (luminance(look.dark) + 0.05) / (luminance(page[1]) + 0.05) >= 3, look


def test_colours_come_from_the_page_so_that_it_can_turn_dark() -> None:
    text = "".join(all_plots())
    assert "currentColor" in text
    assert "var(--line-0, #4a4e9e)" in text
    assert "#010203" not in text
    assert "#040506" not in text


def test_a_ramp_gives_each_of_twelve_points_a_colour_of_its_own_and_no_look_takes_anothers() -> None:
    for count in (1, 2, 11, 12):
        assert len({look.light for look in ramp(count)}) == count
    assert [ramp(12)[0], ramp(12)[-1]] == [RAMP[0], RAMP[-1]]
    for part in ("name", "light"):  # the page finds a line's colour by the light one
        assert len({getattr(look, part) for look in LOOKS}) == len(LOOKS)


def test_a_frontier_joins_what_nothing_beats_in_both() -> None:
    assert undominated([(0.25, 1.0), (0.25, 2.0), (0.5, 2.0), (1.0, 3.0)]) == [(0.25, 2.0), (1.0, 3.0)]
    assert undominated([]) == []
    svg = frontier(SPOTS, {"ncl": style(0), "cpt": style(1)}, metric_of("matthews"), "f")
    assert "Matthews, points" in words(svg)
    assert "rise of the LM loss of general text, nats" in words(svg)


def test_layers_go_by_their_numbers_and_names_are_no_formulas() -> None:
    values = {"a": {"embeddings": 1.0, "h.0": 2.0, "$x$": 1.0}}
    svg = over_layers(values, {"a": style(0)}, metric_of("cka@$y$"), "l")
    assert {"emb", "0", "$x$", "CKA on $y$"} <= set(words(svg))


def test_log_steps_are_told_in_plain_numbers() -> None:
    curve = Curve("a", 0, tuple(range(1, 2001)), tuple(1 / s for s in range(1, 2001)))
    said = words(over_steps([curve], {"a": style(0)}, "c", "$loss$", 100.0, log_steps=True))
    assert {"1", "10", "100", "1,000", "step (logarithmic)", "$loss$"} <= set(said)


def test_a_long_curve_is_binned() -> None:
    steps = tuple(range(1, 20001))
    svg = over_steps([Curve("ncl", 0, steps, tuple(3 + 1 / s for s in steps))], {"ncl": style(0)}, "c")
    assert len(svg) < 20_000


def test_one_domain_makes_a_heat_map_of_one_cell() -> None:
    (svg,) = heat_maps(of_metric("accuracy", domains=("only",), methods=("cpt",), seeds=(0,)), "heat")
    assert "1 only" in words(svg)
