from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eunoe import checkpoint
from eunoe.atomic import write_text
from eunoe.checkpoint import load, newest, newest_whole, prune, save, whole
from eunoe.errors import EunoeError

GROUPS: dict[str, Any] = {
    "weights": {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor(1.5)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, dtype=torch.bfloat16)}, 1: {}},
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1], "fused": None}],
    },
    "loop": {"steps": 7, "curve": [(0, 1.25, 1e-4, 0.1), (1, 0.1 + 0.2, 1e-5, float("inf"))], "name": "News é\u2028"},
}


def same(a: Any, b: Any) -> bool:
    """Equal in value, type, order and every bit of the tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def full_disk(*_: object) -> None:
    raise OSError(28, os.strerror(28))


# -- round trip ---------------------------------------------------------------------------------------------------
def test_nested_state_comes_back_with_int_keys_and_tuples(tmp_path: Path) -> None:
    save(tmp_path / "step-1", GROUPS)
    assert same(load(tmp_path / "step-1").groups, GROUPS)
    assert whole(tmp_path / "step-1")
    assert not whole(tmp_path / "step-2")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
KEYS = (
    st.sampled_from(["a", "b/c", "b", "__tensor__", "__pairs__", "__tuple__", ""]) | st.integers(-2, 2) | st.booleans()
)
TREES = st.recursive(
    PLAIN | st.integers(0, 3).map(torch.arange),
    lambda inner: (
        st.dictionaries(KEYS, inner, max_size=3) | st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(TREES)
def test_any_nested_state_comes_back(tmp_path: Path, tree: Any) -> None:
    save(tmp_path / "step-1", {"group": tree})
    assert same(load(tmp_path / "step-1").groups["group"], tree)


def test_keys_that_look_alike_do_not_share_a_tensor(tmp_path: Path) -> None:
    tree = {1: torch.tensor(1), "1": torch.tensor(2), "a/b": torch.tensor(3), "a": {"b": torch.tensor(4)}}
    save(tmp_path / "step-1", {"group": tree})
    assert same(load(tmp_path / "step-1").groups["group"], tree)


def test_views_and_shared_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"view": base.T, "again": base, "row": base[1], "parameter": torch.nn.Parameter(base)}
    save(tmp_path / "step-1", {"group": tree})
    back = load(tmp_path / "step-1").groups["group"]
    assert all(torch.equal(back[key], tree[key]) for key in tree)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tmp_path / name, GROUPS)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize("value", [object(), {"x": {1, 2}}, {(1, 2): 3}, b"bytes"])
def test_what_is_neither_tensor_nor_plain_is_refused_and_leaves_nothing(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="plain values, not"):
        save(tmp_path / "step-1", {"group": value})
    assert listing(tmp_path) == []


def test_nothing_that_could_run_code_is_written(tmp_path: Path) -> None:
    save(tmp_path / "step-1", GROUPS)
    assert {p.suffix for p in (tmp_path / "step-1").iterdir()} == {".safetensors", ".json"}


# -- faults while writing -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("after", range(5))
def test_a_full_disk_at_any_sync_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    save(tmp_path / "step-1", GROUPS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > after:
            full_disk()
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    changed = {**GROUPS, "loop": {"steps": 8}}
    with pytest.raises(
        EunoeError, match=r"step-1 could not be written: No space left on device\. Earlier checkpoints are whole"
    ):
        save(tmp_path / "step-1", changed)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_fault_between_the_two_renames_puts_the_old_checkpoint_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "step-1", GROUPS)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            full_disk()
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(EunoeError, match="could not be written"):
        save(tmp_path / "step-1", {"loop": {"steps": 8}})
    monkeypatch.undo()
    assert same(load(tmp_path / "step-1").groups, GROUPS)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("use", ["load", "newest", "prune", "whole"])
def test_a_kill_between_the_two_renames_loses_no_checkpoint(tmp_path: Path, use: str) -> None:
    save(tmp_path / "step-1", GROUPS)
    (tmp_path / "step-1").rename(tmp_path / "step-1.old")
    if use == "newest":
        checkpoint_found, _ = newest(tmp_path)
        assert checkpoint_found is not None
    elif use == "prune":
        prune(tmp_path, keep=1)
    elif use == "whole":
        assert whole(tmp_path / "step-1")
    assert same(load(tmp_path / "step-1").groups, GROUPS)


def test_a_kill_at_any_system_call_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before each of the calls that move data: what ``newest`` finds is the older or the newer one, never less."""

    class Killed(BaseException):
        pass

    for stop in range(40):
        folder = tmp_path / str(stop)
        save(folder / "step-1", {"loop": {"steps": 1}})
        left = [stop]

        def counted(real: Any, left: list[int] = left) -> Any:
            def call(*args: Any, **more: Any) -> Any:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*args, **more)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(os.fsync))
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr(Path, "mkdir", counted(Path.mkdir))
            patch.setattr(checkpoint.shutil, "rmtree", counted(checkpoint.shutil.rmtree))
            try:
                save(folder / "step-1", {"loop": {"steps": 2}, "weights": {"w": torch.ones(2)}})
                finished = True
            except Killed:
                finished = False
        checkpoint_found, skipped = newest(folder)
        assert skipped == []
        assert checkpoint_found is not None
        assert checkpoint_found.groups["loop"]["steps"] in ((2,) if finished else (1, 2))
        if finished:
            return
    pytest.fail("save made more calls than were tried")


