"""Methods that learn all at once, nothing, or each domain from the base, beside one that learns in turn: in the plan, the proof, and
every table and plot."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from eunoe import checkpoint
from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.methods import METHODS, Entry
from eunoe.recipe import load_recipe
from eunoe.report.answer import answer
from eunoe.report.matrices import matrices
from eunoe.report.page import write_report
from eunoe.report.plots import heat_maps
from eunoe.report.schema import from_line, read_rows, to_line
from eunoe.report.summary import summarize
from eunoe.verify import verify
from tests.contract.made_up import AllWeights, Joint, OfOneDomain, Settings
from tests.report.test_tables import loss, printed
from tests.tiny_run import tiny_settings


class Reference(AllWeights):
    """Learns no stage."""

    @classmethod
    def stages(cls, domains: Sequence[str], settings: Any) -> list[tuple[str, ...]]:
        return []


KINDS = {
    "at-once": Entry(Joint, Settings, "made up"),
    "as-it-is": Entry(Reference, Settings, "made up"),
    "alone": Entry(OfOneDomain, Settings, "made up"),
}


@pytest.fixture(scope="module", autouse=True)
def kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eunoe.progress.console.quiet", True)
        for name, entry in KINDS.items():
            patch.setitem(METHODS, name, entry)
        yield


def recipe(folder: Path, **change: Any) -> Path:
    settings = tiny_settings(folder, seeds=[0], **change)
    settings["training"] |= {"steps": 2}
    settings["transfer"] |= {"epochs": 1}
    settings["evaluation"] |= {"blocks": 4, "matrix": "ends", "base": False}
    settings["domains"][1]["task"] = None
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all kinds in two orders."""
    folder = tmp_path_factory.mktemp("kinds")
    orders = {"given": ["sport", "money"], "turned": ["money", "sport"]}
    run(load_recipe(recipe(folder, methods=["ncl", *KINDS], orders=orders)), folder / "out")
    return folder / "out"


def test_each_kind_is_scored_where_it_has_a_state(made: Path) -> None:
    scored: dict[str, set[tuple[int, str, str]]] = {}
    for row in read_rows(made / "rows.jsonl"):
        if row.order == "given":
            scored.setdefault(row.method, set()).add((len(row.learnt), row.task, row.metric))
    ends = {(n, "sport", metric) for n in (0, 2) for metric in ("accuracy", "macro_f1")}
    texts = {(n, task, "lm_loss") for n in (0, 1, 2) for task in ("sport", "money", "general")} - {
        (1, "money", "lm_loss")
    }
    assert scored["as-it-is"] == {one for one in texts | ends if one[0] == 0}
    assert scored["at-once"] == {one for one in texts | ends if one[0] == 2}
    after_first = {(1, "sport", "accuracy"), (1, "sport", "macro_f1")}
    assert scored["ncl"] == scored["alone"] == {one for one in texts | ends if one[0] > 0} | after_first


def test_a_method_that_learns_nothing_is_scored_in_one_order_as_all_orders_are_the_same(made: Path) -> None:
    orders: dict[str, set[str]] = {}
    for row in read_rows(made / "rows.jsonl"):
        orders.setdefault(row.method, set()).add(row.order)
    assert orders == {"base": {"given", "turned"}, "ncl": {"given", "turned"}, "at-once": {"given", "turned"},
                      "as-it-is": {"given"}, "alone": {"given", "turned"}}  # fmt: skip


def test_every_kind_stands_in_the_summary_and_none_is_unfinished(made: Path) -> None:
    summary = summarize(read_rows(made / "rows.jsonl"))
    assert (summary.unfinished, summary.lacking) == ([], 0)
    lines = {(line.label, line.metric.name): line for line in summary.lines}
    for name, n in {"ncl": 2, "at-once": 2, "as-it-is": 1, "alone": 2}.items():
        for metric in ("lm_loss", "accuracy", "macro_f1"):
            line = lines[name, metric]
            assert line.final is not None, (name, metric)
            assert line.n == n
            assert (line.forgetting is not None) == (name in ("ncl", "alone")), (name, metric)
    for metric in ("lm_loss", "accuracy", "macro_f1"):
        assert lines["alone", metric].forgetting.exact, "each from the base: nothing can move"  # type: ignore[union-attr]
    base = lines["base", "lm_loss"].final
    assert base is not None
    assert base.mean == lines["as-it-is", "lm_loss"].final.mean  # type: ignore[union-attr]
    assert lines["at-once", "lm_loss"].forward is not None
    general = {one.label: one for one in summary.general}
    assert general["as-it-is"].before is not None
    assert general["at-once"].after is not None


