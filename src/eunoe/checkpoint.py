"""Checkpoints: atomic, hashed, no pickle.

A checkpoint is a folder: one safetensors file per group of tensors, ``values.json`` for plain values, and
``manifest.json`` with every file's SHA-256. It is written to ``NAME.partial``, each file fsynced, the folder renamed,
the parent fsynced: a kill at any moment leaves either the whole checkpoint or none. Loading verifies every hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from eunoe.errors import EunoeError

_TENSOR = "__tensor__"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: named groups (nested dicts and lists of tensors and plain values)."""

    folder: Path
    groups: dict[str, Any]


def save(folder: Path, groups: Mapping[str, Any]) -> None:
    """Write ``groups`` (name -> nested dicts/lists of tensors and plain values) as the checkpoint ``folder``.

    An older checkpoint of the same name is replaced. Raises ``EunoeError`` if the disk is full or not writable;
    what was there before stays.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        hashes: dict[str, str] = {}
        values: dict[str, Any] = {}
        for name, group in groups.items():
            tensors: dict[str, Tensor] = {}
            values[name] = _split(group, "", tensors)
            if tensors:
                hashes[f"{name}.safetensors"] = _write(partial / f"{name}.safetensors", safetensors.torch.save(tensors))
        text = json.dumps(values, ensure_ascii=False, indent=1, sort_keys=True)
        hashes["values.json"] = _write(partial / "values.json", text.encode("utf-8"))
        manifest = json.dumps({"format": 1, "sha256": hashes}, indent=1, sort_keys=True)
        _write(partial / "manifest.json", manifest.encode("utf-8"))
        _sync_folder(partial)
        old = folder.with_name(folder.name + ".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        _sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise EunoeError(f"the checkpoint {folder} could not be written: {error.strerror or error}. Earlier checkpoints "
                         "are whole; free space and run the same command again.") from None  # fmt: skip


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint; raises ``EunoeError`` naming the file that is missing or does not match its hash."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        hashes = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EunoeError(f"{folder} is no whole checkpoint: its manifest.json cannot be read ({error}).") from None
    held: dict[str, bytes] = {}
    for name, expected in hashes.items():
        if Path(name).name != name:
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
    except (SafetensorError, ValueError, KeyError) as error:
        raise EunoeError(f"{folder} cannot be read as a checkpoint: {error}.") from None
    return Checkpoint(folder, groups)


def whole(folder: Path) -> bool:
    """Is there a checkpoint here (complete, not yet verified)?"""
    return (folder / "manifest.json").is_file()


def newest(parent: Path, prefix: str = "step-") -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below ``parent`` that verifies, and why newer ones were passed over."""
    skipped: list[str] = []
    found = [p for p in parent.glob(f"{prefix}*") if p.name.removeprefix(prefix).isdigit()] if parent.is_dir() else []
    for folder in sorted(found, key=lambda p: int(p.name.removeprefix(prefix)), reverse=True):
        try:
            return load(folder), skipped
        except EunoeError as error:
            skipped.append(str(error))
    return None, skipped


def prune(parent: Path, keep: int, prefix: str = "step-") -> None:
    """Delete all but the ``keep`` newest checkpoints of a series (and what a kill left half-written)."""
    if not parent.is_dir():
        return
    for folder in [*parent.glob("*.partial"), *parent.glob("*.old")]:
        shutil.rmtree(folder, ignore_errors=True)
    found = [p for p in parent.glob(f"{prefix}*") if p.name.removeprefix(prefix).isdigit()]
    for folder in sorted(found, key=lambda p: int(p.name.removeprefix(prefix)))[: max(len(found) - keep, 0)]:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; a file that already holds this text is not touched."""
    data = text.encode("utf-8")
    try:
        if path.exists() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        _write(partial, data)
        partial.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise EunoeError(
            f"{path} could not be written: {error.strerror or error}. Free space or choose another --out."
        ) from None


def _write(path: Path, data: bytes) -> str:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _split(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON with references in place of tensors, which go to ``tensors``. Mappings keep non-string keys as pairs."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().to("cpu").contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, Mapping):
        pairs = [[key, _split(value, f"{path}/{key}", tensors)] for key, value in tree.items()]
        if all(isinstance(key, str) for key in tree) and _TENSOR not in tree and "__pairs__" not in tree:
            return dict(pairs)
        return {"__pairs__": pairs}
    if isinstance(tree, list | tuple):
        return [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{path}: a checkpoint holds tensors and plain values, not {type(tree).__name__}")


def _join(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        if "__pairs__" in tree:
            return {key: _join(value, tensors) for key, value in tree["__pairs__"]}
        return {key: _join(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_join(value, tensors) for value in tree]
    return tree
