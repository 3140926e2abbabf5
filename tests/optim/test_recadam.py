"""RecAdam as an optimizer: its exact special cases, both forms by hand, and what a good torch optimizer must do."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from math import exp, inf
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.optim import RecAdam, make_scheduler
from eunoe.optim.step import numbers

WAYS = (False, True)
SHAPES = ((33, 7), (5,), (), (2, 3, 4))


def weights(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def anchors_of(ps: list[nn.Parameter], seed: int = 9) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [p.detach() + 0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype) for p in ps]


def train(optimizer: torch.optim.Optimizer, ps: list[nn.Parameter], steps: int, seed: int = 1) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in ps:
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        optimizer.step()


def pulled(ps: list[nn.Parameter], lr: float = 1e-4, **named: Any) -> RecAdam:
    return RecAdam([{"params": ps, "anchor": anchors_of(ps)}], lr, **{"t0": 3, "k": 1.0, **named})


def same(ps: list[nn.Parameter], qs: list[nn.Parameter]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))


def distance(ps: list[nn.Parameter], qs: list[Any]) -> float:
    return max((p.double() - q.double()).abs().max().item() for p, q in zip(ps, qs, strict=True))


# -- exact special cases -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("fused", WAYS)
@pytest.mark.parametrize("named", [{"anneal": "constant"}, {"k": inf, "t0": 0}, {"k": 1e9, "t0": 0}])
def test_the_papers_form_without_a_pull_is_torchs_adamw_bit_for_bit(
    named: dict[str, Any], fused: bool, weight_decay: float, dtype: torch.dtype
) -> None:
    ps, qs = weights(dtype), weights(dtype)
    ours = pulled(ps, 1e-3, form="paper", gamma=1.0, weight_decay=weight_decay, fused=fused, **named)
    theirs = torch.optim.AdamW(qs, 1e-3, weight_decay=weight_decay, fused=fused, foreach=False)
    train(ours, ps, 12)
    train(theirs, qs, 12)
    assert same(ps, qs)


@pytest.mark.parametrize("fused", WAYS)
def test_after_t0_an_infinite_k_goes_on_as_adamw_would_bit_for_bit(fused: bool) -> None:
    ps = weights()
    ours = pulled(ps, form="paper", gamma=0.5, k=inf, t0=4, fused=fused)
    train(ours, ps, 4)
    qs = [nn.Parameter(p.detach().clone()) for p in ps]
    theirs = torch.optim.AdamW(qs, 1e-4, weight_decay=0.0, fused=fused, foreach=False)
    train(theirs, qs, 1)  # gives it a state to overwrite
    for p, q in zip(ps, qs, strict=True):
        q.data.copy_(p)
        for name, value in ours.state[p].items():
            theirs.state[q][name].copy_(value)
    train(ours, ps, 6, seed=5)
    train(theirs, qs, 6, seed=5)
    assert same(ps, qs)


def test_the_released_form_without_a_pull_is_fused_adamw_bit_for_bit_where_eps_is_0() -> None:
    ps, qs = weights(), weights()
    train(pulled(ps, 1e-3, anneal="constant", eps=0.0, fused=True), ps, 12)
    train(torch.optim.AdamW(qs, 1e-3, eps=0.0, weight_decay=0.0, fused=True), qs, 12)
    assert same(ps, qs)


def test_the_released_form_adds_eps_to_the_uncorrected_root() -> None:
    p, q = nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Parameter(torch.zeros(1, dtype=torch.float64))
    p.grad = q.grad = torch.full((1,), 1e-3, dtype=torch.float64)
    RecAdam([p], 1.0, eps=1e-3, form="released", anchor=None).step()
    RecAdam([q], 1.0, eps=1e-3, form="paper", anchor=None).step()
    root = 0.001**0.5  # of 1 - beta2
    assert p.item() == pytest.approx(-1e-3 * root / (1e-3 * root + 1e-3))
    assert q.item() == pytest.approx(-1e-3 / (1e-3 + 1e-3))


def test_k_0_halves_lambda_at_every_step() -> None:
    group = pulled(weights(), k=0.0, weight=0.8).param_groups[0]
    assert [numbers(group, t, anchored=True).lam for t in (1, 3, 1000)] == [0.4] * 3


def test_weight_0_and_no_anchor_are_plain_adam_at_the_full_rate() -> None:
    ps, qs = weights(), weights()
    train(pulled(ps, weight=0.0), ps, 5)
    train(RecAdam(qs, 1e-4, anchor=None), qs, 5)
    assert same(ps, qs)
    assert distance(ps, weights()) > 0


# -- the formulas ------------------------------------------------------------------------------------------------------
def by_hand(form: str, p: float, a: float, gs: list[float], correct: bool) -> float:
    """Both forms in plain floats, straight from the paper's Algorithm 1 and from the release."""
    lr, b1, b2, eps, wd, gamma, k, t0, w, m, v = 0.01, 0.8, 0.9, 1e-3, 0.1, 20.0, 0.7, 3.0, 0.9, 0.0, 0.0
    if form == "paper":
        gamma = 0.2
    for t, g in enumerate(gs, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        c1, c2 = (1 - b1**t, 1 - b2**t) if correct else (1.0, 1.0)
        lam = w / (1 + exp(-k * (t - t0)))
        if form == "released":
            p = p - lr * c2**0.5 / c1 * lam * m / (v**0.5 + eps)
            p = p - lr * (w - lam) * gamma * (p - a)
            p = p - lr * wd * p
        else:
            p = p - lr * lam * (m / c1) / ((v / c2) ** 0.5 + eps) - (w - lam) * gamma * (p - a) - lr * wd * p
    return p


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["released", "paper"]),
    st.booleans(),
    st.booleans(),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.lists(st.floats(-3, 3), min_size=1, max_size=8),
)
def test_each_form_does_what_its_formula_says(
    form: str, fused: bool, correct: bool, start: float, anchor: float, gs: list[float]
) -> None:
    p = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = RecAdam(
        [{"params": [p], "anchor": [torch.tensor([anchor], dtype=torch.float64)]}],
        0.01,
        betas=(0.8, 0.9),
        eps=1e-3,
        weight_decay=0.1,
        gamma=20.0 if form == "released" else 0.2,
        k=0.7,
        t0=3,
        weight=0.9,
        correct_bias=correct,
        form=form,
        fused=fused,
    )
    for g in gs:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
    assert p.item() == pytest.approx(by_hand(form, start, anchor, gs, correct), abs=1e-12)