# -- faults while reading -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "values.json"])
def test_a_flipped_bit_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / "step-1", GROUPS)
    path = tmp_path / "step-1" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(EunoeError, match=rf"{name} was changed: its SHA-256 is [0-9a-f]+, the manifest says"):
        load(tmp_path / "step-1")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    save(tmp_path / "step-1", GROUPS)
    (tmp_path / "step-1" / "weights.safetensors").unlink()
    with pytest.raises(EunoeError, match=r"weights\.safetensors cannot be read: No such file"):
        load(tmp_path / "step-1")


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "sub/file", "..", ""])
def test_a_manifest_that_names_a_path_outside_is_refused(tmp_path: Path, outside: str) -> None:
    save(tmp_path / "step-1", GROUPS)
    (tmp_path / "secret").write_text("secret")
    manifest = tmp_path / "step-1" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["sha256"][outside] = "0" * 64
    manifest.write_text(json.dumps(data))
    with pytest.raises(EunoeError) as caught:
        load(tmp_path / "step-1")
    assert "SHA-256" not in str(caught.value)
    assert "not a file of this folder" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sha256": 3, "format": 1}', '{"sha256": {}, "format": 1}', "\x00"]
)
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    save(tmp_path / "step-1", GROUPS)
    (tmp_path / "step-1" / "manifest.json").write_text(text)
    with pytest.raises(EunoeError, match=r"not a whole checkpoint|cannot be read"):
        load(tmp_path / "step-1")


def test_another_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "step-1", GROUPS)
    manifest = tmp_path / "step-1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(EunoeError, match="format 2; this version of eunoe reads 1"):
        load(tmp_path / "step-1")


BROKEN = ["[]", "3", '{"loop": {"__tensor__": []}}', '{"loop": {"__tensor__": "x"}}', '{"loop": {"__pairs__": 3}}',
          "[" * 100_000, '{"loop": {"__pairs__": [[[1], 2]]}}']  # fmt: skip


@pytest.mark.parametrize("values", BROKEN)
def test_values_made_to_break_the_reader_are_refused(tmp_path: Path, values: str) -> None:
    save(tmp_path / "step-1", GROUPS)
    (tmp_path / "step-1" / "values.json").write_text(values)
    manifest = tmp_path / "step-1" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["sha256"]["values.json"] = checkpoint.hashlib.sha256(values.encode()).hexdigest()
    manifest.write_text(json.dumps(data))
    with pytest.raises(EunoeError, match="cannot be read as a checkpoint"):
        load(tmp_path / "step-1")


# -- a series -----------------------------------------------------------------------------------------------------
def test_newest_skips_broken_checkpoints_and_says_why(tmp_path: Path) -> None:
    for step in (9, 10, 11, 100):
        save(tmp_path / f"step-{step}", {"loop": {"steps": step}})
    (tmp_path / "step-100" / "manifest.json").unlink()
    (tmp_path / "step-11" / "values.json").write_text("{}")
    (tmp_path / "step-999.partial").mkdir()
    (tmp_path / "step-best").mkdir()
    checkpoint_found, skipped = newest(tmp_path)
    assert checkpoint_found is not None
    assert checkpoint_found.groups == {"loop": {"steps": 10}}
    assert len(skipped) == 2
    assert "step-100 is not a whole checkpoint" in skipped[0]
    assert "step-11/values.json was changed" in skipped[1]


def test_naming_the_newest_whole_checkpoint_loads_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4, 6):
        save(tmp_path / f"step-{step}", {**GROUPS, "loop": {"steps": step}})
    data = bytearray((tmp_path / "step-6/weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "step-6/weights.safetensors").write_bytes(data)
    monkeypatch.setattr(checkpoint.safetensors.torch, "load", lambda *_: pytest.fail("a checkpoint was loaded"))
    assert newest_whole(tmp_path) == tmp_path / "step-4"
    assert newest_whole(tmp_path / "none") is None


def test_newest_of_nothing_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") == (None, [])
    assert newest(tmp_path) == (None, [])


def test_prune_keeps_the_newest_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save(tmp_path / f"step-{step}", {"loop": {"steps": step}})
    (tmp_path / "step-12.partial").mkdir()
    (tmp_path / "step-11.old").mkdir()
    (tmp_path / "notes.old").mkdir()
    prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.old", "step-10", "step-11"]
    prune(tmp_path / "absent", keep=2)


# -- text files ---------------------------------------------------------------------------------------------------
def test_write_text_leaves_a_file_that_already_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "recipe.yaml"
    write_text(path, "name: é\n")
    before = path.stat()
    write_text(path, "name: é\n")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    write_text(path, "name: other\n")
    assert path.read_text(encoding="utf-8") == "name: other\n"
    assert listing(tmp_path) == ["sub", "sub/recipe.yaml"]


def test_write_text_on_a_full_disk_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(EunoeError, match="could not be written: No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["recipe.yaml"]