def test_the_page_the_terminal_and_the_csv_have_every_kind(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = write_report(made).read_text(encoding="utf-8")
    heading = re.search(r'<p class="sure">(.*?)</p>', page)
    assert heading is not None
    assert "No forgetting rate: at the end" in heading[1]
    assert "at-once (learnt all domains at once) has" in heading[1]
    assert "as-it-is (learns no domain) has" in heading[1]
    for words in ("1 to 2 at once", "learns none"):
        assert f">{words}<" in page, "a row of a matrix"
    assert "nfinished" not in page
    assert main(["report", str(made)]) == 0
    message = capsys.readouterr().out
    for name in KINDS:
        assert len(re.findall(rf"^{name} .*\d", message, re.MULTILINE)) == 4, (
            "LM loss, accuracy, macro-F1, general text"
        )
    with open(made / "matrix.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["learnt"] for line in lines if line["method"] == "as-it-is"} == {"0"}
    assert {
        (line["learnt"], line["after"]) for line in lines if line["method"] == "at-once" and line["order"] == "given"
    } == {("2", "money")}


def test_verify_looks_at_every_domain_of_a_stage_and_says_what_learns_none(made: Path, tmp_path: Path) -> None:
    seen = {(f.sequence, f.domain) for f in verify(made) if not f.broken}
    for name in ("ncl", "at-once", "alone"):
        assert {(f"{name}.given.seed0", "sport"), (f"{name}.given.seed0", "money")} <= seen
    assert ("as-it-is.given.seed0", "reference") in seen
    out = Path(shutil.copytree(made, tmp_path / "out"))
    final = out / "sequences/at-once.given.seed0/domains/0-all/final"
    groups, identity = checkpoint.load(final).groups, checkpoint.identity_of(final)
    groups["probe"]["money"]["states"] = groups["probe"]["money"]["states"] + 1
    shutil.rmtree(final)
    checkpoint.save(final, groups, identity)
    mark = final.parent / "cell.json"
    mark.write_text(
        mark.read_text().replace(*(checkpoint.manifest_digest(f / final.relative_to(out)) for f in (made, out)))
    )
    broken = {(f.sequence, f.domain) for f in verify(out) if f.broken}
    assert ("at-once.given.seed0", "money") in broken
    assert ("at-once.given.seed0", "sport") not in broken


def test_a_run_of_references_alone_is_reported_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = recipe(tmp_path, methods=["as-it-is"]), tmp_path / "out"
    run(load_recipe(file), out)
    assert main(["verify", str(out)]) == 0
    message = capsys.readouterr().out
    assert "it learns no domain" in message
    assert "nothing to prove" in message
    said = answer(summarize(read_rows(out / "rows.jsonl")))
    assert said.startswith(
        "No method of this run learns one domain after another, so nothing could be forgotten. No forgetting rate:"
    )
    for scores in out.glob("sequences/as-it-is*/scores/*"):
        shutil.rmtree(scores)
    (out / "finished.json").unlink()
    with pytest.raises(EunoeError, match="no finished domain to verify"):
        verify(out)


def test_what_each_kind_will_take_is_told_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe(tmp_path, methods=[*KINDS])), "--jobs", "1"]) == 0
    told = capsys.readouterr().out
    steps = {name: re.search(rf"learn: {name} +(\d+) cells?, (\d+) optimizer steps", told) for name in KINDS}
    assert steps["as-it-is"] is None
    for name, cells in (("at-once", "1"), ("alone", "2")):
        found = steps[name]
        assert found is not None
        assert found.groups() == (cells, "4"), "two steps for each of two domains"


# -- worked by hand ------------------------------------------------------------------------------------------------------
HAND = [
    *(loss("base", (), task, value) for task, value in (("a", 4.0), ("b", 5.0), ("c", 6.0))),
    *(loss("none", (), task, value) for task, value in (("a", 4.0), ("b", 5.0), ("c", 6.0))),
    *(replace(loss("joint", ("a", "b", "c"), task, value), at_once=3) for task, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))),
    loss("pairs", ("a",), "a", 2.0),
    *(replace(loss("pairs", ("a", "b", "c"), task, value), at_once=2) for task, value in (("a", 2.5), ("b", 3.0), ("c", 3.5))),
]  # fmt: skip


