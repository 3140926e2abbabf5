from __future__ import annotations

import copy

import pytest
import torch

from eunoe.errors import EunoeError
from eunoe.plugins.adapter import ACTIVATIONS, Adapter
from eunoe.plugins.task_mask import Active


def make(s: float = 400.0, **change: object) -> tuple[Adapter, Active]:
    torch.manual_seed(0)
    active = Active(domains=("a", "b"), domain=0, running=0, s=s)
    return Adapter(6, 10, active, **change), active  # type: ignore[arg-type]


def test_the_plug_in_is_the_published_formula() -> None:
    plugin, _ = make(s=2.0)
    x = torch.randn(3, 4, 6)
    m1, m2 = torch.sigmoid(2 * plugin.mask1.embedding), torch.sigmoid(2 * plugin.mask2.embedding)
    h1 = m1 * torch.relu(x @ plugin.fc1.weight.T + plugin.fc1.bias)
    h2 = m2 * torch.relu(h1 @ plugin.fc2.weight.T + plugin.fc2.bias)
    torch.testing.assert_close(plugin(x), x + h2)
    assert (h2 >= 0).all()
    plugin.skip = False
    torch.testing.assert_close(plugin(x), h2)


def test_output_width_can_differ_without_the_skip_only() -> None:
    plugin, _ = make(out=8, skip=False)
    assert plugin(torch.randn(2, 6)).shape == (2, 8)
    with pytest.raises(ValueError, match="6 in and 8 out"):
        make(out=8)


def test_the_result_has_the_inputs_dtype_and_the_weights_stay_float32() -> None:
    plugin, _ = make()
    assert plugin(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_masked_units_let_nothing_through() -> None:
    plugin, _ = make()
    with torch.no_grad():
        plugin.mask2.embedding.fill_(-1.0)
    x = torch.randn(5, 6)
    assert torch.equal(plugin(x), x)


def test_entries_that_a_domain_does_not_read_can_change_without_a_trace_and_the_others_not() -> None:
    plugin, active = make()
    for mask in plugin.masks().values():
        mask.embedding.data[:3] = torch.tensor([1.0, -1.0, 1.0])
        assert plugin.reads(0)["mask1.embedding"].all(), "the running domain reads its embedding"
        mask.keep(0)
    active.finished.append(0)
    x = torch.randn(50, 6)
    with torch.no_grad():
        before = plugin(x)
        for name, reads in plugin.reads(0).items():
            weight = plugin.get_parameter(name)
            assert reads.shape == weight.shape
            assert reads.any() == (not name.startswith("mask"))
            assert not reads.all()
            kept = weight.clone()
            weight[~reads] = 7.0
            assert torch.equal(plugin(x), before), name
            weight.copy_(kept)
            if not name.startswith("mask"):
                weight[reads] += 1.0
                assert not torch.equal(plugin(x), before), name
                weight.copy_(kept)


def test_unread_gradients_are_zero() -> None:
    """The same statement seen from the other side: what is not read has no influence."""
    plugin, _ = make()
    plugin(torch.randn(200, 6)).square().sum().backward()
    for name, reads in plugin.reads(0).items():
        gradient = plugin.get_parameter(name).grad
        assert gradient is None or not gradient[~reads].any()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_each_activation_stands_after_both_layers_and_is_zero_at_zero(name: str) -> None:
    plugin, _ = make(s=2.0, activation=name, skip=False)
    plugin.grow(3)
    f, x = ACTIVATIONS[name], torch.randn(7, 6)
    block = next(plugin.blocks())
    m1, m2, m3 = (torch.sigmoid(2 * mask.embedding) for mask in (plugin.mask1, plugin.mask2, block.mask1))
    total = plugin.fc2(m1 * f(plugin.fc1(x))) + (m3 * f(block.fc1(x))) @ block.fc2.weight.T
    torch.testing.assert_close(plugin(x), m2 * f(total))
    assert f(torch.zeros(1)).item() == 0.0


def test_weights_start_as_asked() -> None:
    spreads = {}
    for init in ("library", "normal", "near_zero"):
        torch.manual_seed(0)
        plugin = Adapter(64, 80, Active(domains=("a",)), init=init)
        plugin.grow(80)
        block = next(plugin.blocks())
        weights = [plugin.fc1.weight, plugin.fc2.weight, block.fc1.weight, block.fc2.weight]
        spreads[init] = [w.std().item() for w in weights]
        assert plugin.fc1.bias.any() == block.fc1.bias.any() == (init == "library")
    assert spreads["library"] == pytest.approx([3**-0.5 / 8, 3**-0.5 / 80**0.5] * 2, rel=0.05)
    assert spreads["normal"] == pytest.approx([0.02] * 4, rel=0.05)
    assert spreads["near_zero"] == pytest.approx([0.001] * 4, rel=0.05)


@pytest.mark.parametrize(
    ("name", "message"), [("activation", "unknown activation 'rel'"), ("init", "unknown init 'rel'")]
)
def test_unknown_options_are_refused(name: str, message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        make(**{name: "rel"})


# -- growing -----------------------------------------------------------------------------------------------------------
SHAPES = [(6, 10, 3), (16, 11, 1), (64, 40, 24), (256, 170, 86), (768, 512, 256), (768, 768, 8)]


@pytest.mark.parametrize(("width", "size", "more"), SHAPES)
@pytest.mark.parametrize("rows", [1, 7, 164])
def test_a_domain_learnt_before_computes_the_same_bits_after_growing(
    width: int, size: int, more: int, rows: int
) -> None:
    torch.manual_seed(0)
    active = Active(domains=("a", "b"), domain=0, running=0)
    plugin, x = Adapter(width, size, active), torch.randn(rows, width)
    for mask in plugin.masks().values():
        mask.keep(0)
    active.finished.append(0)
    active.running = None
    before = plugin(x)
    plugin.grow(more)
    assert plugin.size == size + more
    assert torch.equal(plugin(x).view(torch.int32), before.view(torch.int32))
    with torch.no_grad():
        for block in plugin.blocks():
            block.fc1.weight.fill_(float("nan"))
    assert torch.equal(plugin(x), before), "it must not even be computed"
    assert all(not e.any() for name, e in plugin.reads(0).items() if name.startswith("grown"))


def test_the_next_domain_uses_grown_units_and_keeps_them() -> None:
    plugin, active = make()
    for mask in plugin.masks().values():
        mask.embedding.data.fill_(1.0)  # every unit taken
        mask.keep(0)
    active.finished.append(0)
    x = torch.randn(50, 6)
    first = plugin(x)
    plugin.grow(4)
    assert [f.any().item() for f in plugin.free().values()] == [False, False, False, False, True, True, True]
    active.domain = active.running = 1
    for mask in plugin.masks().values():
        mask.embedding.data.fill_(1.0)
    grown = plugin(x)
    assert not torch.equal(grown, first)
    for mask in plugin.masks().values():
        mask.keep(1)
    active.finished.append(1)
    active.running = None
    assert torch.equal(plugin(x), grown)
    plugin.grow(2)
    assert torch.equal(plugin(x), grown)
    twin = copy.deepcopy(plugin)
    assert torch.equal(twin(x), grown)
    assert plugin.reads(1)["grown.0.fc2.weight"].all()
    assert not any(f.any() for name, f in plugin.free().items() if "grown.1" not in name)


def test_a_plug_in_never_shrinks() -> None:
    with pytest.raises(EunoeError, match="10 inner units cannot grow by 0"):
        make()[0].grow(0)
