"""Answers to prompts: kept line by line, shown without anything a terminal would obey."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.report.samples import Sample, read_samples, samples_text, write_samples
from eunoe.report.samples_page import samples_section


def sample(
    method: str = "cpt", learnt: tuple[str, ...] = ("a", "b"), reads_as: str | None = None, **change: str
) -> Sample:
    words = {"prompt": "Why?", "answer": "Because.", **change}
    return Sample(method=method, order="given", seed=0, learnt=learnt, reads_as=reads_as, **words)


@given(st.text(), st.text())
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, prompt: str, answer: str) -> None:
    file = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    kept = [sample("base", ()), sample(reads_as="b", prompt=prompt, answer=answer)]
    write_samples(file, kept)
    assert read_samples(file) == kept


def test_no_file_is_no_sample(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "none.jsonl") == []


def test_answers_stand_below_their_prompt_and_say_whose_they_are() -> None:
    text = samples_text([
        sample("base", ()), sample("base", (), prompt="How?", answer="So."), sample("ncl", answer="A\nb\x1b[31m"),
        sample(reads_as="b", answer="C"),
    ])  # fmt: skip
    assert text.splitlines() == [
        "prompt: Why?",
        "  base                                    Because.",
        "  ncl, given, seed 0, after b             A b [31m",
        "  cpt, given, seed 0, after b, read as b  C",
        "prompt: How?",
        "  base  So.",
    ]


def test_the_page_shows_the_first_order_and_seed_and_nothing_of_markup() -> None:
    other = Sample(
        method="cpt", order="given", seed=1, learnt=("a", "b"), reads_as=None, prompt="Why?", answer="Other."
    )
    shown = samples_section("run", [
        sample("base", (), answer="<b>So</b>"), sample("ncl", prompt="Why?"), sample(reads_as="a", answer="C"), other,
        sample("base", (), prompt="<i>", answer="D"),
    ], {("run", "ncl"): "run: ncl"})  # fmt: skip
    assert (
        shown.index("before, as pretrained") < shown.index("run: ncl, after b") < shown.index("cpt, after b, read as a")
    )
    assert "&lt;b&gt;So&lt;/b&gt;" in shown
    assert "&lt;i&gt;" in shown
    assert "Other." not in shown
    assert "Order given, seed 0, one of 2 sequences; samples.jsonl has all." in shown


def test_the_page_says_nothing_where_nothing_was_asked_or_learnt() -> None:
    assert samples_section("run", [], {}) == ""
    assert samples_section("run", [sample("base", ())], {}) == ""
