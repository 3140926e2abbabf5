"""The step in C: the same numbers as torch's kernels, whatever the sizes and threads; and what happens without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam, native

compiler = pytest.mark.skipif(isinstance(native.kernels(), str), reason=str(native.kernels())[:100])


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "/nowhere/cc")
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def moved(sizes: list[int], dtype: torch.dtype, steps: int = 4, **named: object) -> list[torch.Tensor]:
    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(n, dtype=dtype)) for n in sizes]
    optimizer = RecAdam([{"params": ps, "anchor": [torch.randn_like(p) for p in ps]}], 1e-4, t0=2, **named)  # type: ignore[arg-type]
    for _ in range(steps):
        for p in ps:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return [p.detach() for p in ps] + [optimizer.state[p]["exp_avg_sq"] for p in ps]


@compiler
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4), form=st.sampled_from(["released", "paper"]),
    decay=st.sampled_from([0.0, 0.1]), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_c_moves_every_element_as_the_written_formulas_do(
    sizes: list[int], form: str, decay: float, dtype: torch.dtype
) -> None:
    more = {"form": form, "weight_decay": decay, "gamma": 0.3 if form == "paper" else 5000.0}
    in_c, plain = (
        moved(sizes, dtype, **way, **more)
        for way in ({"compiled": True}, {"fused": False})  # type: ignore[arg-type]
    )
    atol = 1e-5 if dtype == torch.float32 else 1e-13
    for ours, formula in zip(in_c, plain, strict=True):
        torch.testing.assert_close(ours, formula, rtol=0, atol=atol)


@compiler
def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PARTS", 10)
    ends = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        ends.append(moved([1000, 3, 77], torch.float64, compiled=True))
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


@compiler
def test_a_nan_in_a_gradient_reaches_the_weight() -> None:
    p = nn.Parameter(torch.ones(9))
    optimizer = RecAdam([{"params": [p], "anchor": [torch.zeros(9)]}], 1e-4, compiled=True)
    p.grad = torch.ones(9)
    p.grad[4] = torch.nan
    optimizer.step()
    assert p.isnan().tolist() == [i == 4 for i in range(9)]


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_step_is_torchs_kernel_and_an_addition() -> None:
    assert isinstance(native.kernels(), str)
    for ours, other in zip(moved([50], torch.float32), moved([50], torch.float32, compiled=False), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.usefixtures("no_compiler")
def test_asking_for_c_without_a_compiler_is_refused_by_its_name() -> None:
    with pytest.raises(EunoeError, match=r"compiled=True.*/nowhere/cc.*compiled=None"):
        moved([5], torch.float32, compiled=True)


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'no such target <here>' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    native.kernels.cache_clear()
    try:
        assert "no such target <here>" in str(native.kernels())
    finally:
        native.kernels.cache_clear()


def test_c_and_the_plain_way_at_once_are_refused() -> None:
    with pytest.raises(EunoeError, match="compiled=True and fused=False"):
        moved([5], torch.float32, fused=False, compiled=True)


@pytest.mark.parametrize("way", [{"compiled": None}, {"compiled": False}, {"fused": False}])
@pytest.mark.parametrize(("first", "then"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_a_weight_that_changes_its_dtype_takes_its_moments_along(
    way: dict[str, bool], first: torch.dtype, then: torch.dtype
) -> None:
    """C reads memory as it is told: moments of another width than the weight's would be read past their end."""
    weight = nn.Parameter(torch.linspace(-1, 1, 999, dtype=first))
    optimizer = RecAdam(
        [{"params": [weight], "anchor": [torch.zeros(999, dtype=then)]}], lr=1e-4, t0=100, k=0.01, **way
    )
    expected = None
    for dtype in (first, then, then):
        weight.data = weight.data.to(dtype)
        weight.grad = torch.full_like(weight, 0.1)
        optimizer.step()
        assert optimizer.state[weight]["exp_avg"].dtype == dtype
        assert weight.isfinite().all()
        assert weight.abs().max() < 1
        expected = weight.detach().clone()
    assert expected is not None


def test_moments_of_another_shape_are_refused() -> None:
    anchor = torch.zeros(3, 2)
    small, large = (
        RecAdam([{"params": [nn.Parameter(torch.ones(n, 2))], "anchor": [anchor]}], lr=1e-4) for n in (5, 9)
    )
    for optimizer in (small, large):
        (weight,) = optimizer.param_groups[0]["params"]
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    with pytest.raises(EunoeError, match=r"moments of shape \(5, 2\) where the weight \(number 0\) has \(9, 2\)"):
        large.load_state_dict(small.state_dict())


def test_a_complex_weight_is_refused() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(EunoeError, match="complex weight"):
        RecAdam([weight], lr=1e-4, anchor=None).step()


def test_a_step_at_rate_zero_moves_nothing_as_adamw() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.ones(4)
    RecAdam([{"params": [weight], "anchor": [torch.ones(4)]}], lr=0.0, form="paper", anneal="constant").step()
    assert weight.tolist() == [0.0] * 4
