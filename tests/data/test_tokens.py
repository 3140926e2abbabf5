from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, CTRLTokenizer

from eunoe import stop
from eunoe.data import tokens
from eunoe.data.corpus import load_blocks
from eunoe.data.tokens import around, encode, identity, largest_id
from eunoe.engine import run
from eunoe.errors import Interrupted
from eunoe.recipe import CorpusSettings, load_recipe
from tests.conftest import shared
from tests.tiny import sentences, tiny_causal_tokenizer, tiny_tokenizer
from tests.tiny_run import tiny_recipe


def truncating(folder: Path) -> Path:
    """A tokenizer whose tokenizer.json cuts to 8 tokens and pads to 8, as those of many sentence encoders do."""
    tiny_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text())
    rules["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    rules["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    file.write_text(json.dumps(rules))
    return folder


def use(tokenizer: Any) -> None:
    tokenizer(["the goal", "a"], truncation=True, max_length=3, padding="max_length", split_special_tokens=True)


@pytest.fixture
def text(tmp_path: Path) -> CorpusSettings:
    (tmp_path / "a.txt").write_text("\n".join(sentences(80)), encoding="utf-8")
    return CorpusSettings(source=str(tmp_path / "a.txt"), documents="lines", valid_share=0.3)


@pytest.mark.parametrize("source", ["made", "cases/bert_truncating"])
def test_neither_use_nor_cache_changes_a_texts_identity(
    text: CorpusSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    folder = truncating(tmp_path / "model") if source == "made" else shared(source)
    seen = set()
    for cache in ("one", "one", "two"):  # cold, warm, deleted
        monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / cache))
        for used in (False, True):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            if used:
                use(tokenizer)
            for part in ("train", "valid", "train"):
                blocks = load_blocks(text, tokenizer, 16, part)
                seen.add((part == "valid", blocks.digest, blocks.ids.tobytes()))
    assert len(seen) == 2
    plain = tiny_tokenizer()
    assert max(len(ids) for ids in encode(sentences(9), AutoTokenizer.from_pretrained(folder), "")) > 8
    assert list(encode(sentences(9), AutoTokenizer.from_pretrained(folder), "")) == plain(sentences(9))["input_ids"]


def test_a_run_stopped_again_and_again_resumes_on_such_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time with another state of the cache; what is read is compared before anything is learnt."""
    recipe = load_recipe(tiny_recipe(tmp_path, methods=["ncl"], seeds=[0]), [])
    recipe.domains = [replace(domain, task=None) for domain in recipe.domains]
    truncating(Path(recipe.model.name))
    out = tmp_path / "out"
    run(recipe, out)
    rows = (out / "rows.jsonl").read_bytes()
    warm = os.environ["EUNOE_CACHE"]
    for cache in (warm, warm, str(tmp_path / "new")):  # the last as if it had been deleted
        monkeypatch.setenv("EUNOE_CACHE", cache)
        (out / "finished.json").unlink()
        run(recipe, out)
        assert (out / "rows.jsonl").read_bytes() == rows


def save_causal(folder: Path, end: str) -> Any:
    tokenizer = tiny_causal_tokenizer()
    tokenizer.add_tokens(["<|one|>", "<|two|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": end}))
    return AutoTokenizer.from_pretrained(folder)


def test_the_end_token_is_part_of_the_identity(text: CorpusSettings, tmp_path: Path) -> None:
    one, two = (save_causal(tmp_path / name, f"<|{name}|>") for name in ("one", "two"))
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (tmp_path / "two" / "tokenizer.json").read_bytes()
    differs(text, one, two)


def test_two_models_of_one_vocabulary_each_see_their_own_end_token(text: CorpusSettings) -> None:
    differs(text, *(AutoTokenizer.from_pretrained(shared(f"cases/llama_{name}")) for name in ("endoftext", "im_end")))


def differs(text: CorpusSettings, one: Any, two: Any) -> None:
    first, second = (load_blocks(text, tokenizer, 16, "all") for tokenizer in (one, two))
    assert first.digest != second.digest
    for tokenizer, blocks in ((one, first), (two, second)):
        assert tokenizer.eos_token_id in blocks.ids
    assert not (first.ids == two.eos_token_id).any()


@pytest.mark.parametrize("source", ["made", "cases/llama_bos"])
def test_a_document_that_only_gets_a_begin_token_still_ends(tmp_path: Path, source: str) -> None:
    if source == "made":
        from tokenizers.processors import TemplateProcessing

        tokenizer = tiny_causal_tokenizer()
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", 2)]
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(shared(source))
    begin, end = 2, tokenizer.eos_token_id
    coded = list(encode(["the goal", "a match"], tokenizer, ""))
    assert [(ids[0], ids[-1]) for ids in coded] == [(begin, end)] * 2
    assert all(ids.count(end) == 1 for ids in coded)
    assert around(tiny_tokenizer()) == ([2], [3])
    assert around(tiny_causal_tokenizer()) == ([], [3])


def slow(folder: Path, merges: str, **settings: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["<unk>", "t@@", "h@@", "e", "the", "th@@", "T@@"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text(merges)
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), **settings)


def test_settings_and_files_of_a_slow_tokenizer_are_part_of_its_identity(tmp_path: Path) -> None:
    merges = "#version: 0.2\nt h\nth e</w>\n"
    first = slow(tmp_path / "a", merges)
    assert not first.is_fast
    identities = [
        identity(first),
        identity(slow(tmp_path / "b", "#version: 0.2\nt h\n")),
        identity(slow(tmp_path / "c", merges, do_lower_case=True)),
        identity(slow(tmp_path / "d", merges, eos_token="e")),
    ]
    assert len(set(identities)) == 4
    moved = slow(tmp_path / "elsewhere", merges, model_max_length=9)
    use(moved) if moved.pad_token else moved("the", truncation=True, max_length=1)
    assert identity(moved) == identities[0]


def test_a_long_document_is_tokenised_in_bounded_pieces_with_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "\n".join(sentences(400))
    for tokenizer in (tiny_tokenizer(), tiny_causal_tokenizer()):
        (whole,) = encode([words], tokenizer, "")
        longest = [0]

        class Watched:
            def __call__(self, batch: Any, _of: Any = tokenizer, _longest: list[int] = longest, **more: Any) -> Any:
                _longest[0] = max(_longest[0], sum(map(len, batch)) if isinstance(batch, list) else 0)
                return _of(batch, **more)

            def __getattr__(self, name: str, _of: Any = tokenizer) -> Any:
                return getattr(_of, name)

        with monkeypatch.context() as patch:
            patch.setattr(tokens, "PIECE", 1000)
            pieces = list(encode([words], Watched(), ""))
        assert len(pieces) > 20
        assert longest[0] <= 2 * 1000
        assert [i for ids in pieces for i in ids] == whole


def test_a_signal_stops_between_batches_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    coded = encode(sentences(600), tiny_tokenizer(), "tokenising a.txt")
    next(coded)
    monkeypatch.setattr(stop, "_asked", "SIGTERM")
    with pytest.raises(Interrupted, match=r"SIGTERM while tokenising a\.txt"):
        list(coded)


def test_ids_above_the_vocabularys_length_are_kept_whole(text: CorpusSettings) -> None:
    """A vocabulary may leave ids out: its length then says too little about how large an id is."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rules = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 70_000}, unk_token="[UNK]"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="[UNK]")
    assert largest_id(tokenizer) == 70_000
    assert int(load_blocks(text, tokenizer, 16, "all").ids.max()) == 70_000