def test_in_the_papers_form_the_schedule_without_the_rate_scales_the_pull() -> None:
    p, a = nn.Parameter(torch.ones(1, dtype=torch.float64)), torch.zeros(1, dtype=torch.float64)
    optimizer = RecAdam([{"params": [p], "anchor": [a]}], 1e-9, form="paper", gamma=0.4, k=inf, t0=99)
    scheduler = make_scheduler(optimizer, "linear", 4)
    expected = 1.0
    for eta in (1.0, 0.75, 0.5, 0.25):
        p.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        expected *= 1 - eta * 0.4
    assert p.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fused", WAYS)
@pytest.mark.parametrize("lr", [1e-5, 3e-4])  # lr * gamma 0.05 and, overshooting but converging, 1.5
def test_while_lambda_is_0_any_start_converges_to_the_anchor(lr: float, fused: bool) -> None:
    ps = weights()
    optimizer = pulled(ps, lr, k=inf, t0=10**6, fused=fused)
    anchor = anchors_of(ps)
    train(optimizer, ps, 600)
    assert distance(ps, anchor) < 1e-12


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("way", [{"fused": True}, {"compiled": False}])
def test_the_ways_agree_to_rounding(form: str, way: dict[str, bool]) -> None:
    named: dict[str, Any] = {"form": form, "gamma": 5000.0 if form == "released" else 0.5, "weight_decay": 0.1}
    ps, qs = weights(), weights()
    train(pulled(ps, **way, **named), ps, 10)
    train(pulled(qs, fused=False, **named), qs, 10)
    assert distance(ps, qs) < 1e-13


