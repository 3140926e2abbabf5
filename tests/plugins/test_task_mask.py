from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eunoe.plugins.task_mask import (
    Active,
    TaskMask,
    accumulate,
    anneal,
    clamp,
    compensate,
    free_pairs,
    free_units,
    gate,
    hard,
    pack,
    sparsity,
    unpack,
    within_epoch,
)

masks = st.lists(st.booleans(), min_size=1, max_size=70).map(torch.tensor)
embeddings = st.lists(st.floats(-6, 6), min_size=1, max_size=9).map(lambda x: torch.tensor(x, dtype=torch.float64))


def test_the_gate_is_the_sigmoid_of_s_times_e() -> None:
    e = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
    expected = [1 / (1 + math.exp(2.0)), 0.5, 1 / (1 + math.exp(-1.0))]
    assert gate(e, 2.0).tolist() == pytest.approx(expected)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw imports, which a busy machine takes long for
@given(embeddings)
def test_a_hard_mask_is_the_gate_at_s_max_above_one_half(e: torch.Tensor) -> None:
    clear = (e == 0) | (e.abs() > 1e-12)  # nearer to zero the sigmoid itself rounds to one half
    assert torch.equal(hard(e)[clear], (gate(e, 400.0) > 0.5)[clear])


@given(st.floats(0, 1), st.floats(1, 800))
def test_annealing_rises_from_one_over_s_max_to_s_max(progress: float, s_max: float) -> None:
    assert anneal(0.0, s_max) == pytest.approx(1 / s_max)
    assert anneal(1.0, s_max) == pytest.approx(s_max)
    assert 1 / s_max - 1e-9 <= anneal(progress, s_max) <= s_max + 1e-9
    assert anneal(0.5, s_max) == pytest.approx((1 / s_max + s_max) / 2)


@given(st.integers(1, 40), st.integers(1, 5))
def test_within_an_epoch_progress_starts_anew_as_the_release_counts_batches(batches: int, epochs: int) -> None:
    total = batches * epochs
    actual = [within_epoch(step / total, epochs) for step in range(total)]
    assert actual == pytest.approx([step % batches / batches for step in range(total)], abs=1e-9)
    assert all(0 <= p < 1 for p in actual)


@pytest.mark.parametrize(("epochs", "rounds"), [(0.05, 1), (1.0, 1), (1.4, 1), (1.6, 2), (2.5, 2), (3.0, 3)])
def test_a_part_of_an_epoch_makes_no_round_of_its_own_so_that_masks_end_hard(epochs: float, rounds: int) -> None:
    actual = [within_epoch(step / 600, epochs) for step in range(600)]
    assert sum(p == pytest.approx(0, abs=1e-9) for p in actual) == rounds
    assert actual[-1] > 0.99


def test_sparsity_is_hats_sum_over_all_layers_written_out() -> None:
    masks = [torch.tensor([0.5, 1.0, 0.25]), torch.tensor([0.0, 0.8])]
    nothing = [torch.zeros(3), torch.zeros(2)]
    assert sparsity(masks, nothing).item() == pytest.approx((0.5 + 1.0 + 0.25 + 0.0 + 0.8) / 5)
    taken = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0])]
    assert sparsity(masks, taken).item() == pytest.approx((1.0 + 0.25 + 0.0) / 3)
    assert sparsity(masks, [torch.ones(3), torch.ones(2)]).item() == 0.0


@given(embeddings, st.floats(1 / 400, 2.0))  # beyond, autograd's own 1 - sigmoid has few digits left
@settings(deadline=None)  # the first backward pass of a process is slow
def test_compensation_gives_s_max_times_the_gradient_of_s_equal_one(e: torch.Tensor, s: float) -> None:
    def slope(at: float) -> torch.Tensor:
        row = e.clone().requires_grad_()
        gate(row, at).sum().backward()
        assert row.grad is not None
        return row.grad

    torch.testing.assert_close(compensate(slope(s), e, s), 400 * slope(1.0), rtol=1e-6, atol=1e-12)


def test_compensation_stays_finite_where_cosh_would_not() -> None:
    grad, e = torch.ones(2), torch.tensor([6.0, -6.0])
    assert torch.isfinite(compensate(grad, e, 400.0)).all()
    assert compensate(grad, e, 400.0, clip=2.0)[0] == pytest.approx((math.cosh(2) + 1) / (math.cosh(6) + 1))


