"""Answers to prompts: kept line by line, shown without anything a terminal would obey."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.report.samples import Sample, read_samples, samples_text, write_samples


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
