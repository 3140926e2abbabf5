"""The page of many methods: the trade-off and its front, names that do not overlap, what to pick, costs, and tables that sort."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eunoe.report import beside, costs, small, tradeoff_plot
from eunoe.report import tradeoff as tradeoffs
from eunoe.report.beside import Sizes
from eunoe.report.page import write_report
from eunoe.report.pick import choices
from eunoe.report.read import read_run
from eunoe.report.schema import Row
from eunoe.report.small import forgotten
from eunoe.report.summary import summarize
from eunoe.report.tradeoff import Tradeoff, main_lines, tradeoff
from eunoe.report.tradeoff_plot import Box, places
from tests.report.chromium import Chromium
from tests.report.made_up import GAINS, KEEPS, made_up_facts, made_up_many, made_up_run, many_rows
from tests.report.test_page import page
from tests.report.test_tables import SMALL, loss, many


def test_the_examples_of_the_docstrings_hold() -> None:
    results = [doctest.testmod(module) for module in (beside, costs, small, tradeoffs, tradeoff_plot)]
    assert sum(one.attempted for one in results) >= 6
    assert sum(one.failed for one in results) == 0


# -- learnt against forgotten -----------------------------------------------------------------------------------
def of(rows: list[Row]) -> Tradeoff:
    both = tradeoff(main_lines(summarize(rows)))
    assert both is not None
    return both


def test_marks_stand_at_what_was_forgotten_and_learnt_over_the_pretrained_model() -> None:
    both = of(many(("ncl", 1.0, 2.0), ("cpt", 2.5, 2.5)))
    assert both.gained
    # pretrained 4.0 and 5.0; b is learnt to 3.0
    assert {m.label: (m.forgot.mean, m.learnt.mean) for m in both.marks} == {"ncl": (1.0, 2.5), "cpt": (0.0, 1.75)}
    assert both.levels == {"base": 0.0}


def test_the_front_has_whatever_no_other_method_beats_or_equals_in_both() -> None:
    rows = many(
        ("keeps", 3.0, 3.0), ("middle", 2.0, 2.25), ("worse", 2.5, 3.0), ("equal", 2.0, 2.25), ("ncl", 1.0, 2.0)
    )
    assert [mark.label for mark in of(rows).front] == ["keeps", "middle", "ncl"]
    assert [mark.label for mark in of(many(("only", 2.0, 3.0))).front] == ["only"]


def test_without_scores_of_the_pretrained_model_the_axis_is_the_score_right_after_learning() -> None:
    rows = [row for row in many(("a1", 2.0, 2.5), ("a2", 1.0, 2.5)) if row.method != "base"]
    both = of(rows)
    assert not both.gained
    assert {m.label: m.learnt.mean for m in both.marks} == {"a1": 2.5, "a2": 2.0}
    assert [mark.label for mark in both.front] == ["a1", "a2"], "a lower loss is more learnt"


def test_methods_that_cannot_forget_are_levels() -> None:
    rows = many(("ncl", 2.0, 2.5))
    rows += [
        loss("none", (), "a", 4.0),
        loss("none", (), "b", 5.0),
        loss("tuned", (), "a", 3.0),
        loss("tuned", (), "b", 5.0),
    ]
    rows += [replace(loss("joint", ("a", "b"), task, value), at_once=2) for task, value in (("a", 2.0), ("b", 3.0))]
    both = of(rows)
    assert [mark.label for mark in both.marks] == ["ncl"]
    assert both.levels == {"base": 0.0, "none": 0.0, "tuned": 0.5, "joint": 2.0}


def test_a_method_without_all_scores_has_no_mark_and_a_run_without_any_no_picture(tmp_path: Path) -> None:
    rows = [
        row
        for row in many(("half", 2.0, 2.5), ("whole", 2.0, 2.5))
        if (row.method, row.learnt, row.task) != ("half", ("a", "b"), "a")
    ]
    assert [mark.label for mark in of(rows).marks] == ["whole"]
    one = [row for row in SMALL if len(row.learnt) < 2 and row.task == "a"]
    assert tradeoff(main_lines(summarize(one))) is None
    assert "Learnt against forgotten" not in page(write_report(made_up_run(tmp_path / "one", one, curves=False))).text


def test_the_picture_says_in_words_what_it_shows(tmp_path: Path) -> None:
    read = page(write_report(made_up_run(tmp_path / "few", many(("ncl", 1.0, 2.0), ("cpt", 2.5, 2.5)), curves=False)))
    (alt,) = {a["aria-label"] for tag, a in read.elements if "learnt against forgotten" in (a.get("aria-label") or "")}
    assert alt == (
        "LM loss of the domains’ text, learnt against forgotten, nats: ncl learnt 2.500, forgot 1.000; cpt learnt 1.750, "
        "forgot 0 (exactly). On the front: cpt, ncl"
    )
    assert "there is no spread to draw an interval from" in read.text
    assert "Dashed lines" not in read.text


def test_names_cover_no_mark_and_no_other_name_and_are_left_out_where_there_is_no_place() -> None:
    crowd = {f"method-{i}": (200.0 + 30 * (i % 6), 150.0 + 24 * (i // 6)) for i in range(26)}
    frame, marks = Box(0, 0, 600, 400), [Box(x - 6, y - 6, x + 6, y + 6) for x, y in crowd.values()]
    placed = places(crowd, dict.fromkeys(crowd, 60.0), frame, marks, [])
    assert len(placed) >= 20
    boxes = [*placed.values()]
    assert all(box.inside(frame) and not any(box.meets(mark) for mark in marks) for box in boxes)
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.meets(other)]
    assert places(crowd, dict.fromkeys(crowd, 650.0), frame, marks, []) == {}


def test_what_is_forgotten_of_each_domain_is_followed_to_the_end() -> None:
    scores = summarize(SMALL).matrices[0]
    assert forgotten(scores, main_lines(summarize(SMALL))[0].metric) == [("a", [1, 2], [0.0, 0.5])]


# -- pick one ---------------------------------------------------------------------------------------------------
def picked(rows: list[Row], sizes: Any = None, **change: Any) -> dict[str, Any]:
    summary = summarize(rows)
    labels = {line.label for line in summary.lines if line.method != "base"}
    facts = {label: replace(fact, **change) for label, fact in facts_of(sorted(labels)).items()}
    return {choice.when.partition(":")[0]: choice for choice in choices(summary, facts, sizes or {})[0]}


def facts_of(labels: list[str]) -> dict[str, beside.Facts]:
    return {
        label: beside.Facts(**{**fact, "methods": tuple(fact["methods"])})
        for label, fact in made_up_facts(labels).items()
    }


def test_what_to_pick_follows_from_facts_and_scores() -> None:
    rows = many_rows(end_tasks=False)
    chosen = {when: choice.best.label for when, choice in picked(rows).items()}
    ends = {line.label: line.final.mean for line in main_lines(summarize(rows)) if line.final and line.forgetting}
    facts = facts_of([*GAINS])
    best = sorted(ends, key=lambda label: ends[label])
    assert chosen == {
        "Anything goes": best[0],
        "Nothing learnt may change, which eunoe verify holds to the bit": next(m for m in best if m in KEEPS),
        "Nobody names the domain at use": next(m for m in best if not facts[m].needs_domain),
        "Nobody names the domain at use, and no old text is kept or read again":
            next(m for m in best if not facts[m].needs_domain and not facts[m].old_text),
        "No old text is kept or read again; the domain may be named at use": next(m for m in best if not facts[m].old_text),
        "A training step costs at most 1.2 times that of naive training": next(m for m in best if facts[m].arithmetic <= 1.2),
        "Training has less memory than all weights, gradients and moments take":
            next(m for m in best if facts[m].memory.startswith("-")),
    }  # fmt: skip


def test_a_choice_says_how_sure_it_is(tmp_path: Path) -> None:
    rows = many(("ncl", 2.0, 2.6), ("ewc", 2.0, 2.2), ("cpt", 2.4, 2.4), seeds=(0, 1, 2), wobble=0.1)
    (best,) = {
        (c.best.label, c.rivals, tuple(c.alike), c.unsure)
        for when, c in picked(rows).items()
        if when == "Anything goes"
    }
    assert best == ("ewc", 2, (), False), "all alike moved by seeds, so their differences are clear"
    assert picked(rows)["Nothing learnt may change, which eunoe verify holds to the bit"].rivals == 0
    assert picked([row for row in rows if row.seed == 0])["Anything goes"].unsure
    noise = {("ewc", 0): 0.3, ("ewc", 2): -0.3}
    shaken = [replace(row, value=row.value + noise.get((row.method, row.seed), 0.0)) for row in rows]
    assert picked(shaken)["Anything goes"].alike == ["cpt", "ncl"]
    run = made_up_run(tmp_path / "run", shaken, curves=False)
    (run / "methods.json").write_text(json.dumps(made_up_facts(["ncl", "ewc", "cpt"])), encoding="utf-8")
    assert "first of 3; cannot be distinguished from cpt, ncl" in page(write_report(run)).text


def test_what_no_method_of_the_run_can_do_is_said_and_too_few_methods_or_no_facts_make_no_section(
    tmp_path: Path,
) -> None:
    rows = many(("ncl", 2.0, 2.6), ("ewc", 2.0, 2.2), ("kd", 2.4, 2.4))
    run = made_up_run(tmp_path / "run", rows, curves=False)
    assert "Pick one" not in page(write_report(run)).text, "an earlier version's run says nothing of its methods"
    (run / "methods.json").write_text(json.dumps(made_up_facts(["ncl", "ewc", "kd"])), encoding="utf-8")
    text = page(write_report(run)).text
    assert (
        "No method of this run fits: nothing learnt may change, which eunoe verify holds to the bit; training has less memory"
        in text
    )
    assert "one sequence, no interval" in text
    two = made_up_run(tmp_path / "two", many(("ncl", 2.0, 2.6), ("ewc", 2.0, 2.2)), curves=False)
    (two / "methods.json").write_text(json.dumps(made_up_facts(["ncl", "ewc"])), encoding="utf-8")
    assert "Pick one" not in page(write_report(two)).text


def test_disk_counts_where_it_was_measured() -> None:
    rows = many(("ncl", 2.0, 2.2), ("ewc", 2.0, 2.6), ("cpt", 2.4, 2.4))
    kept = {
        label: [Sizes(label, "given", 0, 1, size, {})] for label, size in (("ncl", 1000), ("ewc", 900), ("cpt", 250))
    }
    assert picked(rows, kept)["A domain takes at most 250 B on disk, a quarter of the largest"].best.label == "cpt"


@pytest.mark.parametrize(
    "text", ["[]", '{"ncl": 1}', '{"ncl": {"methods": ["ncl"]}}', '{"ncl": {"arithmetic": "x"}}', "{"]
)
def test_damaged_facts_are_named_and_the_page_goes_without(tmp_path: Path, text: str) -> None:
    run = made_up_many(tmp_path / "run", 3, curves=False, seeds=(0,), end_tasks=False)
    (run / "methods.json").write_text(text, encoding="utf-8")
    read = page(write_report(run))
    assert "damaged, and left out: methods.json" in read.text
    assert "Pick one" not in read.text


# -- costs ------------------------------------------------------------------------------------------------------
def test_times_are_shown_where_they_are_asked_for_and_only_there(tmp_path: Path) -> None:
    run = made_up_many(tmp_path / "run", 3, seeds=(0, 1), end_tasks=False)
    plain = write_report(run).read_bytes()
    assert "eunoe report RUN --times" in plain.decode()
    assert "Learnt in" not in plain.decode()
    (run / "times.jsonl").write_text((run / "times.jsonl").read_text().replace("61.5", "62.5"))
    assert write_report(run).read_bytes() == plain, "without times the page is the same however long it took"
    text = page(write_report(run, times=True)).text
    assert "Learnt in" in text
    assert "4.2 min" in text, "4 domains of 62.5 seconds, the mean of two sequences"
    with open(run / "times.jsonl", "a") as file:
        file.write('{"what": "ncl.given.seed0/0-x", "seconds": "long"}\n{"what": 1}\nnothing\n')
    assert "damaged, and left out: times.jsonl:" in page(write_report(run, times=True)).text


def test_a_stage_that_was_written_twice_counts_once_and_scores_are_no_stages(tmp_path: Path) -> None:
    file = tmp_path / "times.jsonl"
    lines = [
        ("ncl.given.seed0/0-a", 5.0),
        ("ncl.given.seed0/0-a", 7.0),
        ("ncl.given.seed0/1:a (text)", 1.0),
        ("head", 2.0),
    ]
    file.write_text("".join(json.dumps({"what": what, "seconds": s, "tokens": 1}) + "\n" for what, s in lines))
    assert [(t.method, t.order, t.seed, t.place, t.seconds) for t in beside.read_times(file)] == [
        ("ncl", "given", 0, 0, 7.0)
    ]


# -- on a page --------------------------------------------------------------------------------------------------
def test_a_report_of_methods_without_a_promise_speaks_of_no_plugins(tmp_path: Path) -> None:
    run = made_up_many(tmp_path / "run", 1, seeds=(0, 1))
    text = page(write_report(run)).text
    assert "plug-in" not in text
    assert "promise" not in text


def test_hostile_labels_stay_text_in_every_new_section(tmp_path: Path) -> None:
    evil = ["<script>alert(1)</script>", "</svg><b>x", '"onload=x']
    names = dict(zip(("ncl", "ewc", "cpt"), evil, strict=True))
    rows = [
        replace(row, method=names.get(row.method, row.method))
        for row in many(("ncl", 2.0, 2.6), ("ewc", 2.0, 2.2), ("cpt", 2.4, 2.4))
    ]
    run = made_up_run(tmp_path / "run", rows, curves=False)
    facts = {names[label]: {**fact, "memory": "<i>", "keeps": "<u>"} for label, fact in made_up_facts([*names]).items()}
    (run / "methods.json").write_text(json.dumps(facts), encoding="utf-8")
    read = page(write_report(run))
    assert "Pick one" in read.text
    assert not {tag for tag, _ in read.elements} & {"i", "u"}
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert evil[0] in read.text


def test_each_of_many_methods_has_its_own_look_and_a_panel_on_the_common_scale(tmp_path: Path) -> None:
    run = made_up_many(tmp_path / "run", seeds=(0,), end_tasks=False)
    read = page(write_report(run))
    text = (run / "report.html").read_text(encoding="utf-8")
    keys = text.split("<h2>Learnt against forgotten</h2>")[1].split("</ul>")[0]
    drawn = [item.split("</svg>")[0] for item in keys.split("<li>")[1:]]
    assert len(drawn) == len(set(drawn)) == len(GAINS)
    for what, count in (
        ("by how much each domain is worse", len(GAINS)),
        ("training loss, domain after domain", len(GAINS) + 1),
    ):
        assert sum(what in (a.get("aria-label") or "") for _, a in read.elements) == count, what
    assert 'class="compact"' in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as opened:
        yield opened


def order(browser: Chromium) -> list[str]:
    """Methods in the table of costs, from the top."""
    rows = "[...document.querySelectorAll('table[data-sort]')][0].tBodies[0].rows"
    return list(browser.evaluate(f"[...{rows}].map(row => row.cells[0].textContent)"))


def test_tables_sort_with_the_keyboard_without_a_request_and_stand_in_the_recipes_order_before(
    tmp_path: Path, browser: Chromium
) -> None:
    run = made_up_many(tmp_path / "run", 8, curves=False, seeds=(0, 1), end_tasks=False)
    path = write_report(run)
    browser.open(path, 1280)
    first = order(browser)
    assert first == ["none", *list(GAINS)[:8], "joint"]
    ends = {line.label: line.final.mean for line in main_lines(summarize(read_run(run).rows)) if line.final}
    focus = "[...document.querySelectorAll('table[data-sort] th button')][{}].focus()"
    browser.evaluate(focus.format(1))
    for up in (True, False):
        press(browser, "Enter")
        shown = order(browser)
        assert shown == sorted(ends.keys() & {*first}, key=lambda label: ends[label], reverse=not up)
        marked = browser.evaluate(
            "[...document.querySelectorAll('[aria-sort]')].map(th => th.getAttribute('aria-sort'))"
        )
        assert marked == ["ascending" if up else "descending"]
    browser.evaluate(focus.format(2))
    for _ in "up", "down":
        press(browser, "Enter")
        assert order(browser)[-1] == "joint", "what has no number comes last either way"
    browser.evaluate(focus.format(0))
    press(browser, "Enter")
    assert order(browser) == sorted(first)
    assert browser.requests() == [path.resolve().as_uri()]
    assert browser.complaints() == []


def press(browser: Chromium, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if kind == "keyDown" else {}
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=13, **text)


def test_the_policy_stops_every_script_but_the_pages_own(tmp_path: Path, browser: Chromium) -> None:
    path = write_report(made_up_many(tmp_path / "run", 3, curves=False, seeds=(0,), end_tasks=False))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>"), encoding="utf-8")
    browser.open(path, 1280)
    assert browser.evaluate("document.title") == "eunoe: many"
    assert browser.complaints()
    assert browser.evaluate("document.querySelectorAll('th button').length") > 0


OVERLAPS = """[...document.querySelectorAll('.names')].filter(one => one.offsetParent).map(one => {
  const boxes = [...one.querySelectorAll('svg text')].map(text => text.getBoundingClientRect());
  return boxes.filter((a, i) => boxes.slice(0, i).some(b =>
    a.left + 1 < b.right && b.left + 1 < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)).length;
})"""
"""How many words in each picture of the trade-off that is in sight lie on another."""


@pytest.mark.parametrize("count", [1, 3, 8, 24])
def test_pages_of_few_and_many_methods_fit_and_no_name_lies_on_another(
    tmp_path: Path, browser: Chromium, count: int
) -> None:
    path = write_report(made_up_many(tmp_path / "run", count, end_tasks=False, seeds=(0, 1)))
    for width in (390, 1280):
        browser.open(path, width, phone=width == 390)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(OVERLAPS) == [0], width
        browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.requests() == [path.resolve().as_uri()]
        assert browser.complaints() == []
