from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.data import corpus, records
from eunoe.data.corpus import Blocks, Part, check, load_blocks, part_of, place, texts
from eunoe.data.hub import commit
from eunoe.errors import EunoeError
from eunoe.recipe import CorpusSettings
from tests.conftest import shared
from tests.tiny import sentences, tiny_causal_tokenizer, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def text(tmp_path: Path) -> CorpusSettings:
    """200 documents of about 14 tokens each, one a line."""
    (tmp_path / "a.txt").write_text("\n".join(sentences(200)), encoding="utf-8")
    return CorpusSettings(source=str(tmp_path / "a.txt"), documents="lines")


def cached() -> list[str]:
    folder = Path(os.environ["EUNOE_CACHE"]) / "blocks"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def refusal(settings: CorpusSettings) -> str:
    with pytest.raises(EunoeError) as caught:
        load_blocks(settings, TOKENIZER, 32)
    return str(caught.value)


# -- blocks -------------------------------------------------------------------------------------------------------
def test_blocks_are_the_documents_laid_end_to_end_without_the_remainder(text: CorpusSettings) -> None:
    blocks = load_blocks(text, TOKENIZER, 32, "all")
    flat = [i for document in texts(text) for i in TOKENIZER(document)["input_ids"]]
    assert blocks.ids.shape == (len(flat) // 32, 32)
    assert blocks.ids.reshape(-1).tolist() == flat[: len(flat) // 32 * 32]
    assert flat[0] == TOKENIZER.cls_token_id
    assert set(blocks.special.tolist()) == set(TOKENIZER.all_special_ids)


def test_a_tokenizer_without_marks_gets_its_end_token_between_documents(text: CorpusSettings) -> None:
    tokenizer = tiny_causal_tokenizer()
    flat = load_blocks(text, tokenizer, 32, "all").ids.reshape(-1)
    expected = [i for document in texts(text) for i in [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]]
    assert flat.tolist() == expected[: len(flat)]
    assert len(expected) - len(flat) < 32


def test_blocks_are_mapped_from_disk_and_the_second_time_not_tokenised(
    text: CorpusSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_blocks(text, TOKENIZER, 32)
    assert isinstance(first.ids, np.memmap)
    assert not first.ids.flags.writeable
    assert first.ids.dtype == np.uint16
    monkeypatch.setattr(corpus, "encode", None)
    again = load_blocks(text, TOKENIZER, 32)
    assert np.array_equal(first.ids, again.ids)
    assert again.digest == first.digest
    assert first.digest in cached()


def test_the_text_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are pulled one batch at a time while tokens are written, so memory does not grow with the corpus."""
    (tmp_path / "a.txt").write_text("\n".join(sentences(5000)), encoding="utf-8")
    pulled, most = [0], [0]
    real = corpus.text_cell

    def counted(*args: Any) -> str:
        pulled[0] += 1
        return real(*args)

    class Counting:
        def __init__(self) -> None:
            self.written = 0

        def __call__(self, batch: Any, **more: Any) -> Any:
            if isinstance(batch, list):
                most[0] = max(most[0], pulled[0] - self.written)
                self.written += len(batch)
            return TOKENIZER(batch, **more)

        def __getattr__(self, name: str) -> Any:
            return getattr(TOKENIZER, name)

        def __len__(self) -> int:
            return len(TOKENIZER)

    monkeypatch.setattr(corpus, "text_cell", counted)
    load_blocks(CorpusSettings(source=str(tmp_path / "a.txt"), documents="lines"), Counting(), 32, "all")
    assert pulled[0] == 5000
    assert most[0] <= 256


def test_the_cache_key_follows_content_settings_block_and_tokenizer(text: CorpusSettings) -> None:
    base = load_blocks(text, TOKENIZER, 32).digest
    digests = {base, load_blocks(text, TOKENIZER, 16).digest, load_blocks(text, TOKENIZER, 32, "valid").digest}
    for key, value in (("reserve", 10), ("valid_share", 0.2), ("documents", "file"), ("fallback_encoding", "latin-1")):
        digests.add(load_blocks(CorpusSettings(**{**vars(text), key: value}), TOKENIZER, 32).digest)
    digests.add(load_blocks(text, tiny_causal_tokenizer(), 32).digest)
    with open(text.source, "a", encoding="utf-8") as file:
        file.write("\none more line")
    digests.add(load_blocks(text, TOKENIZER, 32).digest)
    assert len(digests) == 9


def test_a_limit_on_lines_is_held_also_where_the_text_is_cached(text: CorpusSettings) -> None:
    first = load_blocks(text, TOKENIZER, 32)
    with pytest.raises(EunoeError, match="line_limit"):
        load_blocks(replace(text, line_limit=2), TOKENIZER, 32)
    again = load_blocks(replace(text, line_limit=2**20), TOKENIZER, 32)
    assert again.digest == first.digest, "a run that was begun without the limit goes on with it"
    assert np.array_equal(again.ids, first.ids)


def test_a_moved_file_keeps_its_cache(text: CorpusSettings, tmp_path: Path) -> None:
    before = load_blocks(text, TOKENIZER, 32).digest
    (tmp_path / "sub").mkdir()
    Path(text.source).rename(tmp_path / "sub" / "a.txt")
    text.source = str(tmp_path / "sub" / "a.txt")
    assert load_blocks(text, TOKENIZER, 32).digest == before


def test_the_column_of_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in sentences(50)))
    settings = CorpusSettings(source=str(tmp_path / "a.jsonl"), column="body")
    assert list(texts(settings)) == sentences(50)
    settings.column = "boby"
    assert "a.jsonl, line 1: unknown column 'boby'. Did you mean body?" in refusal(settings)


# -- parts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("reserve", "share"), [(0, 0.1), (37, 0.1), (37, 0.0), (37, 1.0), (0, 1.0), (199, 0.5)])
def test_the_parts_are_disjoint_and_cover_everything(text: CorpusSettings, reserve: int, share: float) -> None:
    text.reserve, text.valid_share = reserve, share
    parts = [list(part_of(text, part)) for part in ("train", "valid", "reserved")]
    assert sorted(document for part in parts for document in part) == sorted(part_of(text, "all"))
    assert len(parts[2]) == reserve
    assert abs(len(parts[1]) - share * (200 - reserve)) <= 3 * (share * (1 - share) * 200) ** 0.5


@given(st.lists(st.sampled_from("abcdefghij"), min_size=3), st.floats(0, 1), st.integers(0, 3))
def test_repeats_fall_in_one_part_in_any_order(letters: list[str], share: float, reserve: int) -> None:
    settings = CorpusSettings(source="-", valid_share=share, reserve=min(reserve, len(set(letters)) - 1))
    real = corpus.texts
    corpus.texts = lambda *_: iter(letters)  # type: ignore[assignment]
    try:
        parts = [list(part_of(settings, part)) for part in ("train", "valid", "reserved")]
    finally:
        corpus.texts = real
    assert sorted(letter for part in parts for letter in part) == sorted(letters)
    assert all(not set(a) & set(b) for a, b in ((parts[0], parts[1]), (parts[1], parts[2]), (parts[0], parts[2])))
    assert len(set(parts[2])) == settings.reserve


@given(st.text())
def test_a_place_lies_in_the_unit_interval_and_ignores_white_space(words: str) -> None:
    assert 0 <= place(words) < 1
    assert place(f"  {words}\n\n") == place(words)


def test_held_out_text_may_have_a_source_of_its_own(text: CorpusSettings, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("\n".join(sentences(30, seed=9)), encoding="utf-8")
    text.valid = str(tmp_path / "held.txt")
    assert list(part_of(text, "valid")) == sentences(30, seed=9)
    assert list(part_of(text, "train")) == list(part_of(text, "all")) == sentences(200)
    assert load_blocks(text, TOKENIZER, 32, "valid").digest != load_blocks(text, TOKENIZER, 32, "train").digest
    text.reserve = 20
    assert len(list(part_of(text, "reserved"))) == 20
    assert len(list(part_of(text, "train"))) == 180


def test_reserving_everything_is_refused(text: CorpusSettings) -> None:
    text.reserve = 200
    assert "reserve = 200, but there are only 200 different documents" in refusal(text)


# -- text that is too few documents to hold any out by hash --------------------------------------------------------
def novel(folder: Path, sentences_: int = 300, chapters: int = 0) -> CorpusSettings:
    """One document; or a few: short headings around one long chapter."""
    short = [f"chapter {i}" for i in range(chapters)]
    (folder / "novel.txt").write_text("\n\n".join([*short, "\n".join(sentences(sentences_))]), encoding="utf-8")
    return CorpusSettings(source=str(folder / "novel.txt"))


@pytest.mark.parametrize("chapters", [0, 40])
@pytest.mark.parametrize("first", ["train", "valid"])
def test_one_long_document_is_divided_by_position(
    tmp_path: Path, chapters: int, first: Part, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = novel(tmp_path, chapters=chapters)
    load_blocks(settings, TOKENIZER, 32, first)  # whichever is asked for first
    parts = {part: load_blocks(settings, TOKENIZER, 32, part) for part in ("train", "valid", "all")}  # type: ignore[arg-type]
    assert np.array_equal(np.concatenate([parts["train"].ids, parts["valid"].ids]), parts["all"].ids)
    assert len(parts["valid"]) == round(0.05 * len(parts["all"])) > 0
    assert len({blocks.digest for blocks in parts.values()}) == 3
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("blocks are held out instead") == 1
    assert "documents: lines" in printed
    assert "valid" in printed
    if chapters:
        return
    settings.valid_share = 0.5
    halves = [load_blocks(settings, TOKENIZER, 32, part) for part in ("train", "valid")]  # type: ignore[arg-type]
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert halves[1].digest != parts["valid"].digest


def test_a_novel_of_the_shared_cases_trains_and_is_scored() -> None:
    settings = CorpusSettings(source=str(shared("cases/novel.txt")))
    train, valid = load_blocks(settings, TOKENIZER, 16, "train"), load_blocks(settings, TOKENIZER, 16, "valid")
    assert len(train) > 10 * len(valid) > 0


def test_documents_that_can_be_held_out_by_hash_are_never_cut(text: CorpusSettings) -> None:
    flat = [i for document in part_of(text, "valid") for i in TOKENIZER(document)["input_ids"]]
    valid = load_blocks(text, TOKENIZER, 32, "valid").ids.reshape(-1)
    assert valid.tolist() == flat[: len(valid)]


def test_what_cannot_be_divided_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(EunoeError, match=r"fewer than one block of 32.*documents: lines"):
        load_blocks(novel(tmp_path, sentences_=3), TOKENIZER, 32, "valid")
    none = novel(tmp_path)
    none.valid_share = 0.0
    with pytest.raises(
        EunoeError, match=r"the valid part .* has 0 tokens.*valid \(a source of its own\) or valid_share"
    ):
        load_blocks(none, TOKENIZER, 32, "valid")
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "too short"}))
    message = refusal(CorpusSettings(source=str(tmp_path / "one.jsonl")))
    assert "documents: lines" not in message
    assert "valid (a source of its own)" in message


# -- hub datasets --------------------------------------------------------------------------------------------------
A, B = "a" * 40, "b" * 40


def hub_digest(monkeypatch: pytest.MonkeyPatch, sha: Any, revision: str | None = None) -> tuple[str, set[str | None]]:
    """The identity of a hub corpus where the hub answers ``sha``, and the revisions it was read at."""
    read: set[str | None] = set()

    def hub(name: str, config: str | None, split: str, at: str | None) -> Iterator[dict[str, Any]]:
        read.add(at)
        yield from ({"text": line} for line in sentences(50))

    def info(_api: Any, _name: str, revision: str | None = None, **_: Any) -> Any:
        if sha is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=sha)

    monkeypatch.setattr(records, "read_hub", hub)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    commit.cache_clear()
    digest = load_blocks(CorpusSettings(source="hub:owner/name", revision=revision), TOKENIZER, 16).digest
    commit.cache_clear()
    return digest, read


def test_a_hub_dataset_is_named_by_its_commit_and_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = hub_digest(monkeypatch, A)
    assert read == {A}
    other, read = hub_digest(monkeypatch, B)
    assert read == {B}
    assert other != first
    assert hub_digest(monkeypatch, None, A) == (first, set())  # the commit says it all, without a network
    assert hub_digest(monkeypatch, A, "main")[0] == first


def test_without_a_network_the_hubs_cache_names_the_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    unknown, read = hub_digest(monkeypatch, None)
    assert read == {None}
    refs = tmp_path / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(A)
    cached_, read = hub_digest(monkeypatch, None)
    assert read == {A}
    assert cached_ == hub_digest(monkeypatch, A)[0] != unknown


def test_a_folder_in_a_hub_sources_place_is_named_by_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    file = tmp_path / "owner" / "name" / "train.csv"
    collected = []
    for line in ("one", "two", "one"):
        file.write_text(line)
        collected.append(hub_digest(monkeypatch, None)[0])
    assert collected[0] == collected[2] != collected[1]


# -- how much is read ---------------------------------------------------------------------------------------------
def test_tokens_caps_the_train_part_evenly(text: CorpusSettings) -> None:
    every, held_out = load_blocks(text, TOKENIZER, 16), load_blocks(text, TOKENIZER, 16, "valid")
    text.tokens = 330
    few = load_blocks(text, TOKENIZER, 16)
    assert len(few) == 20
    assert np.array_equal(few.ids[0], every.ids[0])
    assert np.array_equal(few.ids[-1], every.ids[-1])
    assert np.array_equal(load_blocks(text, TOKENIZER, 16, "valid").ids, held_out.ids)
    assert few.digest != every.digest
    assert len(cached()) == 2
    text.tokens = 1
    assert len(load_blocks(text, TOKENIZER, 16)) == 1
    text.tokens = 10**9
    assert len(load_blocks(text, TOKENIZER, 16)) == len(every)


@given(st.integers(1, 50), st.integers(1, 60))
def test_take_spreads_blocks_over_the_corpus(n: int, count: int) -> None:
    blocks = Blocks(np.arange(n)[:, None], np.array([0]), "key")
    taken = blocks.take(count).ids[:, 0].tolist()
    assert len(taken) == min(n, count)
    assert all(a < b for a, b in pairwise(taken))
    assert blocks.take(None) is blocks


def test_a_hub_corpus_is_read_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = [0]

    def endless(name: str, config: str | None, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
        assert (name, config, split, revision) == ("owner/name", None, "train", None)
        while True:
            read[0] += 1
            yield {"text": f"the market {read[0]}"}

    monkeypatch.setattr(records, "read_hub", endless)
    blocks = load_blocks(CorpusSettings(source="hub:owner/name", tokens=320, valid_share=0.0), TOKENIZER, 32)
    assert len(blocks) == 10
    assert read[0] <= 512


def test_held_out_text_of_a_hub_corpus_is_its_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(name: str, config: str | None, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
        asked.append(split)
        yield {"text": "x"}

    monkeypatch.setattr(records, "read_hub", hub)
    settings = CorpusSettings(source="hub:o/n", valid="hub:o/n", config="c")
    for part in ("train", "valid"):
        list(part_of(settings, part))
    settings.valid, settings.split = "hub:o/n#test", "unsupervised"
    for part in ("train", "valid"):
        list(part_of(settings, part))
    assert asked == ["train", "validation", "unsupervised", "test"]


# -- errors -------------------------------------------------------------------------------------------------------
def test_a_part_shorter_than_one_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    assert "has 9 tokens, fewer than one block of 32" in refusal(
        CorpusSettings(source=str(tmp_path / "a.txt"), valid_share=0.0)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"column": "text"}, "column is read only where files have columns"),
        ({"config": "x"}, "config is read only for hub: sources"),
        ({"revision": "main"}, "revision is read only for a hub: source"),
        ({"split": "train"}, "split is read only for a hub: source"),
        ({"valid": "{source}", "valid_share": 0.1}, "valid_share is read only without valid"),
        ({"valid_share": 1.5}, "valid_share must lie in [0, 1], received 1.5"),
        ({"reserve": -1}, "reserve must be 0 or more documents, received -1"),
        ({"tokens": 0}, "tokens must be at least 1, received 0"),
    ],
)
def test_a_key_that_nothing_would_read_is_refused_by_name(
    text: CorpusSettings, change: dict[str, Any], words: str
) -> None:
    change = {
        key: value.format(source=text.source) if isinstance(value, str) else value for key, value in change.items()
    }
    assert words in refusal(CorpusSettings(**{**vars(text), **change}))
    assert cached() == []


def test_dots_in_a_file_name_do_not_hide_its_kind(tmp_path: Path) -> None:
    (tmp_path / "news.2004.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(EunoeError, match="column is read only"):
        check(CorpusSettings(source=str(tmp_path / "news.2004.txt"), column="text"))
    with pytest.raises(EunoeError, match=r"documents is read only for plain text"):
        check(CorpusSettings(source=str(tmp_path / "a.jsonl"), documents="file"))
    check(CorpusSettings(source=str(tmp_path / "news.2004.txt"), valid=str(tmp_path / "a.jsonl"), column="text"))
    with pytest.raises(EunoeError, match="split is read only for a hub: source without #SPLIT"):
        check(CorpusSettings(source="hub:o/n#test", split="train"))


def test_a_full_disk_leaves_no_half_written_cache(text: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        message = refusal(text)
    assert "cannot be written: No space left on device" in message
    assert "EUNOE_CACHE" in message
    assert cached() == []
    assert len(load_blocks(text, TOKENIZER, 32)) > 0


def test_a_cache_that_cannot_be_made_says_so(
    text: CorpusSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "file"))
    assert "set EUNOE_CACHE to another folder" in refusal(text)


def test_a_fault_in_the_text_leaves_no_half_written_cache(text: CorpusSettings) -> None:
    with open(text.source, "ab") as file:
        file.write(b"\nbroken \xff\n")
    assert "line 201: not UTF-8" in refusal(text)
    assert cached() == []


def test_blocks_do_not_depend_on_who_tokenised_first(text: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that tokenise the same text at the same time: the later one takes what the earlier one finished."""
    real = corpus.encode
    inside = [False]

    def racing(*given: Any) -> Iterator[list[int]]:
        if not inside[0]:
            inside[0] = True
            load_blocks(text, TOKENIZER, 32, "all")
        yield from real(*given)

    monkeypatch.setattr(corpus, "encode", racing)
    blocks = load_blocks(text, TOKENIZER, 32, "all")
    assert cached() == [blocks.digest]


@pytest.mark.parametrize("how", ["inside the folder", "the same file", "by a link"])
def test_held_out_text_among_the_text_to_learn_is_refused(how: str, tmp_path: Path) -> None:
    """It would be trained on, and its loss be that of known text."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("train", "valid"):
        (folder / f"{name}.txt").write_text("\n".join(sentences(60)), encoding="utf-8")
    (tmp_path / "linked.txt").symlink_to(folder / "valid.txt")
    source, valid = {
        "inside the folder": (folder, folder / "valid.txt"),
        "the same file": (folder / "valid.txt", folder / "valid.txt"),
        "by a link": (folder, tmp_path / "linked.txt"),
    }[how]
    with pytest.raises(EunoeError, match=r"of `valid` would be trained on too.*separate folders"):
        check(CorpusSettings(source=str(source), valid=str(valid)))
    check(CorpusSettings(source=str(folder / "train.txt"), valid=str(valid)))
