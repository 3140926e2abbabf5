"""Tagging tasks: column files, rows with lists, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eunoe.data.tasks import Task, load_task
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import answer_scores
from eunoe.evaluate.scores import span_scores, spans
from eunoe.recipe import CorpusSettings, TaskSettings

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def load(folder: Path, text: str = CONLL, test: str | None = None, **more: object) -> Task:
    train = folder / "train.conll"
    train.write_text(text)
    other = folder / "test.conll"
    other.write_text(text if test is None else test)
    settings = TaskSettings(**{"train": str(train), "test": str(other), "layout": "conll", **more})  # type: ignore[arg-type]
    return load_task("ner", settings, CorpusSettings(source=""))


def test_a_column_file_is_words_with_the_last_columns_tags(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert task.kind == "tagging"
    assert task.labels == ("B-MISC", "B-ORG", "B-PER", "I-PER", "O")
    assert [e.tokens for e in task.train] == [("EU", "rejects", "German"), ("Peter", "Blackburn")]
    assert [e.label for e in task.train] == [("B-ORG", "O", "B-MISC"), ("B-PER", "I-PER")]
    assert task.train[0].text == "EU rejects German"


def test_tabs_comments_and_a_tag_that_only_the_test_rows_have(tmp_path: Path) -> None:
    task = load(tmp_path, "# sent_id = 1\nnew york\tB-X\nis\tO\n", test="is\tB-Y\n")
    assert task.train[0].tokens == ("new york", "is")
    assert task.labels == ("B-X", "O")
    assert task.test[0].label == ("B-Y",)


def test_a_hash_inside_a_sentence_is_a_word(tmp_path: Path) -> None:
    assert load(tmp_path, "a O\n# O\nb B-X\n").train[0].tokens == ("a", "#", "b")


def test_a_hash_that_begins_a_sentence_is_a_word_where_it_has_the_columns_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PTB's texts have "# 500 million"; comments of as many words are left out only where they cannot be a row, and counted."""
    said: list[str] = []
    monkeypatch.setattr("eunoe.data.tagging.say", said.append)
    task = load(tmp_path, "the DT O\nday NN O\n\n# # B-X\n500 CD I-X\n\n# id 7 8\n500 CD I-X\n", test="500 CD I-X\n")
    assert [e.tokens for e in task.train] == [("the", "day"), ("#", "500"), ("500",)]
    assert len(said) == 1
    assert "train.conll: 1 lines that begin with '# ' are comments" in said[0]
    task = load(tmp_path, "# first\na O\nb B-X\n\n# second\na O\n\n# O\nb B-X\n", test="a O\n")
    assert [e.tokens for e in task.train] == [("a", "b"), ("a",), ("#", "b")], "a tag that is known"
    task = load(tmp_path, "a\tx\tO\n\n# by them\na\tx\tB-X\n")
    assert [e.tokens for e in task.train] == [("a",), ("a",)], "no tabs as the rows have"


def test_other_spaces_are_of_words_and_a_document_ends_a_sentence(tmp_path: Path) -> None:
    task = load(tmp_path, "10\u00a0000 CD O\na\u3000b  NN O\n-DOCSTART- -X- O\nc NN B-X\n")
    assert [e.tokens for e in task.train] == [("10\u00a0000", "a\u3000b"), ("c",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            CONLL.replace("rejects VBZ B-VP O", "rejects VBZ O"),
            r"train\.conll, line 4: 3 columns \('rejects VBZ O'\), expected 4 columns",
        ),
        ("a O\nb B-X\nword\n", r"line 3: 1 column \('word'\), expected 2 columns as the first row"),
        ("word\n", r"line 1: 1 column \('word'\), expected a word and its tag"),
        ("a\tO\nb\t\n", r"line 2: 2 columns"),
    ],
)
def test_a_ragged_row_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        load(tmp_path, text)


def test_rows_with_lists(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"words": w, "tags": t}) + "\n" for w, t in ((["a", "b"], ["O", "B-X"]), (["c"], ["O"])))
    )
    settings = TaskSettings(train=str(path), test=str(path), kind="tagging", text="words", label="tags")
    task = load_task("ner", settings, CorpusSettings(source=""))
    assert [e.label for e in task.train] == [("O", "B-X"), ("O",)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ["a", "b"], "label": ["O"]}, r"2 words in column 'text' and 1 tags in 'label'"),
        ({"text": "a b", "label": ["O", "O"]}, r"column 'text' holds 'a b', not a list\. .*set layout: conll"),
        ({"text": ["a", ""], "label": ["O", "O"]}, r"column 'text' holds '' among its words or tags"),
        ({"text": ["a"], "label": [None]}, r"column 'label' holds None among its words or tags"),
        ({"text": [], "label": []}, r"the row has no words"),
    ],
)
def test_rows_whose_lists_do_not_fit_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": ["x", "y"], "label": ["O", "B-X"]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(EunoeError, match=rf"rows\.jsonl.*2.*{message}"):
        load_task("ner", TaskSettings(train=str(path), test=str(path), kind="tagging"), CorpusSettings(source=""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 8}, r"shots is read only for classes, and tagging has none"),
        ({"kind": "tagging"}, r"kind is read only without a layout"),
        ({"layout": None, "kind": "tagging", "pair": "b"}, r"pair is read only for texts, and tagging has words"),
    ],
)
def test_settings_that_say_nothing_of_tags_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        load(tmp_path, **change)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O B-X", {(0, 2, "X"), (3, 4, "X")}),
        ("I-X I-X I-Y B-Y", {(0, 2, "X"), (2, 3, "Y"), (3, 4, "Y")}),  # IOB1
        ("B-X I-X E-X S-X O E-Y", {(0, 3, "X"), (3, 4, "X"), (5, 6, "Y")}),  # IOBES, and an end without a beginning
        ("B-X I-Y", {(0, 1, "X"), (1, 2, "Y")}),
        ("O O", set()),
        ("B-X B-X", {(0, 1, "X"), (1, 2, "X")}),
    ],
)
def test_spans_by_hand(tags: str, expected: set[tuple[int, int, str]]) -> None:
    assert spans(tags.split()) == expected


def test_span_f1_by_hand_and_what_is_scored_where_tags_are_no_spans() -> None:
    gold = [["B-X", "I-X", "O", "B-Y"], ["O", "O"]]
    predicted = [["B-X", "I-X", "B-Y", "B-Y"], ["O", "B-X"]]  # 2 right of 4 given, 2 right of 2
    assert span_scores(gold, predicted) == {"span_f1": pytest.approx(2 / 3), "span_precision": 0.5, "span_recall": 1.0}
    assert span_scores([["O"]], [["O"]]) == {"span_f1": 0.0, "span_precision": 0.0, "span_recall": 0.0}
    ner, pos = (Task("t", "tagging", labels, (), (), None) for labels in (("B-X", "B-Y", "I-X", "O"), ("NN", "VB")))
    scored = {s.metric: s.value for s in answer_scores(ner, gold, predicted)}
    assert list(scored) == ["span_f1", "span_precision", "span_recall", "accuracy"]
    assert scored["accuracy"] == pytest.approx(4 / 6)
    assert [s.metric for s in answer_scores(pos, [["NN", "VB"]], [["NN", "NN"]])] == ["accuracy"]
