from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eunoe import stop
from eunoe.data.collate import (
    LMBatches,
    RowBatches,
    Rows,
    by_length,
    collate_lm,
    encode_rows,
    mask_tokens,
    pad_rows,
)
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError, Interrupted
from tests.tiny import sentences, size, tiny_causal_tokenizer, tiny_tokenizer

MASK, VOCABULARY = 4, 161
SPECIAL = np.array([0, 1, 2, 3, 4])


def blocks(n: int = 24, block: int = 16, seed: int = 0) -> Blocks:
    ids = np.random.default_rng(seed).integers(5, VOCABULARY, (n, block)).astype(np.uint16)
    ids[:, 0], ids[:, -1] = 2, 3
    return Blocks(ids, SPECIAL, "key")


def batches(**change: Any) -> LMBatches:
    plain: dict[str, Any] = {"blocks": blocks(), "objective": "masked", "mask_id": MASK, "vocabulary": VOCABULARY, "batch": 8,
                             "steps": 9, "seed": 1}  # fmt: skip
    return LMBatches(**{**plain, **change})


def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


def asked(micro: list[dict[str, torch.Tensor]], block: int = 16) -> Counter[tuple[Any, ...]]:
    """What is asked for, block by block: (changed block, places, labels), whatever batch it is in."""
    counted: Counter[tuple[Any, ...]] = Counter()
    for batch in micro:
        row = batch["positions"] // block
        for i, ids in enumerate(batch["input_ids"]):
            places, labels = batch["positions"][row == i] % block, batch["labels"][row == i]
            counted[tuple(ids.tolist()), tuple(places.tolist()), tuple(labels.tolist())] += 1
    return counted


