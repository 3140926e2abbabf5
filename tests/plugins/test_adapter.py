from __future__ import annotations

import pytest
import torch

from eunoe.plugins.adapter import Adapter
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
    active.finished.add(0)
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