# -- a good torch optimizer --------------------------------------------------------------------------------------------
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = RecAdam([p], 0.1, anchor=None)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2.0
    assert (p < 1).all()


def test_a_layer_unfrozen_later_starts_at_its_own_step_1() -> None:
    early, late = weights(), weights(seed=3)
    optimizer = pulled(early)
    train(optimizer, early, 5)
    optimizer.add_param_group({"params": late, "anchor": anchors_of(late)})
    train(optimizer, late, 2)
    alone = weights(seed=3)
    train(pulled(alone), alone, 2)
    assert same(late, alone)


def test_lambda_stands_still_while_a_tensor_has_no_gradient() -> None:
    ps, qs = weights(), weights()
    one, other = pulled(ps), pulled(qs)
    train(one, ps, 2)
    for p in ps:
        p.grad = None
    one.step()
    train(other, qs, 2)
    assert same(ps, qs)
    train(one, ps, 2, seed=4)
    train(other, qs, 2, seed=4)
    assert same(ps, qs)


def test_tensors_with_different_counters_get_their_own_lambda() -> None:
    ps, qs = weights(), weights()
    together, alone = pulled(ps), pulled(qs[1:])
    ps[0].grad = torch.ones_like(ps[0])
    together.step()
    for p in ps:
        p.grad = torch.ones_like(p)
    for q in qs[1:]:
        q.grad = torch.ones_like(q)
    alone.param_groups[0]["anchor"] = anchors_of(weights())[1:]
    together.step()
    alone.step()
    assert same(ps[1:], qs[1:])


def test_frozen_weights_are_left_alone() -> None:
    ps = weights()
    before = ps[0].detach().clone()
    ps[0].requires_grad_(False)
    optimizer = pulled(ps)
    sum((p**2).sum() for p in ps[1:]).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert torch.equal(ps[0], before)
    assert ps[0] not in optimizer.state


def test_a_tied_weight_listed_twice_moves_once() -> None:
    ps, qs = weights()[:2], weights()[:2]
    a = anchors_of(ps)
    with pytest.warns(UserWarning, match=r"duplicate parameters \(repeats: 1\)") as caught:
        twice = RecAdam([{"params": [ps[0], ps[1], ps[0]], "anchor": [a[0], a[1], a[0]]}], 1e-4)
    assert caught[0].filename == __file__
    once = RecAdam([{"params": qs, "anchor": a}], 1e-4)
    train(twice, ps, 3)
    train(once, qs, 3)
    assert same(ps, qs)
    assert len(twice.param_groups[0]["anchor"]) == 2


def test_only_the_old_rows_of_a_longer_embedding_are_pulled() -> None:
    old, whole = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(6, 3))
    anchor = torch.zeros(4, 3)
    new = nn.Parameter(torch.ones(2, 3))
    for fused in WAYS:
        one = RecAdam([{"params": [whole], "anchor": [anchor]}], 1e-4, fused=fused)
        other = RecAdam([{"params": [old], "anchor": [anchor]}, {"params": [new], "anchor": None}], 1e-4, fused=fused)
        for _ in range(3):
            whole.grad, old.grad, new.grad = torch.ones(6, 3), torch.ones(4, 3), torch.ones(2, 3)
            one.step()
            other.step()
        assert torch.equal(whole[:4], old)
        assert torch.equal(whole[4:], new)
    assert old.max() < 0.5 < new.min()


@pytest.mark.parametrize("fused", [None, False])
def test_weights_that_are_not_contiguous_move_like_contiguous_ones(fused: bool | None) -> None:
    p, q = nn.Parameter(torch.randn(5, 7, dtype=torch.float64).t()), nn.Parameter(torch.zeros(7, 5).double())
    q.data.copy_(p.data)
    ps, qs = [p], [q]
    assert not p.is_contiguous()
    train(pulled(ps, fused=fused), ps, 5)
    train(pulled(qs, fused=False), qs, 5)
    assert distance(ps, qs) < 1e-15


