"""Multiple-choice rows, and data sets' own layouts; the fixtures are as their official files look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eunoe.data.collate import encode_rows, pad_rows
from eunoe.data.tasks import Example, Task, load_task
from eunoe.errors import EunoeError
from eunoe.progress import say_once
from eunoe.recipe import CorpusSettings, TaskSettings, load_recipe
from eunoe.study import load_study_task
from tests.tiny import tiny_causal_tokenizer, tiny_tokenizer

UNREAD = CorpusSettings(source="never-read.txt")


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(source: str, **more: Any) -> Task:
    return load_task("task", TaskSettings(train=source, test=source, **more), UNREAD)


def refused(source: str, *parts: str, **more: Any) -> None:
    with pytest.raises(EunoeError) as caught:
        read(source, **more)
    for part in parts:
        assert part in str(caught.value), f"{part!r} is missing in: {caught.value}"


# -- columns ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("label", "index"), [(2, 2), ("0", 0), (1.0, 1), ("C", 2), ("b", 1)])
def test_a_list_of_choices_and_the_place_of_the_right_one(tmp_path: Path, label: Any, index: int) -> None:
    row = {"article": "It rained.", "question": "What fell?", "options": ["snow", "rain", "hail"], "answer": label}
    source = jsonl(tmp_path / "rows.jsonl", row, row)
    task = read(source, kind="choice", text="article", pair="question", choices="options", label="answer")
    assert task.train[0] == Example("It rained.", "What fell?", index, ("snow", "rain", "hail"))
    assert (task.kind, task.labels, task.choices) == ("choice", (), 3)


def test_choices_in_columns_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,first,second,label\nIt rained.,wet,dry,0\nSun.,wet,dry,1\n", encoding="utf-8")
    task = read(str(file), kind="choice", choices=["first", "second"])
    assert [(e.choices, e.label, e.pair) for e in task.test] == [(("wet", "dry"), 0, None), (("wet", "dry"), 1, None)]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"label": 3}, ("line 2", "'label' holds 3", "of 3 choices", "0 to 2 or A to C")),
        ({"label": "D"}, ("line 2", "'D'")),
        ({"label": -1}, ("line 2", "-1")),
        ({"label": True}, ("line 2", "True")),
        ({"options": ["x", "y"]}, ("line 2: 2 choices, but", "line 1 has 3", "add or take out choices")),
        ({"options": ["x"], "label": 0}, ("line 2: 1 choice;", "at least 2")),
        ({"options": "x, y"}, ("line 2", "'x, y', not a list of choices", "choices: [A, B, C]")),
        ({"options": ["x", 7, "z"]}, ("line 2", "options[1]", "not text")),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_their_place(
    tmp_path: Path, change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    row = {"text": "context", "options": ["x", "y", "z"], "label": 1}
    refused(jsonl(tmp_path / "rows.jsonl", row, {**row, **change}), *parts, kind="choice", choices="options")


def test_test_rows_need_as_many_choices_as_the_training_rows(tmp_path: Path) -> None:
    row = {"text": "context", "options": ["x", "y", "z"], "label": 1}
    train, test = jsonl(tmp_path / "a.jsonl", row), jsonl(tmp_path / "b.jsonl", {**row, "options": ["x", "y"]})
    with pytest.raises(EunoeError, match=r"b\.jsonl, line 1: 2 choices, but .*a\.jsonl, line 1 has 3"):
        load_task("task", TaskSettings(train=train, test=test, kind="choice", choices="options"), UNREAD)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"kind": "choice"}, "received kind: choice and no choices"),
        ({"choices": "options"}, "received kind: classification and choices"),
        ({"kind": "choice", "choices": "options", "shots": 4}, "shots is read only for classes, and choice has none"),
        ({"layout": "race", "text": "article"}, "text is read only without a layout"),
        ({"layout": "snli", "kind": "regression"}, "kind is read only without a layout"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    refused(jsonl(tmp_path / "rows.jsonl", {"text": "x", "options": ["a", "b"], "label": 0}), part, **change)


# -- layouts ------------------------------------------------------------------------------------------------------------
def test_race_is_a_folder_of_passages(tmp_path: Path) -> None:
    passage = {
        "answers": ["D", "A"], "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
        "questions": ["Who came?", "The day was  _  ."], "article": "One day Tom came.", "id": "high1.txt",
    }  # fmt: skip
    for level in ("high", "middle"):
        (tmp_path / "train" / level).mkdir(parents=True)
        (tmp_path / "train" / level / "1.txt").write_text(json.dumps({**passage, "id": level}), encoding="utf-8")
    task = read(str(tmp_path / "train"), layout="race")
    assert task.train[:2] == (
        Example("One day Tom came.", "Who came?", 3, ("a", "b", "c", "d")),
        Example("One day Tom came.", "The day was  _  .", 0, ("e", "f", "g", "h")),
    )
    assert len(task.train) == 4
    assert len(read(str(tmp_path / "train" / "high"), layout="race").train) == 2
    file = tmp_path / "train" / "high" / "1.txt"
    file.write_text(json.dumps({**passage, "answers": ["D"]}), encoding="utf-8")
    refused(str(tmp_path / "train"), str(file), "2 questions, 2 options and 1 answers", layout="race")
    file.write_text("One day", encoding="utf-8")
    refused(str(tmp_path / "train"), str(file), "not JSON", layout="race")


def test_story_cloze_joins_four_sentences_and_counts_endings_from_1(tmp_path: Path) -> None:
    header = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2"
    file = tmp_path / "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
    story = 'b9,"Rick grew up, alone.",He met men.,He was hit.,He moved.,He is happy.,He joined a gang.'
    file.write_text(f"{header},AnswerRightEnding\n{story},1\n{story},2\n", encoding="utf-8")
    task = read(str(file), layout="story_cloze")
    text = "Rick grew up, alone. He met men. He was hit. He moved."
    assert task.train == tuple(Example(text, None, i, ("He is happy.", "He joined a gang.")) for i in (0, 1))
    file.write_text(f"{header},AnswerRightEnding\n{story},3\n", encoding="utf-8")
    refused(str(file), "line 2", "AnswerRightEnding is '3'", "1 or 2", layout="story_cloze")


@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_snli_leaves_out_rows_without_agreement(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("neutral", "A person on a horse.", "He trains."), ("-", "x", "y"), ("entailment", "Two men.", "Men.")]
    names = ("gold_label", "sentence1", "sentence2", "pairID")
    file = tmp_path / f"snli_1.0_train.{form}"
    if form == "jsonl":
        jsonl(file, *(dict(zip(names, (*row, "1r1n"), strict=True)) for row in rows))
    else:
        file.write_text("\n".join("\t".join(row) for row in [names, *((*row, "1r1n") for row in rows)]) + "\n")
    task = read(str(file), layout="snli")
    assert task.train == (
        Example("A person on a horse.", "He trains.", "neutral"),
        Example("Two men.", "Men.", "entailment"),
    )
    assert "1 rows have no gold label" in " ".join(capsys.readouterr().err.split())


def test_scitail_in_each_of_its_formats(tmp_path: Path) -> None:
    premise, plain = ('Based on the "list".', "It is hot."), ("Heat rises.", "Air moves.")
    tabs = tmp_path / "scitail_1.0_train.tsv"
    tabs.write_text("\t".join((*premise, "neutral")) + "\n" + "\t".join((*plain, "entails")) + "\n", encoding="utf-8")
    lines = jsonl(tmp_path / "scitail_1.0_train.txt",
                  {"gold_label": "neutral", "sentence1": premise[0], "sentence2": premise[1]},
                  {"gold_label": "entailment", "sentence1": plain[0], "sentence2": plain[1]})  # fmt: skip
    graph = tmp_path / "dgem.tsv"
    graph.write_text(tabs.read_text(encoding="utf-8").replace("neutral", "neutral\tx$$$y"), encoding="utf-8")
    for source in (str(tabs), lines, str(graph)):
        task = read(source, layout="scitail")
        assert task.train == (Example(*premise, "neutral"), Example(*plain, "entailment"))
        assert task.labels == ("entailment", "neutral")
    tabs.write_text("a\tb\tcontradicts\n", encoding="utf-8")
    refused(str(tabs), "line 1", "'contradicts'", "entails and neutral", layout="scitail")
    tabs.write_text("a\tb\n", encoding="utf-8")
    refused(str(tabs), "line 1: 2 columns", layout="scitail")


# -- as token ids -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_causal_tokenizer])
def test_a_row_is_a_sequence_for_each_choice_and_the_context_alone_is_cut(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    say_once.cache_clear()
    tokenizer = make()
    texts = [("goal " * 9, "film film"), ("goal " * 9, "music"), ("goal", "film"), ("goal", "music")]
    rows = encode_rows(tokenizer, [(a.strip(), b) for a, b in texts], [1, 0], 8, each=2)
    assert (len(rows), len(rows.inputs), rows.length(0)) == (2, 4, 8)
    film, music = tokenizer.convert_tokens_to_ids(["film", "music"])
    assert [ids["input_ids"].count(film) for ids in rows.inputs] == [2, 0, 1, 0]
    assert [ids["input_ids"].count(music) for ids in rows.inputs] == [0, 1, 0, 1]
    batch = pad_rows(rows, [1, 0])
    assert batch["input_ids"].shape == (4, 8)
    assert batch["labels"].tolist() == [0, 1]
    assert batch["input_ids"][2].tolist() == rows.inputs[0]["input_ids"]
    said = " ".join(capsys.readouterr().err.split())
    assert "the context of 2 of 4 choices is longer than max_length = 8 tokens allows" in said
    with pytest.raises(EunoeError, match=r"the choice 'film .* has 20 tokens.* never cut: raise max_length"):
        encode_rows(tokenizer, [("goal", "film " * 20), ("goal", "x")], [0], 8, each=2)


# -- rows of a study ----------------------------------------------------------------------------------------------------
def test_a_study_takes_so_many_rows_of_a_file_spread_evenly(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", *({"text": f"text {i}", "label": "ab"[i % 2]} for i in range(11)))
    recipe = tmp_path / "study.yaml"
    tasks = [{"name": "t", "train": source, "test": source, "train_rows": 3}]
    recipe.write_text(json.dumps({"name": "s", "tasks": tasks, "systems": {"a": {"name": "finetune"}}}))
    task = load_study_task(load_recipe(str(recipe)).tasks[0])  # type: ignore[union-attr]
    assert [e.text for e in task.train] == ["text 0", "text 5", "text 10"]
    assert len(task.test) == 11
    both = {"name": "s", "tasks": [{**tasks[0], "shots": 4}], "systems": {"a": {"name": "finetune"}}}
    recipe.write_text(json.dumps(both))
    with pytest.raises(EunoeError, match=r"shots and train_rows both say how many rows"):
        load_recipe(str(recipe))