def test_clamp_holds_the_embedding_within_its_limit() -> None:
    assert clamp(torch.tensor([-9.0, 1.0, 9.0])).tolist() == [-6.0, 1.0, 6.0]


def test_accumulation_and_blocking_written_out() -> None:
    inner = accumulate(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    outer = torch.tensor([1.0, 0.0])
    assert inner.tolist() == [1.0, 0.0, 1.0]
    assert free_units(inner).tolist() == [0.0, 1.0, 0.0]
    assert free_pairs(outer, inner).tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]


@given(masks)
def test_packed_masks_come_back_whole_in_an_eighth_of_the_room(mask: torch.Tensor) -> None:
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == math.ceil(len(mask) / 8)
    assert torch.equal(unpack(bits, len(mask)), mask)
    assert torch.equal(unpack(pack(torch.stack([mask, ~mask])), len(mask)), torch.stack([mask, ~mask]))


def test_no_rows_are_packed_and_unpacked_as_no_rows() -> None:
    bits = pack(torch.zeros(0, 20, dtype=torch.bool))
    assert bits.shape == (0, 3)
    assert unpack(bits, 20).shape == (0, 20)
    assert TaskMask(20, Active(domains=())).bits.shape == (0, 3)


def test_a_mask_is_soft_below_s_max_and_hard_at_it() -> None:
    active = Active(domains=("a", "b"), domain=1, running=1, s=3.0)
    mask = TaskMask(20, active)
    assert torch.equal(mask(), torch.sigmoid(3.0 * mask.embedding))
    mask().sum().backward()
    assert mask.embedding.grad is not None
    assert mask.embedding.grad.all()
    active.s = 400.0
    assert torch.equal(mask(), (mask.embedding > 0).float())
    assert not mask().requires_grad


def test_an_inactive_plug_in_has_no_mask() -> None:
    with pytest.raises(RuntimeError, match="no domain is active"):
        TaskMask(3, Active(domains=("a",)))()
    with pytest.raises(RuntimeError, match="'a' is neither finished nor running"):
        TaskMask(3, Active(domains=("a", "b"), domain=0, running=1))()


def test_a_finished_domain_is_read_from_its_bits_not_from_its_embedding() -> None:
    active = Active(domains=("a", "b"), domain=0, running=0)
    mask = TaskMask(20, active)
    before = mask()
    mask.keep(0)
    active.finished.append(0)
    with torch.no_grad():
        mask.embedding.neg_()
    for active.running in (None, 1):
        for active.s in (400.0, 2.0):
            assert torch.equal(mask(), before)
    assert torch.equal(mask.taken, before)
    active.domain = 1
    assert torch.equal(mask(), torch.sigmoid(2.0 * mask.embedding))


def test_taken_units_are_the_union_of_finished_domains() -> None:
    mask = TaskMask(30, Active(domains=("a", "b", "c")))
    draw, expected = torch.Generator().manual_seed(0), torch.zeros(30, dtype=torch.bool)
    for domain in (0, 2):
        mask.begin(draw)
        mask.keep(domain)
        expected |= mask.embedding > 0
    assert torch.equal(mask.taken.bool(), expected)
    other = copy.deepcopy(mask)
    other.begin(draw)
    other.keep(1)
    assert torch.equal(mask.taken.bool(), expected)


def test_each_domains_embedding_starts_standard_normal_and_differs_from_the_last_ones() -> None:
    torch.manual_seed(0)
    mask = TaskMask(20000, Active(domains=("a", "b")))
    draw, drawn = torch.Generator().manual_seed(1), [mask.embedding.detach().clone()]
    for _ in "ab":
        mask.begin(draw)
        drawn.append(mask.embedding.detach().clone())
    for row in drawn:
        assert abs(row.mean().item()) < 0.03
        assert abs(row.std().item() - 1) < 0.03
    assert abs(torch.corrcoef(torch.stack(drawn)) - torch.eye(3)).max() < 0.03


def test_a_mask_has_one_embedding_however_many_domains() -> None:
    masks = [TaskMask(20, Active(domains=tuple(map(str, range(n))))) for n in (1, 100)]
    assert [list(mask.state_dict()) for mask in masks] == [["embedding"]] * 2
    assert [mask.embedding.shape for mask in masks] == [(20,)] * 2
    assert masks[1].bits.nbytes == 100 * 3
