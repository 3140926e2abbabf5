from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eunoe.data.shots import draw, evenly, random_split, resplit
from eunoe.data.tasks import load_task
from eunoe.errors import EunoeError
from eunoe.recipe import Recipe, load_recipe
from tests.conftest import shared


def cpt(labels: list[str], seed: int = 2022) -> list[int]:
    """The rows that CPT's rule draws."""
    return draw(labels, "cpt", seed)[0]


LABELS = st.lists(st.sampled_from("abcde"), max_size=60)


def labels_of(name: str, split: str) -> list[str]:
    lines = shared(f"data/{name}/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["label"] for line in lines]


@pytest.mark.parametrize(
    ("name", "r", "train", "test", "moved"), [("acl_arc", 0.9, 1520, 421, 28), ("scierc", 0.7, 2260, 2388, 137)]
)
def test_resplit_reproduces_the_sizes_of_the_release(name: str, r: float, train: int, test: int, moved: int) -> None:
    parts = [labels_of(name, split) for split in ("train", "dev", "test")]
    kept, scored = resplit(*parts, r)
    assert (len(kept), len(scored)) == (train, test)
    assert sorted(kept + scored) == list(range(sum(map(len, parts))))
    left = Counter(parts[0][i] for i in scored if i < len(parts[0]))
    assert set(left.values()) == {moved}
    assert set(left) == set(parts[0])


@pytest.mark.parametrize(
    ("domain", "train", "test", "shots"),
    [("restaurant", 3452, 1120, 32), ("ai", 2260, 2388, 56), ("acl", 1520, 421, 48), ("agnews", 10440, 1160, 32)],
)
def test_cpts_table_makes_the_end_tasks_of_the_paper(
    domain: str, train: int, test: int, shots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's own settings on the real files, laid as its head says (AG News: all 11,600 rows that there are here)."""
    for there, here in (("restaurant", "semeval14_restaurant"), ("ai", "scierc"), ("acl", "acl_arc")):
        shutil.copytree(shared(f"data/{here}"), tmp_path / there)
    (tmp_path / "agnews").mkdir()
    rows = [gzip.decompress(shared(f"data/ag_news/{part}.jsonl.gz").read_bytes()) for part in ("train", "test")]
    (tmp_path / "agnews" / "all.jsonl").write_bytes(b"".join(rows))
    monkeypatch.setenv("CPT_DATA", str(tmp_path))
    recipe = load_recipe("cpt_table1")
    assert isinstance(recipe, Recipe)
    settings = next(d for d in recipe.domains if d.name == domain)
    assert settings.task is not None
    every = load_task(domain, replace(settings.task, shots="all"), settings.corpus)
    drawn = load_task(domain, settings.task, settings.corpus)
    assert (len(every.train), len(every.test), len(drawn.train)) == (train, test, shots)
    assert drawn.test == every.test


def test_the_small_recipe_has_the_ten_orders_of_the_table() -> None:
    small, table = (load_recipe(name, scale="ten_orders") for name in ("cpt_small", "cpt_table1"))
    assert isinstance(small, Recipe)
    assert isinstance(table, Recipe)
    assert len(small.orders) == 10
    assert [[d.replace("news", "agnews") for d in order] for order in small.orders.values()] == list(
        table.orders.values()
    )


def test_cpt_rule_draws_8_a_class_from_real_end_tasks() -> None:
    for name, r, rows in (("acl_arc", 0.9, 48), ("scierc", 0.7, 56)):
        parts = [labels_of(name, split) for split in ("train", "dev", "test")]
        kept = [parts[0][i] for i in resplit(*parts, r)[0]]
        drawn = cpt(kept)
        assert len(drawn) == len(set(drawn)) == rows
        assert set(Counter(kept[i] for i in drawn).values()) == {8}


def test_draws_and_splits_equal_those_of_hugging_face_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"row": list(range(101)), "label": ["x", "y", "z"] * 33 + ["x", "y"]})
    shuffled = rows.shuffle(seed=2022)
    assert cpt(rows["label"]) == shuffled["row"][:32]
    split = rows.train_test_split(test_size=0.1, seed=2021)
    assert random_split(101, 0.1, 2021) == (split["train"]["row"], split["test"]["row"])