@pytest.mark.parametrize("fused", WAYS)
def test_gradients_and_anchors_of_another_layout_are_read_right(fused: bool) -> None:
    ps, qs = [nn.Parameter(torch.ones(3, 5))], [nn.Parameter(torch.ones(3, 5))]
    a = torch.arange(15.0).reshape(5, 3).t()
    one = RecAdam([{"params": ps, "anchor": [a]}], 1e-4, fused=fused)
    other = RecAdam([{"params": qs, "anchor": [a.contiguous()]}], 1e-4, fused=fused)
    ps[0].grad, qs[0].grad = a.clone().t().contiguous().t(), a.contiguous()
    one.step()
    other.step()
    assert same(ps, qs)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float16, 5e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-6)])
def test_lower_precisions_follow_float64(dtype: torch.dtype, off: float) -> None:
    ps = weights(dtype)
    qs = [nn.Parameter(p.detach().double()) for p in ps]
    anchor = [a.to(dtype) for a in anchors_of(ps)]
    for optimizer, moved in (
        (RecAdam([{"params": ps, "anchor": anchor}], 1e-4, t0=3), ps),
        (RecAdam([{"params": qs, "anchor": [a.double() for a in anchor]}], 1e-4, t0=3), qs),
    ):
        g = torch.Generator().manual_seed(1)
        for _ in range(20):
            for p in moved:
                p.grad = torch.randn(p.shape, generator=g).to(dtype).to(p.dtype)
            optimizer.step()
    assert distance(ps, qs) < off
    assert distance(ps, weights(dtype)) > off


def test_tiny_float16_gradients_do_not_blow_up() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    optimizer = RecAdam([p], 1e-2, eps=1e-12, anchor=None)
    for _ in range(3):
        p.grad = torch.full_like(p, 1e-5)  # its square is 0 in float16
        optimizer.step()
    assert p.tolist() == pytest.approx([-0.03] * 3, rel=0.01)


