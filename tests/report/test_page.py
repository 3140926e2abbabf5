"""The report page: whole without a network, the same bytes each time, safe with hostile names, honest about holes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eunoe.errors import EunoeError
from eunoe.report import html
from eunoe.report.page import write_report
from eunoe.report.read import read_run
from tests.report.chromium import Chromium
from tests.report.made_up import DOMAINS, made_up_capacity, made_up_rows, made_up_run, made_up_study, study_rows

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page, its text, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page(path: Path) -> Page:
    read = Page(path.read_text(encoding="utf-8"))
    assert read.open == []
    return read


def test_a_report_says_all_it_should(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "four")
    assert write_report([run]) == run / "report.html"
    read = page(run / "report.html")
    for words in (
        "next comes cpt, which learnt 0.746 ± 0.017 and forgot exactly 0", "Learnt against forgotten",
        "What ran", " → ".join(DOMAINS), "0, 1, 2", "Scores after each domain",
        "Learning curves", "Forward transfer", "eunoe run recipes/four_domains.yaml --out runs/four", "name: four_domains", "2.13.0+cpu",
        "LM loss on general text", "0 (exactly)", "does not belong", "Macro-F1 on the end tasks",
    ):  # fmt: skip
        assert words in read.text, words
    heat, legend, tradeoff, forgot, curves, swatches = 3 * 2, 3, 3 * 2, 3 * 2, 4, 2 + 2 + 3 * 3
    assert sum(tag == "svg" for tag, _ in read.elements) == heat + legend + tradeoff + forgot + curves + swatches
    assert not list(run.glob("*.partial"))


def test_the_page_needs_nothing_from_outside_and_runs_nothing_but_its_own_script(tmp_path: Path) -> None:
    file = write_report([made_up_run(tmp_path / "four")])
    read, text = page(file), file.read_text(encoding="utf-8")
    assert re.findall(r"<script.*?</script>", text, flags=re.DOTALL) == [f"<script>{html.SCRIPT}</script>"]
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"url\((?!#)|@import", text)
    assert not {tag for tag, _ in read.elements} & {"iframe", "img", "object", "embed", "form", "base"}
    for _, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    policy = next(
        a["content"] for tag, a in read.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(html.SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy, "the page's script alone may run"
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_same_run_in_another_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report([made_up_run(tmp_path / "one")]).read_bytes()
    assert write_report([made_up_run(tmp_path / "two")]).read_bytes() == first
    program = (
        "import sys, pathlib; from eunoe.report.page import write_report; write_report([pathlib.Path(sys.argv[1])])"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "one")], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert (tmp_path / "one" / "report.html").read_bytes() == first


def test_whatever_stands_in_the_data_stays_text(tmp_path: Path) -> None:
    evil = ("</svg><script>alert(1)</script>", "$x^2$ --><b onclick=x>", '"><img src=http://example.com/x>', "中文\x01")
    rows = made_up_rows(run="<title>", methods=("<script>m</script>", "cpt"), domains=evil, seeds=(0,))
    rows = [replace(r, detail={f"<u>{k}": v for k, v in r.detail.items()} if r.detail else None) for r in rows]
    run = made_up_run(tmp_path / "evil", rows, curves=False)
    lines = (run / "rows.jsonl").read_text(encoding="utf-8")
    (run / "rows.jsonl").write_text(lines.replace("\\u0001", "\\u0001\\ud800"), encoding="utf-8")
    (run / "recipe.yaml").write_text("a: </pre><script>alert(2)</script>\n")
    (run / "environment.json").write_text('{"command": "<script>", "<b>": ["<i>"]}', encoding="utf-8")
    read = page(write_report([run]))
    assert not {tag for tag, _ in read.elements} & {"img", "b onclick", "u", "i"}
    assert [tag for tag, _ in read.elements].count("script") == 1, "the page's own"
    assert "<script>alert(1)</script>" in read.text
    assert "</pre><script>alert(2)</script>" in read.text


def test_missing_files_are_named_in_the_page(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "bare", made_up_rows(end_tasks=False, base=False), curves=False)
    (run / "recipe.yaml").unlink()
    (run / "environment.json").unlink()
    text = page(write_report([run])).text
    for words in ("There is no recipe.yaml that can be read", "There is no environment.json that can be read", "No curve.csv was found",
                  "no end-task scores"):  # fmt: skip
        assert words in text
    assert "none yet" not in text, "a run that did not score the pretrained model"


@pytest.mark.parametrize("rows", [1, 7, 14, 20, 33, 90, 150])
def test_a_run_that_was_cut_short_has_a_page_that_says_so(tmp_path: Path, rows: int) -> None:
    run = made_up_run(tmp_path / "short", made_up_rows()[:rows])
    with open(run / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write('{"run": "four_dom')  # a kill in the middle of a line
    text = page(write_report([run])).text
    assert ("nfinished" in text) or ("No domain has been learnt" in text)


def test_one_domain_makes_a_page(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "one", made_up_rows(domains=("bbc",), methods=("cpt",), seeds=(0,)))
    assert "One domain was learnt (bbc)" in page(write_report([run])).text


def test_several_runs_are_compared_under_names_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        made_up_run(tmp_path / name / "out", made_up_rows(methods=("ncl", other)))
        for name, other in (("a", "cpt"), ("b", "ewc"))
    ]
    monkeypatch.chdir(tmp_path)
    assert write_report(runs) == Path("report.html")
    text = page(tmp_path / "report.html").text
    assert "a/out: ncl" in text
    assert "b/out: ncl" in text
    assert "Best at the end of 4 methods is " in text
    assert str(tmp_path) not in text
    assert write_report(runs, tmp_path / "new" / "compare.html").is_file()
    assert write_report([runs[0], runs[0]]) == runs[0] / "report.html"  # the same run twice is one run


def test_several_orders_are_labelled(tmp_path: Path) -> None:
    rows = made_up_rows(seeds=(0,)) + made_up_rows(seeds=(1,), order="turned", domains=DOMAINS[::-1])
    text = page(write_report([made_up_run(tmp_path / "orders", rows)])).text
    assert "The row “none yet” is the pretrained model" in text
    assert "summed over orders, seeds and few-shot draws" in text
    assert "Order turned" in text
    assert " → ".join(DOMAINS[::-1]) in text


def test_a_folder_without_scores_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(EunoeError, match=r"is not a folder. Make a run first: eunoe run RECIPE --out"):
        write_report([tmp_path / "nowhere"])
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(
        EunoeError, match=r"rows.jsonl is missing or has no whole line. Make them first: eunoe run RECIPE --out"
    ):
        write_report([tmp_path])
    with pytest.raises(EunoeError, match="no run folder was given"):
        write_report([])
    run = made_up_run(tmp_path / "run", curves=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(EunoeError, match="could not be written"):
        write_report([run], tmp_path / "file" / "report.html")
    assert not list(tmp_path.rglob("report.html"))


def test_a_broken_curve_is_left_out_and_named(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", made_up_rows(methods=("cpt",), seeds=(3,)))
    files = sorted(run.glob("sequences/*/domains/*/curve.csv"))
    whole = "step,loss,lr,grad_norm\n3,2.5,1e-3,1.0\n1,3.5,1e-3,1.0\n"
    for file, text in zip(files, (whole, whole + "4", whole + "2,nan,1e-3,1.0\n", "step\n1\n"), strict=True):
        file.write_text(text)
    for strange in ("nonsense", "cpt.given.seedx", "cpt.given.seed" + 99 * "9", "cpt.given.seed\u00b2"):
        other = run / "sequences" / strange / "domains" / "0-a"
        other.mkdir(parents=True)
        (other / "curve.csv").write_text("step,loss\n1,2.0\n")
    loaded = read_run(run)
    ((place, (curve,)),) = loaded.curves.items()
    assert place == ("given", 0, DOMAINS[0])
    assert (curve.label, curve.seed, curve.steps, curve.loss) == ("cpt", 3, (1, 3), (3.5, 2.5))
    text = page(write_report(run)).text
    for file in files[1:]:
        assert f"damaged, and left out: {file.relative_to(run)}" in text


# -- what methods and tasks say of themselves -----------------------------------------------------------------------
def noted(run: Path, method: str, **notes: object) -> None:
    for sequence in run.glob(f"sequences/{method}.*"):
        (sequence / "notes.json").write_text(json.dumps(notes))


def test_the_notes_of_methods_stand_where_they_belong(tmp_path: Path) -> None:
    rows = made_up_rows(seeds=(0, 1), domains=("a", "b"), end_tasks=False)
    run = made_up_run(tmp_path / "run", rows)
    before = page(write_report(run)).text
    assert "plug-ins" not in before, "a report knows no method: what is special about one comes from its notes"
    assert "Notes" not in before
    general, line = "general text is read with the plug-ins off", "started from 2 domains of another run <b>"
    noted(run, "cpt", general=general, lines=[line])
    text = page(write_report(run)).text
    assert text.count(f"cpt: {general}.") == 1
    assert text.count(f"cpt: {line}") == 1, "the same note of several seeds is one"
    assert text.index("What ran") < text.index(line) < text.index("What was forgotten, and when")
    assert text.index("LM loss on general text") < text.index(general) < text.index("Learning curves")
    noted(run, "ncl", general=general, lines=[line])
    text = page(write_report(run)).text
    assert f"General{general[7:]}." in text, "what all methods say is said once, without their names"
    assert f"ncl, cpt: {line}" in text
    noted(run, "ncl", general="by the last model")
    text = page(write_report(run)).text
    assert f"ncl: by the last model. cpt: {general}." in text


def test_a_draw_that_took_fewer_rows_than_asked_for_is_said(tmp_path: Path) -> None:
    over_domains = made_up_rows(seeds=(0,), domains=("a", "rte"))
    of_study = study_rows(tasks={"rte": ("accuracy",)}, seeds=(1,), texts=())
    for name, rows in (("run", over_domains), ("study", of_study)):
        short = [
            replace(r, shots_seed=7, short_shots={"belongs": 3, "<b>": 1200}) if r.transfer and r.task == "rte" else r
            for r in rows
        ]
        make = made_up_run if name == "run" else made_up_study
        text = page(write_report(make(tmp_path / name, short))).text
        assert text.count("rte (draw 7): fewer rows than asked for of belongs 3, <b> 1,200") == 1
    enough = made_up_run(tmp_path / "enough", made_up_rows(seeds=(0,), end_tasks=False))
    assert "Few-shot rows" not in page(write_report(enough)).text


def test_folders_may_be_given_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [
        made_up_run(Path(name), made_up_rows(run=name, seeds=(0,), end_tasks=False), curves=False)
        for name in ("a", "b")
    ]
    assert write_report("a") == write_report(Path("a")) == write_report(["a"]) == Path("a/report.html")
    both = [
        write_report(given, "both.html").read_bytes() for given in (["a", "b"], tuple(runs), (str(run) for run in runs))
    ]
    assert both[0] == both[1] == both[2]
    assert write_report({"a": 1, "b": 2}.keys(), "a") == Path("a/report.html")
    for missing in ("none", Path("none"), ["a", "none"], "", "x" * 5000, "a\0b"):
        with pytest.raises(
            EunoeError, match=r"is not a folder|has no scores|is given as|more than 255 bytes|NUL character"
        ):
            write_report(missing, "out.html")
    assert not Path("out.html").exists()


def test_very_many_matrices_and_domains_are_not_drawn_but_named(tmp_path: Path) -> None:
    wide = made_up_rows(domains=[f"d{i}" for i in range(31)], methods=("cpt",), seeds=(0,), end_tasks=False)
    rows = [row for row in wide if len(row.learnt) in (0, 31) or row.task == row.learnt[-1]]
    run = made_up_run(tmp_path / "wide", rows, curves=False)
    read = page(write_report(run))
    assert "1 more are not drawn" in read.text
    assert "matrix.csv" in read.text
    assert not [a for _, a in read.elements if "a score for each domain" in (a.get("aria-label") or "")]


def test_reporting_imports_no_torch() -> None:
    program = "import sys, eunoe.report.page, eunoe.report.terminal; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# -- in a browser -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as opened:
        yield opened


LONG = tuple(f"a_domain_with_a_rather_long_name_{i}" for i in range(9))


@pytest.mark.parametrize("kind", ["four", "long"])
def test_on_a_phone_nothing_overflows_nothing_is_fetched_and_nothing_complains(
    tmp_path: Path, browser: Chromium, kind: str
) -> None:
    rows = (
        made_up_rows()
        if kind == "four"
        else made_up_rows(domains=LONG, methods=("a-method-with-a-long-name", "cpt"), seeds=(0,))
    )
    run = made_up_run(tmp_path / kind, rows)
    made_up_capacity(run)
    path = write_report([run])
    for width in (390, 1200):
        browser.open(path, width, dark=width == 390, phone=width == 390)
        browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate("document.querySelectorAll('svg').length") > 10
        assert browser.requests() == [path.resolve().as_uri()]
        assert browser.complaints() == []


def test_the_browser_check_can_fail(tmp_path: Path, browser: Chromium) -> None:
    wide = tmp_path / "wide.html"
    wide.write_text('<body style="width: 900px"><img src="missing.png"><script>console.log("x")</script></body>')
    browser.open(wide, 390)
    assert browser.evaluate("document.documentElement.scrollWidth") > 390
    assert len(browser.requests()) == 2
    assert browser.complaints()
