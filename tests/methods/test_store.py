"""What a method keeps is the same bits wherever it lies, and leaves no file behind."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from eunoe.contract.way import Way, digest
from eunoe.errors import EunoeError
from eunoe.methods import METHODS
from eunoe.methods.store import Keep, frozen_copy, kept
from tests.tiny import tiny_bert, tiny_gpt2

PLACES = get_args(Keep)


@pytest.mark.parametrize("keep", PLACES)
def test_what_is_kept_stays_when_the_original_changes(keep: Any, tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5, 2).T, "c": torch.arange(3), "d": torch.randn(2).bfloat16()}
    expected = {name: t.clone() for name, t in weights.items()}
    copies = kept(weights, keep, tmp_path / "stage")
    for t in weights.values():
        t.zero_()
    assert copies.keys() == expected.keys()
    assert all(torch.equal(copies[n], t) and copies[n].dtype == t.dtype for n, t in expected.items())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert kept({}, keep, tmp_path) == {}


def maps() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs /proc")
def test_on_disk_is_a_mapped_file_that_goes_with_its_tensors(tmp_path: Path) -> None:
    tensors = kept({"a": torch.ones(1 << 20)}, "disk", tmp_path)
    assert f"{tmp_path}/kept-" in maps()
    tensors["a"].sub_(1)  # may be written to as any other
    assert float(tensors["a"].sum()) == 0
    del tensors
    gc.collect()
    assert f"{tmp_path}/kept-" not in maps()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EunoeError, match=r"keep: disk needs 8 bytes in .*file.*, which cannot be written: .*choose keep: cpu"
    ):
        kept({"a": torch.ones(2)}, "disk", tmp_path / "file")


@pytest.mark.parametrize("keep", PLACES)
@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_a_frozen_copy_answers_as_the_model_did(make: Any, keep: Any) -> None:
    model = make()
    ids = torch.arange(5, 37).reshape(2, 16)
    expected = model(ids).logits.detach()
    model.train()
    copy = frozen_copy(model, keep)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(copy(ids).logits, expected)
    assert not any(p.requires_grad for p in copy.parameters())
    assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert model.training


KEEPING = [name for name, entry in METHODS.items() if "keep" in entry.settings.__dataclass_fields__]


@pytest.mark.parametrize("name", KEEPING)
def test_a_method_learns_the_same_bits_wherever_it_keeps_things(name: str) -> None:
    ends, sizes = set(), []
    for keep in PLACES:
        way = Way({"name": name, "keep": keep}, order=("food", "law")).walked(steps=3)
        ends.add(digest(way.after(1)))
        sizes.append(way.after(1).sizes())
    assert len(ends) == 1
    on_device, on_cpu, on_disk = sizes
    assert sum(on_device.values()) > 0
    assert list(on_cpu.values()) == list(on_disk.values()) == list(on_device.values()), "as many bytes, elsewhere"
    assert (
        [n.replace(", on the CPU", "") for n in on_cpu]
        == [n.replace(", on disk", "") for n in on_disk]
        == list(on_device)
    )
    assert any("on the CPU" in n for n in on_cpu)
    assert any("on disk" in n for n in on_disk)
    with pytest.raises(EunoeError, match="keep: must be 'device', 'cpu' or 'disk'"):
        Way({"name": name, "keep": "tape"})


def test_sizes_are_those_of_the_model_and_of_what_is_kept() -> None:
    model = sum(4 * p.numel() for p in tiny_bert().parameters())
    sizes = {
        name: Way(name).walked(1, steps=2).after(0).sizes() for name in ("kd", "ewc", "l2", "wise", "merge", "replay")
    }
    assert sizes == {
        "kd": {"teacher": model}, "ewc": {"Fisher": model, "anchor": model}, "l2": {"anchor": model}, "wise": {"anchor": model},
        "merge": {"pretrained weights": model}, "replay": {},
    }  # fmt: skip
    buffer = Way({"name": "der++", "top": 3, "capacity": 5}, tiny_gpt2).walked(1, steps=2).after(0).sizes()
    assert buffer["logits of the buffer"] == 5 * 15 * 3 * (4 + 4)


def test_many_methods_keep_things_where_they_are_told() -> None:
    assert set(KEEPING) >= {"kd", "ewc", "der++", "l2", "recadam", "wise", "merge"}
