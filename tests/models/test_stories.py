"""recipes/convert_stories260k.py: the converted model against the published figures, its tokenizer against run.c's rule."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from eunoe.models.load import load_lm
from eunoe.recipe import ModelSettings
from tests.conftest import shared


@pytest.fixture(scope="module")
def script() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / "recipes" / "convert_stories260k.py"
    spec = importlib.util.spec_from_file_location("convert_stories260k", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("stories") / "stories260k"
    script.convert(shared("data/stories260k"), target)
    return target


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pieces() -> list[tuple[str, float]]:
    lines = shared("data/stories260k/tok512.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["piece"], row["score"]) for row in map(json.loads, lines)]


def reference(text: str, pieces: list[tuple[str, float]]) -> list[int]:
    """As run.c encodes: characters or their bytes, then the best-scoring pair again and again."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    actual = [
        i
        for char in (" " + text if text else "")
        for i in ([ids[char]] if char in ids else [b + 3 for b in char.encode()])
    ]
    while True:
        pairs = [(ids.get(pieces[a][0] + pieces[b][0]), i) for i, (a, b) in enumerate(pairwise(actual))]
        known = [(pieces[joined][1], -i, joined) for joined, i in pairs if joined is not None]
        if not known:
            return [1, *actual]
        _, place, joined = max(known)
        actual[-place : -place + 2] = [joined]


def test_the_folder_loads_as_any_causal_model(folder: Path) -> None:
    lm = load_lm(ModelSettings(name=str(folder)))
    assert lm.objective == "causal"
    assert sum(p.numel() for p in lm.model.parameters()) == 260_032
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_it_continues_a_story_as_the_original_does(folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    start = tokenizer("Once upon a time, there was a dog", return_tensors="pt")
    out = tokenizer.decode(model.generate(**start, max_new_tokens=35, do_sample=False)[0], skip_special_tokens=True)
    assert out.startswith(
        "Once upon a time, there was a dog named Max. Max loved to play with his toys and run around."
    )


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("Once upon a time, there was a little girl named Lily. She loved to play outside in the park.", 0.0, 0.6),
        ("The central bank raised its benchmark interest rate by a quarter point, citing inflation.", 3.7, 4.7),
    ],
)
def test_stories_are_likely_and_financial_news_is_not(
    text: str, low: float, high: float, folder: Path, tokenizer: Any
) -> None:
    model, ids = AutoModelForCausalLM.from_pretrained(folder), tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        assert low < model(input_ids=ids, labels=ids).loss.item() < high


@pytest.mark.parametrize("source", ["bbc_news", "acl_abstracts", "yelp_reviews"])
def test_real_text_is_encoded_as_run_c_does(source: str, tokenizer: Any, pieces: list[tuple[str, float]]) -> None:
    lines = shared(f"data/{source}/valid.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    for text in (json.loads(line)["text"][:400] for line in lines):
        assert tokenizer(text)["input_ids"] == reference(text, pieces)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_text_is_encoded_as_run_c_does(
    data: st.DataObject, tokenizer: Any, pieces: list[tuple[str, float]]
) -> None:
    part = st.one_of(st.sampled_from([piece for piece, _ in pieces[259:]]), st.sampled_from("ab ehinorst\n.,é漢"))
    text = "".join(data.draw(st.lists(part, max_size=20)))
    assert tokenizer(text)["input_ids"] == reference(text, pieces)


def test_pairs_of_each_head_move_apart(script: ModuleType) -> None:
    rows = torch.arange(8.0).reshape(1, 8, 1)
    assert script.half_split(rows, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_file_that_is_cut_short_is_refused(script: ModuleType, tmp_path: Path) -> None:
    data = shared("data/stories260k/stories260K.bin").read_bytes()
    for name, part in (("short.bin", data[:-4]), ("long.bin", data + b"\0\0\0\0")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=name):
            script.model(tmp_path / name)
