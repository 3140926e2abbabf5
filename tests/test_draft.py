"""``eunoe new``: the recipe of a folder runs unchanged, and whatever could be read in two ways is said, not guessed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eunoe.cli import main
from eunoe.plan import resolve
from eunoe.recipe import load_recipe
from eunoe.report.schema import read_rows
from tests.tiny import sentences, tiny_folder
from tests.tiny_run import state, write_task, write_text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder ``mine`` below the one in which commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    return Path("mine")


def written(folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The recipe of a folder, and its text on one line with the comment marks taken out."""
    assert main(["new", str(folder), "--out", "new.yaml", *more]) == 0
    text = Path("new.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text), " ".join(text.replace("#", "").split())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["new", *words]) == 2
    err = capsys.readouterr().err
    told = [line for line in err.splitlines() if line.startswith("eunoe: ")]
    assert len(told) == 1
    assert "Traceback" not in err
    return err[err.index("eunoe: ") :]


def rows(path: Path, header: list[str], lines: list[list[str]], separator: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(separator.join(line) for line in [header, *lines]) + "\n", encoding="utf-8")
    return path


def labelled(path: Path, text: str = "sentence", label: str = "sentiment", n: int = 24) -> Path:
    lines = [[f"{('good', 'bad')[i % 2]} {line}", ("good", "bad")[i % 2]] for i, line in enumerate(sentences(n, 5))]
    return rows(path, [text, label], [[a.replace(",", ""), b] for a, b in lines])


def test_a_folder_of_texts_and_rows_runs_unchanged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        write_text(folder / "sport" / f"{i}.txt", seed=i, n=10)
    write_text(folder / "money.txt", seed=50)
    write_text(folder / "general.txt", seed=60)
    labelled(folder / "sport_train.csv")
    labelled(folder / "sport_test.csv")
    write_task(folder / "money.csv", seed=3)
    (folder / "README.md").write_text("These are my texts.")
    recipe, text = written(folder, "--model", str(tiny_folder(Path.cwd())))
    assert [d["name"] for d in recipe["domains"]] == ["money", "sport"]
    money, sport = recipe["domains"]
    assert sport["corpus"] == {"source": "mine/sport", "documents": "file"}
    assert sport["task"] == {
        "train": "mine/sport_train.csv",
        "text": "sentence",
        "label": "sentiment",
        "test": "mine/sport_test.csv",
    }
    assert money["corpus"] == {"source": "mine/money.txt"}
    assert money["task"] == {"train": "mine/money.csv", "test_share": 0.2}
    assert recipe["general"] == {"source": "mine/general.txt"}
    assert "2 classes: bad (12), good (12)" in text
    assert "no test rows: a fifth of the rows is split off to score on" in text
    assert "README.md: taken for words about the data." in text
    assert main(["plan", "new.yaml", "--jobs", "1"]) == 0
    short = ["--training.steps", "2", "--transfer.epochs", "1", "--evaluation.base", "false"]
    assert main(["run", "new.yaml", "--out", "out", "--jobs", "1", *short]) == 0
    scored = {row.task for row in read_rows(Path("out/rows.jsonl")) if row.metric == "accuracy"}
    assert scored == {"sport", "money"}


def test_one_domain_takes_the_labelled_rows_whatever_they_are_called(folder: Path) -> None:
    write_text(folder / "claims.txt", seed=1)
    labelled(folder / "train.csv", "Review Text", "Category")
    labelled(folder / "dev.csv", "Review Text", "Category")
    recipe, text = written(folder)
    (domain,) = recipe["domains"]
    assert domain["task"] == {
        "train": "mine/train.csv",
        "text": "Review Text",
        "label": "Category",
        "test": "mine/dev.csv",
    }
    assert "no test rows: scored on the development rows" in text
    assert "general" not in recipe
    assert "No general text" in text


def test_labelled_rows_alone_are_learnt_from_too(folder: Path) -> None:
    labelled(folder / "reviews.csv", n=60)
    recipe, text = written(folder)
    (domain,) = recipe["domains"]
    assert domain["corpus"] == {"source": "mine/reviews.csv", "column": "sentence"}
    assert domain["task"]["train"] == "mine/reviews.csv"
    assert "the texts of the training rows are what is learnt from" in text


def test_a_subfolder_of_labelled_rows_is_a_domain_beside_others(folder: Path) -> None:
    write_text(folder / "news.txt", seed=1)
    labelled(folder / "reviews" / "train.csv", n=60)
    labelled(folder / "reviews" / "test.csv")
    recipe, _ = written(folder)
    assert [d["name"] for d in recipe["domains"]] == ["news", "reviews"]
    assert recipe["domains"][1]["corpus"] == {"source": "mine/reviews/train.csv", "column": "sentence"}
    assert recipe["domains"][1]["task"]["test"] == "mine/reviews/test.csv"


def test_text_beside_labelled_rows_in_one_subfolder(folder: Path) -> None:
    for i in range(8):
        write_text(folder / "law" / "texts" / f"{i}.md", seed=i, n=10)
    labelled(folder / "law" / "train.csv")
    labelled(folder / "law" / "test.csv")
    recipe, _ = written(folder)
    assert recipe["domains"][0]["corpus"] == {"source": "mine/law", "files": "**/*.md", "documents": "file"}
    assert recipe["domains"][0]["task"]["test"] == "mine/law/test.csv"


def test_held_out_text_with_a_file_of_its_own(folder: Path) -> None:
    for name, seed in (("train", 1), ("valid", 2)):
        lines = [json.dumps({"abstract": line}) for line in sentences(60, seed)]
        (folder / "papers").mkdir(exist_ok=True)
        (folder / "papers" / f"{name}.jsonl").write_text("\n".join(lines))
    recipe, _ = written(folder)
    expected = {"source": "mine/papers/train.jsonl", "column": "abstract", "valid": "mine/papers/valid.jsonl"}
    assert recipe["domains"][0]["corpus"] == expected


def test_lines_are_documents_where_no_blank_line_parts_them(folder: Path) -> None:
    (folder / "tweets.txt").write_text("\n".join(sentences(80, 4)))
    recipe, text = written(folder)
    assert recipe["domains"][0]["corpus"]["documents"] == "lines"
    assert "each line is a document" in text


def test_pairs_and_numbers_are_recognised(folder: Path) -> None:
    write_text(folder / "pairs.txt", seed=1)
    lines = [[a, b, str(i / 7)] for i, (a, b) in enumerate(zip(sentences(24, 1), sentences(24, 2), strict=True))]
    rows(folder / "pairs_train.tsv", ["sentence1", "sentence2", "score"], lines, "\t")
    recipe, text = written(folder)
    task = recipe["domains"][0]["task"]
    assert (task["text"], task["pair"], task["label"], task["kind"]) == (
        "sentence1",
        "sentence2",
        "score",
        "regression",
    )
    assert "holds numbers on a scale, not classes: regression" in text


def test_columns_without_a_usual_name_are_taken_where_only_one_can_be_meant_and_that_is_said(folder: Path) -> None:
    write_text(folder / "odd.txt", seed=1)
    lines = [[str(i), line.replace(",", ""), "ab"[i % 2]] for i, line in enumerate(sentences(24, 1))]
    rows(folder / "odd_train.csv", ["id", "words", "code"], lines)
    recipe, text = written(folder)
    assert recipe["domains"][0]["task"]["text"] == "words"
    assert recipe["domains"][0]["task"]["label"] == "code"
    assert "the text is 'words', the only column that holds sentences" in text
    assert "the label is 'code', the only column with few different values" in text


AMBIGUOUS: dict[str, tuple[list[str], str]] = {
    "two texts": (["title", "body", "label"], "several columns can be the text: 'title', 'body'"),
    "two labels": (["text", "topic", "sentiment"], "several columns can be the label: 'topic', 'sentiment'"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_a_comment(case: str, folder: Path) -> None:
    header, told = AMBIGUOUS[case]
    write_text(folder / "news.txt", seed=1)
    first, second = ([line.replace(",", "") for line in sentences(24, seed)] for seed in (1, 2))
    middle = second if case == "two texts" else ["xy"[i % 2] for i in range(24)]
    rows(folder / "news_train.csv", header, [[first[i], middle[i], "ab"[i % 2]] for i in range(24)])
    recipe, text = written(folder)
    assert "task" not in recipe["domains"][0]
    assert told in text


def test_rows_that_belong_to_no_domain_and_labels_that_do_not_fit_are_comments(folder: Path) -> None:
    write_text(folder / "news.txt", seed=1)
    write_text(folder / "law.txt", seed=2)
    labelled(folder / "other.csv")
    rows(folder / "law_train.csv", ["text", "label"], [["good match", "x"], ["bad match", "y"]] * 9)
    rows(folder / "law_test.csv", ["text", "label"], [["good match", "third"]])
    recipe, text = written(folder)
    assert not any("task" in domain for domain in recipe["domains"])
    assert "other.csv: labelled rows, but of which domain? Name them after one of law, news" in text
    assert "no end task: mine/law_test.csv, line 2: no training row has the label 'third'" in text


def test_what_cannot_be_read_is_left_out_with_its_reason(folder: Path) -> None:
    write_text(folder / "news.txt", seed=1)
    (folder / "latin.txt").write_bytes("Käse und Brot\n\n".encode("latin-1") * 99)
    (folder / "tiny.txt").write_text("one word")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    (folder / "bare.csv").write_text("good match and a good team in season one,good\nbad match,bad\n" * 9)
    (folder / "broken.csv").write_text('text,label\n"never closed,a\n')
    (folder / "eval\n- x: 1.txt").write_text("good match " * 500)
    recipe, text = written(folder)
    assert [d["name"] for d in recipe["domains"]] == ["x_1", "news"]
    assert "latin.txt, line 1: not UTF-8" in text
    assert "tiny: 8 characters are too few to learn from" in text
    assert "photo.jpg: not a text by its ending (.jpg)" in text
    assert "broken.csv, line 2" in text
    assert "bare.csv: its first line does not hold names of columns" in text


@pytest.mark.parametrize(
    ("name", "data", "inside"),
    [("a.docx", b"PK\x03\x04", True), ("a.pdf", b"%PDF-1.7\n", True), ("a.rtf", b"{\\rtf1 good}", True),
     ("a.doc", b"\xd0\xcf\x11\xe0\0\0", True),
     ("a.story", b"a good match", False), ("a", b"a good match", False)],
)  # fmt: skip
def test_documents_of_other_programs_are_to_be_saved_as_text_and_text_to_be_renamed(
    name: str, data: bytes, inside: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Renamed to .txt, a .docx would be learnt as the bytes of a zip archive, or refused for its encoding."""
    write_text(folder / "news.txt", seed=1)
    (folder / name).write_bytes(data)
    _, text = written(folder)
    said = text[text.index(f"{name}: not a text by its ending") :]
    assert ("save it as .txt, a table as .csv" in said) == inside
    assert ("Rename it to .txt if it is plain text" in said) != inside
    Path("r.yaml").write_text(Path("new.yaml").read_text().replace("mine/news.txt", f"mine/{name}"))
    capsys.readouterr()
    assert main(["plan", "r.yaml"]) == 2
    assert ("save it as .txt" in capsys.readouterr().err) == inside


def test_what_a_subfolder_holds_beside_its_text_is_said(folder: Path) -> None:
    for i in range(6):
        write_text(folder / "sport" / f"{i}.txt", seed=i, n=10)
    (folder / "sport" / "scan.pdf").write_bytes(b"%PDF-1.7")
    (folder / "sport" / "deep").mkdir()
    (folder / "sport" / "deep" / "old.docx").write_bytes(b"PK")
    (folder / "sport" / ".hidden").write_text("x")
    _, text = written(folder)
    assert "not read there: 1 .docx, 1 .pdf, 1 hidden" in text


def test_a_subfolder_of_which_nothing_can_be_taken_says_why_once(folder: Path) -> None:
    write_text(folder / "news.txt", seed=1)
    labelled(folder / "claims" / "test.csv")
    for name in ("train", "test"):
        rows(folder / "sport" / f"{name}.csv", ["text;label"], [["good match;good"]] * 9)
    _, text = written(folder)
    assert text.count(", line 1: one column named") == 2
    assert "sport: nothing in it could be taken, for the reasons above." in text
    assert "claims: none of its files could be the training rows: test.csv." in text


def test_a_folder_where_a_recipe_is_wanted_is_told_what_writes_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "run"):
        assert main([command, str(folder)]) == 2
        assert "mine is a folder, and a recipe is a YAML file." in (err := capsys.readouterr().err)
        assert err.endswith("eunoe new mine\n")
    Path("demo").mkdir()
    assert resolve(load_recipe("demo")).sequences, "a folder of that name is not meant"


def test_nothing_is_written_over_and_an_empty_folder_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds nothing to learn from" in refused(capsys, "mine")
    assert "mine/none is not a folder" in refused(capsys, "mine/none")
    write_text(folder / "news.txt", seed=1)
    assert main(["new", "mine"]) == 0
    before = state(Path.cwd())
    assert "mine.yaml exists and is not overwritten" in refused(capsys, "mine")
    write_text(folder / "General_1.txt", seed=1)
    write_text(folder / "general-2.txt", seed=1)
    assert "several general texts: General_1, general_2" in refused(capsys, "mine", "--out", "other.yaml")
    write_text(folder / "law" / "a.txt", seed=1)
    write_text(folder / "law" / "b.txt", seed=2)
    (folder / "General_1.txt").unlink()
    assert "would be read as text" in refused(capsys, "mine", "--out", "mine/law/a.yaml")
    after = state(Path.cwd())
    assert {name: digest for name, digest in after.items() if name in before} == {**before}


def test_two_things_of_one_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(folder / "news one.txt", seed=1)
    write_text(folder / "news+one" / "a.txt", seed=1)
    assert "duplicate domain names: news_one" in refused(capsys, "mine")


def test_a_folder_with_runs_in_it_and_a_dot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(folder / "news.txt", seed=1)
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "runs" / "one" / "recipe.yaml").write_text("name: one")
    monkeypatch.chdir(folder)
    recipe, text = written(Path())
    assert recipe["name"] == "mine"
    assert [d["corpus"]["source"] for d in recipe["domains"]] == ["news.txt"]
    assert "runs: a folder of runs." in text
    Path("new.yaml").unlink()
    assert main(["new", "."]) == 0
    assert Path("mine.yaml").is_file()


def test_the_page_shows_what_is_written_for_its_folder(folder: Path) -> None:
    """docs/own_data.md: the folder it draws, in small."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^  (\S+)(?:  |$)", page.split("```text\n")[1].split("```")[0], re.MULTILINE)
    for name in drawn:
        if name.endswith("/"):
            for i in range(8):
                write_text(folder / name / f"{i}.txt", seed=i)
        elif name.endswith(".csv"):
            labelled(folder / name, label="category", n=400)
        else:
            write_text(folder / name, seed=9, n=300)
    recipe, _ = written(folder)
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    sizes = ("training", "about")  # they follow the length of the texts
    assert {k: v for k, v in recipe.items() if k not in sizes} == {k: v for k, v in shown.items() if k not in sizes}


def test_the_pages_script_prints_the_first_documents(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")
    for i in range(4):
        write_text(folder / "contracts" / f"{i}.txt", seed=i)
    capsys.readouterr()
    exec(compile(page.split("```python\n")[1].split("```")[0], "own_data.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [repr((folder / "contracts" / f"{i}.txt").read_text()[:60]) for i in range(3)]


def test_many_rows_are_few_shots_and_many_domains_are_scored_at_the_ends(folder: Path) -> None:
    for i, name in enumerate(("law", "art", "sea", "sky")):
        write_text(folder / f"{name}.txt", seed=i)
    labelled(folder / "law_train.csv", n=600)
    labelled(folder / "law_test.csv", n=600)
    recipe, text = written(folder)
    task = next(d["task"] for d in recipe["domains"] if d["name"] == "law")
    assert (task["shots"], task["test_rows"]) == ("cpt", 500)
    assert "600 rows to fine-tune on" in text
    assert "shots: cpt draws few of them" in text
    assert recipe["evaluation"] == {"blocks": 64, "matrix": "ends"}