def test_what_was_learnt_at_once_is_counted_from_the_end_of_its_stage() -> None:
    lines = {line.label: line for line in summarize(HAND).lines}
    assert lines["none"].final.mean == 5.0  # type: ignore[union-attr]
    assert lines["joint"].final.mean == 3.0  # type: ignore[union-attr]
    assert lines["joint"].forward.mean == 2.0  # type: ignore[union-attr]
    assert lines["pairs"].final.mean == 3.0  # type: ignore[union-attr]
    assert lines["pairs"].forgetting.mean == 0.5  # type: ignore[union-attr]
    assert lines["pairs"].per_domain.keys() == {"a"}
    assert lines["pairs"].forward.mean == pytest.approx((2.0 + 2.0 + 2.5) / 3)  # type: ignore[union-attr]
    assert (lines["none"].forgetting, lines["joint"].forgetting) == (None, None)
    assert summarize(HAND).unfinished == []
    assert answer(summarize(HAND)).startswith("pairs learnt 2.167 nats of its domains' language and forgot 0.500.")
    assert "joint (learnt all domains at once) has 3.000 nats" in answer(summarize(HAND))
    assert re.search(r"^joint +3\.000 +- +- +2\.000", printed(HAND), re.MULTILINE)


def test_what_a_reference_or_a_joint_stage_lacks_is_said() -> None:
    lacking = [row for row in HAND if (row.method, row.task) not in (("none", "b"), ("joint", "c"))]
    summary = summarize(lacking)
    assert summary.unfinished == [
        "unfinished: none (order given, seed 0) lacks 1 of 3 scores, first lm_loss of b",
        "unfinished: joint (order given, seed 0) lacks 1 of 3 scores, first lm_loss of c after c",
    ]
    assert summary.lacking == 2


@pytest.mark.parametrize("value", [1, 4, -2, 2.5, True, "2"])
def test_a_row_whose_count_of_domains_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises((EunoeError, ValueError), match="at_once"):
        from_line(
            to_line(HAND[-1]).replace('"at_once": 2', f'"at_once": {value!r}'.replace("'", '"').replace("True", "true"))
        )


def test_a_row_keeps_how_many_domains_were_learnt_at_once() -> None:
    assert from_line(to_line(HAND[-1])) == HAND[-1]
    assert "at_once" not in to_line(HAND[0]), "rows of before keep their bytes"


BACK = [
    *(loss("base", (), task, value) for task, value in (("a", 4.0), ("b", 5.0))),
    loss("ncl", ("a",), "a", 2.0),
    loss("ncl", ("a", "b"), "a", 2.5), loss("ncl", ("a", "b"), "b", 3.0),
    loss("ncl", ("a", "b", "a"), "a", 1.0), loss("ncl", ("a", "b", "a"), "b", 3.25),
    loss("ncl", ("a", "b", "a", "c"), "a", 1.125), loss("ncl", ("a", "b", "a", "c"), "b", 3.5), loss("ncl", ("a", "b", "a", "c"), "c", 6.0),
]  # fmt: skip


def test_a_domain_that_returns_counts_once_and_from_its_last_visit() -> None:
    """Counted from the first visit, learning it again would hide what the others forgot; counted twice, it would weigh double."""
    (line,) = (line for line in summarize(BACK).lines if line.method == "ncl")
    assert {name: estimate.mean for name, estimate in line.per_domain.items()} == {"a": 0.125, "b": 0.5}
    assert line.forgetting is not None
    assert line.forgetting.mean == 0.3125
    assert line.final is not None
    assert line.final.mean == pytest.approx((1.125 + 3.5 + 6.0) / 3)
    assert line.no_rate == ""
    assert summarize(BACK).unfinished == []
    assert summarize([row for row in BACK if (row.learnt, row.task) != (("a", "b", "a"), "a")]).lacking == 1
    until = [row for row in BACK if len(row.learnt) < 4]
    (line,) = (line for line in summarize(until).lines if line.method == "ncl")
    assert list(line.per_domain) == ["b"], "what was learnt last cannot be forgotten yet"


def test_the_map_of_a_domain_that_returns_has_one_column_and_all_rows() -> None:
    (scores,) = matrices(BACK)
    svg = heat_maps([scores], "x")[0]
    words = re.findall(r">([^<>]+)</text>", svg)
    assert [w for w in words if w in ("1 a", "2 b", "3 a", "4 c")] == ["1 a", "2 b", "4 c", "1 a", "2 b", "3 a", "4 c"]
    assert "+0.500" in words, "a moved by so much until it was learnt again"
    assert "+0.125" in words
    assert "\u22121.000" not in words