# -- masking ------------------------------------------------------------------------------------------------------
def test_of_15_percent_80_become_the_mask_10_a_random_token_10_stay() -> None:
    n = 400_000
    ids = np.full(n, 7, dtype=np.int64)
    changed, chosen = mask_tokens(ids, np.ones(n, bool), MASK, 30_000, 0.15, np.random.default_rng(0))
    assert chosen.mean() == pytest.approx(0.15, abs=0.003)
    within = changed[chosen]
    assert (within == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (within == 7).mean() == pytest.approx(0.1, abs=0.007)
    other = within[(within != MASK) & (within != 7)]
    assert len(other) / len(within) == pytest.approx(0.1, abs=0.007)
    assert len(set(other.tolist())) > 0.7 * min(len(other), 30_000) * (1 - np.exp(-1))
    assert (changed[~chosen] == 7).all()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_specials_are_never_asked_and_something_always_is(tokens: list[int], rate: float, seed: int) -> None:
    ids = np.array(tokens)
    askable = ~np.isin(ids, SPECIAL)
    changed, chosen = mask_tokens(ids, askable, MASK, 21, rate, np.random.default_rng(seed))
    assert not (chosen & ~askable).any()
    assert chosen.any() == askable.any()
    assert (changed[~chosen] == ids[~chosen]).all()


def test_labels_are_the_tokens_that_stood_at_the_asked_positions() -> None:
    text_blocks = blocks()
    batch = collate_lm([(text_blocks.ids[i], (0, 0, i)) for i in range(24)], SPECIAL, "masked", MASK, VOCABULARY, 0.15)
    flat = text_blocks.ids.reshape(-1)
    assert batch["input_ids"].shape == (24, 16)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == flat[batch["positions"]].tolist()
    assert not np.isin(batch["labels"].numpy(), SPECIAL).any()
    untouched = np.setdiff1d(np.arange(flat.size), batch["positions"].numpy())
    assert (batch["input_ids"].reshape(-1).numpy()[untouched] == flat[untouched]).all()


def test_what_a_block_is_asked_does_not_depend_on_its_company() -> None:
    text_blocks = blocks()
    alone = collate_lm([(text_blocks.ids[3], (0, 0, 3))], SPECIAL, "masked", MASK, VOCABULARY, 0.15)
    both = collate_lm([(text_blocks.ids[i], (0, 0, i)) for i in (9, 3)], SPECIAL, "masked", MASK, VOCABULARY, 0.15)
    assert asked([alone]) <= asked([both])


def test_causal_positions_ask_for_the_next_token_within_their_block() -> None:
    text_blocks = blocks(3)
    batch = collate_lm([(row, (0,)) for row in text_blocks.ids], SPECIAL, "causal", -1, VOCABULARY, 0.15)
    assert torch.equal(batch["input_ids"], torch.from_numpy(text_blocks.ids.astype(np.int64)))
    assert batch["positions"].tolist() == [row * 16 + i for row in range(3) for i in range(15)]
    assert batch["labels"].tolist() == text_blocks.ids[:, 1:].astype(int).reshape(-1).tolist()


# -- batches of blocks --------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(st.permutations(range(9)), st.sampled_from(["masked", "causal"]))
def test_a_batch_is_a_function_of_its_step_alone(order: list[int], objective: str) -> None:
    expected = [batches(objective=objective)[step] for step in range(9)]
    again = batches(objective=objective)
    assert all(same(again[step], expected[step]) for step in order)


def test_seed_epoch_and_step_change_what_is_asked() -> None:
    distinct = [asked(batches(seed=seed)[step]) for seed in (1, 2) for step in (0, 1, 3)]
    assert all(a != b for i, a in enumerate(distinct) for b in distinct[:i])


def test_every_epoch_reads_every_block_once_in_another_order() -> None:
    all_batches = batches(objective="causal")
    rows = [tuple(ids.tolist()) for step in range(9) for ids in all_batches[step][0]["input_ids"]]
    epochs = [rows[i : i + 24] for i in (0, 24, 48)]
    every = sorted(tuple(row) for row in blocks().ids.astype(int).tolist())
    assert all(sorted(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_run_on_over_the_end_of_an_epoch() -> None:
    all_batches = batches(objective="causal", blocks=blocks(5), batch=8, steps=5)
    assert [all_batches[step][0]["input_ids"].shape[0] for step in range(5)] == [8] * 5
    rows = Counter(tuple(ids.tolist()) for step in range(5) for ids in all_batches[step][0]["input_ids"])
    assert set(rows.values()) == {8}


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_accumulated_micro_batches_ask_for_the_tokens_of_one_batch(micro: int) -> None:
    whole, parts = batches(), batches(micro_batch=micro)
    for step in range(9):
        assert len(parts[step]) == 8 // micro
        assert all(len(part["input_ids"]) == micro for part in parts[step])
        assert asked(parts[step]) == asked(whole[step])


@pytest.mark.parametrize(("world", "micro"), [(2, None), (2, 4), (4, None), (3, None)])
def test_ranks_part_the_batch_among_them(world: int, micro: int | None) -> None:
    whole = batches()
    for step in range(9):
        shares = [batches(rank=rank, world=world, micro_batch=micro)[step] for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        assert sum((asked(share) for share in shares), Counter()) == asked(whole[step])


def test_reading_a_batch_changes_no_block() -> None:
    text_blocks = blocks()
    before = text_blocks.ids.copy()
    for step in range(3):
        batches(blocks=text_blocks)[step][0]["input_ids"].zero_()
    assert np.array_equal(text_blocks.ids, before)


# -- labelled rows ------------------------------------------------------------------------------------------------
def rows(n: int = 23) -> Rows:
    texts = [(" ".join(["goal"] * (1 + (i * 7) % 11)), None) for i in range(n)]
    return encode_rows(tiny_tokenizer(), texts, list(range(n)), 64)


def read(micro: list[dict[str, torch.Tensor]]) -> list[int]:
    return [label for batch in micro for label in batch["labels"].tolist()]


def test_rows_and_pairs_are_encoded_as_the_tokenizer_does_it() -> None:
    tokenizer = tiny_tokenizer()
    pair = encode_rows(tokenizer, [("the goal", "a match"), ("film", None)], [0, 1], 64)
    assert pair.inputs[0] == {k: tokenizer("the goal", "a match")[k] for k in ("input_ids", "token_type_ids")}
    assert pair.labels.dtype == torch.int64
    assert encode_rows(tokenizer, [("film", None)], [0.5], 64).labels.dtype == torch.float32
    long = encode_rows(tokenizer, [("goal " * 50, "film " * 5), ("x", "y")], [0, 1], 20).inputs[0]
    assert len(long["input_ids"]) == 20
    assert long["token_type_ids"].count(1) == 6
    assert size() == VOCABULARY


def test_padding_is_hidden_and_reaches_the_longest_row_only() -> None:
    encoded = rows()
    batch = pad_rows(encoded, [0, 3, 5])
    lengths = [len(encoded.inputs[i]["input_ids"]) for i in (0, 3, 5)]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["input_ids"][batch["attention_mask"] == 0] == encoded.pad_id).all()
    assert batch["labels"].tolist() == [0, 3, 5]


def test_a_tokenizer_without_padding_is_padded_with_its_end_token() -> None:
    tokenizer = tiny_causal_tokenizer()
    tokenizer.pad_token = None
    encoded = encode_rows(tokenizer, [(text, None) for text in sentences(3)], [0, 1, 0], 64)
    assert encoded.pad_id == tokenizer.eos_token_id
    assert set(pad_rows(encoded, [0, 1, 2])) == {"input_ids", "attention_mask", "labels"}


def test_evaluation_reads_every_row_once_shortest_first() -> None:
    encoded = rows()
    actual = list(by_length(encoded, 4))
    assert sorted(i for chosen, _ in actual for i in chosen) == list(range(23))
    lengths = [length for _, batch in actual for length in batch["attention_mask"].sum(1).tolist()]
    assert lengths == sorted(lengths)
    assert all(batch["labels"].tolist() == chosen for chosen, batch in actual)


@given(st.permutations(range(12)))
def test_a_batch_of_rows_is_a_function_of_its_step_alone(order: list[int]) -> None:
    all_batches = RowBatches(rows(), 8, epochs=4, seed=0)
    expected = {step: all_batches[step] for step in range(12)}
    again = RowBatches(rows(), 8, epochs=4, seed=0)
    assert all(same(again[step], expected[step]) for step in order)


def test_each_epoch_of_rows_is_its_own_pass() -> None:
    all_batches = RowBatches(rows(), 8, epochs=2, seed=0)
    assert len(all_batches) == 6
    assert [len(read(all_batches[step])) for step in range(6)] == [8, 8, 7, 8, 8, 7]
    first, second = (
        [label for step in epoch for label in read(all_batches[step])] for epoch in (range(3), range(3, 6))
    )
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    assert len(RowBatches(rows(), 8, epochs=2, seed=0, steps=5)) == 5


def test_micro_batches_of_rows_hold_the_rows_of_one_batch() -> None:
    whole = RowBatches(rows(), 8, epochs=1, seed=0)
    for step in range(3):
        expected = sorted(read(whole[step]))
        assert sorted(read(RowBatches(rows(), 8, epochs=1, seed=0, micro_batch=2)[step])) == expected


def test_the_shortest_allowed_row_keeps_a_token_of_each_text() -> None:
    for tokenizer, alone, pair in ((tiny_tokenizer(), 3, 5), (tiny_causal_tokenizer(), 1, 2)):
        special = set(tokenizer.all_special_ids)
        for second, least in ((None, alone), ("film music", pair)):
            texts = [("goal match team", second)]
            inputs = encode_rows(tokenizer, texts, [0], least).inputs[0]
            content = [i for i in inputs["input_ids"] if i not in special]
            assert content[0] == tokenizer.convert_tokens_to_ids("goal")
            assert content[1:] == ([tokenizer.convert_tokens_to_ids("film")] if second else [])
            for length in range(least):
                with pytest.raises(EunoeError, match=f"max_length is {length}, .*Set it to {least} or more"):
                    encode_rows(tokenizer, texts, [0], length)


def test_rows_do_not_depend_on_what_the_tokenizer_was_used_for() -> None:
    tokenizer = tiny_tokenizer()
    texts: list[tuple[str, str | None]] = [(text, None) for text in sentences(5)]

    def content(rows: Rows) -> str:
        return repr((rows.inputs, rows.labels.tolist()))

    before = content(encode_rows(tokenizer, texts, [0] * 5, 64))
    tokenizer(["a", "the goal"], truncation=True, padding="max_length", max_length=7, stride=2)
    assert content(encode_rows(tokenizer, texts, [0] * 5, 64)) == before
    others = [encode_rows(tokenizer, texts, [0] * 4 + [1], 64), encode_rows(tokenizer, texts[::-1], [0] * 5, 64),
              encode_rows(tokenizer, texts, [0] * 5, 9)]  # fmt: skip
    assert len({before, *map(content, others)}) == 4


def test_token_types_are_left_out_where_no_table_reads_them() -> None:
    encoded = encode_rows(tiny_tokenizer(), [("the goal", "a match")], [0], 64, token_types=False)
    assert set(encoded.inputs[0]) == {"input_ids"}


def test_a_batch_that_no_memory_holds_is_refused_before_it_is_made() -> None:
    for make in (
        lambda: batches(batch=10**12),
        lambda: batches(blocks=Blocks(np.broadcast_to(np.uint16(5), (8, 10**9)), SPECIAL, "key")),
    ):
        with pytest.raises(EunoeError, match=r"more than 67,108,864 tokens.*Set batch to"):
            make()
    assert len(RowBatches(rows(), 10**12, epochs=1, seed=0)[0][0]["labels"]) == 23  # no more than there are
    long = Rows([{"input_ids": [5] * 2**20}] * 65, torch.zeros(65, dtype=torch.int64), 0)
    for take in (lambda: RowBatches(long, 100, epochs=1, seed=0), lambda: next(by_length(long, 65))):
        with pytest.raises(EunoeError, match=r"a batch of 65 rows of up to 1,048,576 tokens.*Set batch to 64 or less"):
            take()
    assert len(RowBatches(long, 64, epochs=1, seed=0)) == 2


def test_many_rows_are_tokenised_in_parts_and_a_signal_stops_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    texts: list[tuple[str, str | None]] = [(text, text[:9] if i % 2 else None) for i, text in enumerate(sentences(600))]
    encoded = encode_rows(tokenizer, texts, [0] * 600, 20)
    whole = tokenizer([a for a, _ in texts], [b or "" for _, b in texts], truncation="longest_first", max_length=20)
    assert [row["input_ids"] for row in encoded.inputs] == whole["input_ids"]
    assert [row["token_type_ids"] for row in encoded.inputs] == whole["token_type_ids"]
    monkeypatch.setattr(stop, "_asked", "SIGINT")
    with pytest.raises(Interrupted, match="SIGINT while tokenising labelled rows"):
        encode_rows(tokenizer, texts, [0] * 600, 20)
