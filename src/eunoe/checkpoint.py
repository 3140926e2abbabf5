"""Checkpoints: atomic, hashed, no pickle.

A checkpoint is a folder: one safetensors file per group of tensors, ``values.json`` for plain values, and
``manifest.json`` with every file's SHA-256. It is written to ``NAME.partial``, each file fsynced, the folder renamed,
the parent fsynced: a kill at any moment leaves either the whole checkpoint or none. Loading verifies every hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from eunoe.atomic import sync_folder, write_synced
from eunoe.errors import EunoeError

_FORMAT = 1
_TENSOR, _PAIRS, _TUPLE = "__tensor__", "__pairs__", "__tuple__"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: named groups (nested dicts and lists of tensors and plain values)."""

    folder: Path
    groups: dict[str, Any]


def save(folder: Path, groups: Mapping[str, Any]) -> None:
    """Write ``groups`` (name -> nested dicts/lists of tensors and plain values) as the checkpoint ``folder``.

    An older checkpoint of the same name is replaced; a kill between the two renames leaves it as ``NAME.old``, which
    ``load``, ``newest`` and ``prune`` put back. Raises ``EunoeError`` if the disk is full or not writable; what was
    there before stays.
    """
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    try:
        _put_back(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        hashes: dict[str, str] = {}
        values: dict[str, Any] = {}
        for name, group in groups.items():
            tensors: dict[str, Tensor] = {}
            values[name] = _split(group, "", tensors)
            if tensors:
                hashes[f"{name}.safetensors"] = write_synced(
                    partial / f"{name}.safetensors", safetensors.torch.save(tensors)
                )
        text = json.dumps(values, ensure_ascii=False, indent=1, sort_keys=True)
        hashes["values.json"] = write_synced(partial / "values.json", text.encode("utf-8"))
        manifest = json.dumps({"format": _FORMAT, "sha256": hashes}, indent=1, sort_keys=True)
        write_synced(partial / "manifest.json", manifest.encode("utf-8"))
        sync_folder(partial)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        _put_back(folder)
        raise EunoeError(f"the checkpoint {folder} could not be written: {error.strerror or error}. Earlier checkpoints "
                         "are whole; free space and run the same command again.") from None  # fmt: skip
    except TypeError:  # something that cannot be saved: our fault, but nothing half-written stays
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _put_back(folder: Path) -> None:
    """What a kill or a fault moved aside and could not replace goes back to its place."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint; raises ``EunoeError`` naming the file that is missing or does not match its hash."""
    try:
        _put_back(folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        hashes, form = dict(manifest["sha256"]), manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EunoeError(f"{folder} is no whole checkpoint: its manifest.json cannot be read ({error}).") from None
    if form != _FORMAT:
        raise EunoeError(
            f"{folder} has the checkpoint format {form!r}; this version of eunoe reads {_FORMAT}. Use the version that wrote it."
        )
    held: dict[str, bytes] = {}
    for name, expected in hashes.items():
        if Path(name).name != name or Path(name).suffix not in (".json", ".safetensors"):
            raise EunoeError(f"{folder}: the manifest names {name!r}, which is no file of this folder.")
        try:
            held[name] = (folder / name).read_bytes()
        except OSError as error:
            raise EunoeError(f"{folder / name} cannot be read: {error.strerror}.") from None
        found = hashlib.sha256(held[name]).hexdigest()
        if found != expected:
            raise EunoeError(f"{folder / name} was changed: its SHA-256 is {found}, the manifest says {expected}.")
    try:
        values = json.loads(held["values.json"])
        groups = {}
        for name, tree in values.items():
            data = held.get(f"{name}.safetensors")
            groups[name] = _join(tree, safetensors.torch.load(data) if data is not None else {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EunoeError(f"{folder} cannot be read as a checkpoint: {error}.") from None
    return Checkpoint(folder, groups)


def whole(folder: Path) -> bool:
    """Is there a checkpoint here (complete, not yet verified)?"""
    _put_back(folder)
    return (folder / "manifest.json").is_file()


def newest(parent: Path, prefix: str = "step-") -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below ``parent`` that verifies, and why newer ones were passed over."""
    skipped: list[str] = []
    for folder in reversed(_series(parent, prefix)):
        try:
            return load(folder), skipped
        except EunoeError as error:
            skipped.append(str(error))
    return None, skipped


def prune(parent: Path, keep: int, prefix: str = "step-") -> None:
    """Delete all but the ``keep`` newest checkpoints of a series (and what a kill left half-written)."""
    if not parent.is_dir():
        return
    found = _series(parent, prefix)
    left = [p for p in parent.iterdir() if p.suffix in (".partial", ".old") and p.stem.startswith(prefix)]
    for folder in [*left, *found[: max(len(found) - keep, 0)]]:
        shutil.rmtree(folder, ignore_errors=True)


def _series(parent: Path, prefix: str) -> list[Path]:
    """The checkpoints of a series, oldest first; one that a kill moved aside is put back."""
    if not parent.is_dir():
        return []
    for old in [p for p in parent.iterdir() if p.suffix == ".old" and p.stem.startswith(prefix)]:
        _put_back(old.with_suffix(""))
    numbers = {p: p.name.removeprefix(prefix) for p in parent.iterdir() if p.name.startswith(prefix)}
    return sorted((p for p, n in numbers.items() if n.isascii() and n.isdigit()), key=lambda p: int(numbers[p]))


def _split(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON with references in place of tensors, which go to ``tensors``. Mappings keep non-string keys as pairs,
    and tuples stay tuples."""
    if isinstance(tree, Tensor):
        while path in tensors:  # {1: ..} and {"1": ..}, or a name with a slash
            path += "'"
        tensors[path] = tree.detach().to("cpu").contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, Mapping):
        odd = next((key for key in tree if not isinstance(key, bool | int | float | str | None)), None)
        if odd is not None:
            raise TypeError(f"{path}: a checkpoint's keys are plain values, not {type(odd).__name__}")
        pairs = [[key, _split(value, f"{path}/{key}", tensors)] for key, value in tree.items()]
        if all(isinstance(key, str) for key in tree) and not {_TENSOR, _PAIRS, _TUPLE} & set(tree):
            return dict(pairs)
        return {_PAIRS: pairs}
    if isinstance(tree, list | tuple):
        items = [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(tree)]
        return {_TUPLE: items} if isinstance(tree, tuple) else items
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{path}: a checkpoint holds tensors and plain values, not {type(tree).__name__}")


def _join(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        if _PAIRS in tree:
            return {key: _join(value, tensors) for key, value in tree[_PAIRS]}
        if _TUPLE in tree:
            return tuple(_join(value, tensors) for value in tree[_TUPLE])
        return {key: _join(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_join(value, tensors) for value in tree]
    return tree