@pytest.mark.parametrize("anchor_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("fused", WAYS)
def test_an_anchor_of_another_dtype_pulls_to_its_values(anchor_dtype: torch.dtype, fused: bool) -> None:
    p = nn.Parameter(torch.ones(300))
    anchor = torch.linspace(-1, 1, 300).to(anchor_dtype)
    optimizer = RecAdam([{"params": [p], "anchor": [anchor]}], 1e-4, k=inf, t0=999, fused=fused)
    for _ in range(60):
        p.grad = torch.ones(300)
        optimizer.step()
    torch.testing.assert_close(p.detach(), anchor.float(), rtol=1e-6, atol=1e-6)


def test_a_gradient_scaler_skips_the_step_of_an_infinite_gradient() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = RecAdam([p], 0.1, anchor=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value, moved in ((inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((p * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool((p != 1).all()) is moved


def test_a_rate_may_be_a_tensor() -> None:
    ps, qs = weights(), weights()
    train(pulled(ps, torch.tensor(1e-4, dtype=torch.float64)), ps, 2)  # type: ignore[arg-type]
    train(pulled(qs, 1e-4), qs, 2)
    assert same(ps, qs)


# -- state -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [None, False])
def test_a_run_saved_and_resumed_ends_in_the_same_bits(fused: bool | None, dtype: torch.dtype) -> None:
    whole, first = weights(dtype), weights(dtype)
    undisturbed, begun = pulled(whole, fused=fused), pulled(first, fused=fused)
    train(undisturbed, whole, 4)
    train(undisturbed, whole, 4, seed=2)
    train(begun, first, 4)
    file = io.BytesIO()
    torch.save([begun.state_dict(), first], file)
    file.seek(0)
    state, second = torch.load(file, weights_only=True)
    second = [nn.Parameter(p.detach()) for p in second]
    resumed = RecAdam([{"params": second, "anchor": anchors_of(weights(dtype))}], 1e-4, t0=3, k=1.0, fused=fused)
    resumed.load_state_dict(state)
    train(resumed, second, 4, seed=2)
    assert same(whole, second)


def test_the_state_is_two_moments_and_plain_values_and_no_anchor() -> None:
    ps = weights()
    optimizer = pulled(ps)
    train(optimizer, ps, 1)
    state = optimizer.state_dict()
    sizes = [v.numel() for s in state["state"].values() for v in s.values()]
    assert sum(sizes) == 2 * sum(p.numel() for p in ps) + len(ps)
    for group in state["param_groups"]:
        for value in group.values():
            assert isinstance(value, str | int | float | tuple | list | None)


def test_a_state_of_another_anchor_is_refused_and_changes_nothing() -> None:
    ps, qs = weights(), weights()
    saved = pulled(ps)
    train(saved, ps, 1)
    state = saved.state_dict()
    other = RecAdam([{"params": qs, "anchor": anchors_of(qs, seed=77)}], 3e-4)
    with pytest.raises(
        EunoeError, match=r"another anchor: group 0 has anchor [0-9a-f]{12} here and anchor [0-9a-f]{12}"
    ):
        other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 3e-4
    with pytest.raises(EunoeError, match="no anchor here"):
        RecAdam(qs, 1e-4, anchor=None).load_state_dict(state)


def test_a_copy_goes_on_by_itself() -> None:
    ps = weights()
    optimizer = pulled(ps, fused=False)
    train(optimizer, ps, 2)
    twin = copy.deepcopy(optimizer)
    qs = twin.param_groups[0]["params"]
    train(optimizer, ps, 2, seed=3)
    train(twin, qs, 2, seed=3)
    assert same(ps, qs)
    assert twin.fused is False


# -- what is refused ---------------------------------------------------------------------------------------------------
def misfit(anchor: list[Tensor], shape: tuple[int, ...] = (4, 3)) -> None:
    RecAdam([{"params": [("encoder.weight", nn.Parameter(torch.ones(shape)))], "anchor": anchor}], 1e-5)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: pulled(weights(), 1e-3),
        r"lr 0.001 \* gamma 5000 \* weight 1 = 5 is above 2.*lr <= 0.0004 or gamma <= 2000",
    ),
    (lambda: pulled(weights(), 2e-5, form="paper"), r"gamma 5000 \* weight 1 = 5000 is above 2.*is gamma 0.1 here"),
    (lambda: pulled(weights(), anneal="sigmod"), "unknown annealing 'sigmod'. Did you mean sigmoid"),
    (lambda: pulled(weights(), form="release"), "unknown form of RecAdam 'release'. Did you mean released"),
    (lambda: pulled(weights(), gamma=-1.0), "gamma is -1.0"),
    (lambda: pulled(weights(), k=float("nan")), "k is nan"),
    (lambda: pulled(weights(), k="fast"), "k is 'fast'; RecAdam needs a number >= 0"),
    (lambda: pulled(weights(), gamma=None), "gamma is None; RecAdam needs a finite number >= 0"),
    (lambda: pulled(weights(), inf), "lr is inf; RecAdam needs a finite number"),
    (lambda: pulled(weights(), t0=0.25), r"t0 is 0.25; RecAdam takes it in steps.*steps_of\(0.25, STEPS\)"),
    (lambda: pulled(weights(), betas=(0.9, 1.0)), r"betas are \(0.9, 1.0\)"),
    (lambda: pulled(weights(), betas=0.9), "betas are 0.9; RecAdam needs two numbers"),
    (lambda: pulled(weights(), betas=(0.9, 0.99, 0.999)), "RecAdam needs two numbers"),
    (lambda: misfit([torch.ones(4, 2)]), r"weight encoder.weight has shape \(4, 2\); the weight has \(4, 3\)"),
    (lambda: misfit([torch.ones(5, 3)]), r"weight encoder.weight has shape \(5, 3\)"),
    (lambda: misfit([torch.ones(())]), r"weight encoder.weight has shape \(\)"),
    (lambda: misfit([]), "1 weights and 0 anchors"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_mistake_is_refused_with_the_numbers_and_the_way_out(make: Callable[[], object], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        make()


def test_a_rate_that_a_scheduler_raises_too_far_is_refused_at_that_step() -> None:
    ps = weights()
    optimizer = pulled(ps, 1e-5)
    train(optimizer, ps, 1)
    optimizer.param_groups[0]["lr"] = 1.0
    with pytest.raises(EunoeError, match="is above 2"):
        train(optimizer, ps, 1)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"k": -1}, "k is -1; RecAdam needs a number >= 0"),
    ({"k": "inf"}, "k is 'inf'"),
    ({"lr": -1e-5}, "lr is -1e-05"),
    ({"lr": float("nan")}, "lr is nan; RecAdam needs a finite number >= 0"),
    ({"lr": torch.tensor(-1.0)}, "lr is tensor"),
    ({"lr": 1.0}, "is above 2"),
    ({"t0": 0.25}, "RecAdam takes it in steps"),
    ({"anneal": "foo"}, "unknown annealing 'foo'"),
    ({"form": "foo"}, "unknown form of RecAdam 'foo'"),
    ({"betas": (0.9, 2.0)}, "betas are"),
    ({"anchor": []}, "4 weights and 0 anchors"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_setting_changed_to_a_wrong_one_is_refused_before_the_closure_and_before_anything_moves(
    change: dict[str, Any], message: str
) -> None:
    ps, qs = weights(), weights(seed=3)
    optimizer = pulled(ps)
    optimizer.add_param_group({"params": qs, "anchor": anchors_of(qs)})
    train(optimizer, [*ps, *qs], 1)
    before = [p.detach().clone() for p in [*ps, *qs]]
    optimizer.param_groups[1].update(change)
    with pytest.raises(EunoeError, match=message):
        optimizer.step(lambda: pytest.fail("called"))
    assert all(torch.equal(p, b) for p, b in zip([*ps, *qs], before, strict=True))
    assert {state["step"].item() for state in optimizer.state.values()} == {1}


def test_a_gradient_that_is_refused_leaves_all_weights_where_they_were() -> None:
    first, half = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    first.grad, half.grad = torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    for other, message in ((table.weight, "sparse=False"), (half, "no fused kernel")):
        optimizer = RecAdam([{"params": [first]}, {"params": [other]}], 1e-2, fused=True, anchor=None)
        with pytest.raises(EunoeError, match=message):
            optimizer.step()
        assert first.tolist() == [1, 1]
        assert not optimizer.state


def test_numbers_given_as_text_are_read() -> None:
    optimizer = pulled(weights(), k="inf", gamma="50")
    assert [optimizer.param_groups[0][name] for name in ("k", "gamma")] == [inf, 50.0]
    optimizer.step()


def test_a_rate_that_rounding_leaves_just_below_0_is_no_mistake() -> None:
    ps = weights()
    optimizer = pulled(ps, 1e-4)
    before = [p.detach().clone() for p in ps]
    optimizer.param_groups[0]["lr"] = -5e-20
    train(optimizer, ps, 1)
    assert distance(ps, before) < 1e-14


def test_a_high_rate_is_fine_where_nothing_is_pulled() -> None:
    ps = weights()
    train(pulled(ps, 0.1, anneal="constant"), ps, 1)
    train(pulled(ps, 0.1, weight=0.0), ps, 1)
    train(RecAdam(ps, 0.1, anchor=None), ps, 1)


def test_the_weight_itself_is_refused_as_its_anchor() -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(EunoeError, match=r"is the weight itself.*clone"):
        RecAdam([{"params": [p], "anchor": [p]}], 1e-5)


def test_fused_is_refused_where_there_is_no_kernel() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    with pytest.raises(EunoeError, match=r"bfloat16.*fused=None"):
        RecAdam([p], 1e-5, fused=True, anchor=None).step()


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(EunoeError, match="sparse=False"):
        RecAdam(table.parameters(), 1e-5, anchor=None).step()