def test_cpt_rule_below_five_classes_is_not_stratified() -> None:
    labels = ["common"] * 200 + ["rare"]
    drawn = cpt(labels, seed=2022)
    assert len(drawn) == 32
    assert Counter(labels[i] for i in drawn)["common"] >= 31


def test_cpt_rule_counts_classes_not_rows() -> None:
    assert len(cpt(["a", "b", "c", "d"] * 10)) == 32
    assert len(cpt(["a", "b", "c", "d", "e"] * 10)) == 40


@given(LABELS, st.sampled_from(["cpt", 1, 2, 5]), st.integers(0, 2**31))
def test_a_draw_takes_what_there_is_and_counts_what_is_short(labels: list[str], shots: Any, seed: int) -> None:
    counts, k = Counter(labels), 8 if shots == "cpt" else shots
    drawn, short = draw(labels, shots, seed)
    assert len(set(drawn)) == len(drawn)
    assert drawn == draw(labels, shots, seed)[0]
    if shots == "cpt" and len(counts) < 5:
        assert len(drawn) == min(32, len(labels))
        assert short == ({"(all classes)": len(labels)} if len(labels) < 32 else {})
    else:
        assert Counter(labels[i] for i in drawn) == {label: min(n, k) for label, n in counts.items()}
        assert short == {label: n for label, n in counts.items() if n < k}


def test_a_rare_class_of_13_gives_the_rows_it_has() -> None:
    labels = [f"topic {i}" for i in range(12) for _ in range(40)] + ["rare"] * 4
    drawn, short = draw(labels, "cpt", 2022)
    assert (len(drawn), short) == (12 * 8 + 4, {"rare": 4})
    assert drawn == cpt(labels)
    with pytest.raises(EunoeError, match="8 rows of each class, but 'rare' has 4, and shots_strict is set"):
        draw(labels, "cpt", 2022, strict=True)
    with pytest.raises(EunoeError, match="32 rows in all, but there are only 31"):
        draw(["a"] * 31, "cpt", 2022, strict=True)


def test_a_class_without_any_row_is_counted_too() -> None:
    assert draw(["a", "a"], 2, 0, classes=("a", "gone"))[1] == {"gone": 0}


def test_another_seed_draws_other_rows() -> None:
    labels = ["a", "b"] * 100
    assert draw(labels, 8, 1)[0] != draw(labels, 8, 2)[0]
    assert cpt(labels, 1) != cpt(labels, 2)


def test_resplit_counts_exactly_where_floats_fall_short() -> None:
    labels = ["a", "b"] * 50  # 100 * (1 - 0.9) / 2 is 4.999... in floats
    kept, scored = resplit(labels, [], [], 0.9)
    assert (len(kept), scored) == (90, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])


def test_resplit_refuses_to_empty_a_class() -> None:
    with pytest.raises(EunoeError, match=r"no training row of 'rare' \(3 rows\)"):
        resplit(["common"] * 50 + ["rare"] * 3, [], ["rare"], 0.8)
    for r in (0.0, 1.0, float("nan")):
        with pytest.raises(EunoeError, match="between 0 and 1"):
            resplit(["a"], [], [], r)


@given(st.integers(0, 200), st.floats(0, 1), st.integers(0, 2**31))
def test_random_split_parts_the_rows_and_leaves_no_side_empty(n: int, share: float, seed: int) -> None:
    try:
        train, test = random_split(n, share, seed)
    except EunoeError:
        return
    assert sorted(train + test) == list(range(n))
    assert train
    assert test


def test_random_split_refuses_an_empty_side() -> None:
    with pytest.raises(EunoeError, match="leaves none to train on"):
        random_split(1, 0.5, 0)
    with pytest.raises(EunoeError, match="between 0 and 1"):
        random_split(10, 1.5, 0)


@given(st.integers(0, 500), st.integers(1, 600))
def test_evenly_gives_different_rising_rows_from_end_to_end(n: int, count: int) -> None:
    chosen = evenly(n, count)
    assert len(chosen) == min(n, count)
    assert chosen == sorted(set(chosen))
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, n - 1)
        gaps = [b - a for a, b in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1
