"""Checkpoints: atomic, hashed, no pickle.

A checkpoint is a folder: one safetensors file per group of tensors, ``values.json`` for plain values, and
``manifest.json`` with every file's SHA-256. It is written to ``NAME.partial``, each file fsynced, the folder renamed,
the parent fsynced: a kill at any moment leaves either the whole checkpoint or none. Loading verifies every hash.

The manifest also says what the checkpoint is of (``identity``: the run, the cell, what it started from), so one that was put
in place from elsewhere is refused. Checkpoints of versions before 0.2 have no identity.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from eunoe.atomic import sync_folder, write_synced
from eunoe.errors import EunoeError
from eunoe.foreign import first_line, visible

_FORMAT = 1
_TENSOR, _PAIRS, _TUPLE = "__tensor__", "__pairs__", "__tuple__"


class Damaged(EunoeError):  # noqa: N818 - says what it is
    """A checkpoint that is not there as it was written: files missing, cut, changed, or of odd content."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: named groups (nested dicts and lists of tensors and plain values)."""

    folder: Path
    groups: dict[str, Any]
    identity: dict[str, str] | None
    """What it is of; None: a version wrote it that did not say."""
    digest: str
    """SHA-256 of its manifest, which holds the hashes of all its files."""


def save(folder: Path, groups: Mapping[str, Any], identity: Mapping[str, str] | None = None) -> None:
    """Write ``groups`` (name -> nested dicts/lists of tensors and plain values) as the checkpoint ``folder``.

    ``identity``: what it is a checkpoint of, which ``load`` compares.

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
        said = {"identity": dict(identity)} if identity is not None else {}
        manifest = json.dumps({"format": _FORMAT, "sha256": hashes, **said}, indent=1, sort_keys=True)
        write_synced(partial / "manifest.json", manifest.encode("utf-8"))
        # contents before names: after a power cut no folder in place may hold empty files
        sync_folder(partial)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            # a folder that is not empty cannot be replaced by one rename
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


def load(folder: Path, identity: Mapping[str, str] | None = None) -> Checkpoint:
    """Read and verify a checkpoint; raises ``EunoeError`` naming the file that is missing or does not match its hash.

    ``identity``: what it must be a checkpoint of, as far as it says so (``Checkpoint.identity`` is None where it does not).
    """
    hashes, said, digest = _manifest(folder)
    _refuse_other(folder, said, identity)
    # hashed and parsed from the same bytes: what changes on the disk meanwhile is not trusted
    contents: dict[str, bytes] = {}
    for name, expected in hashes.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{folder / name} cannot be read: {error.strerror}.") from None
        actual = hashlib.sha256(contents[name]).hexdigest()
        if actual != expected:
            raise Damaged(f"{folder / name} was changed: its SHA-256 is {actual}, the manifest says {expected}.")
    with forged(folder):
        values = json.loads(contents["values.json"])
        groups = {}
        for name, tree in values.items():
            data = contents.get(f"{name}.safetensors")
            groups[name] = _join(tree, safetensors.torch.load(data) if data is not None else {})
    return Checkpoint(folder, groups, said, digest)


@contextmanager
def forged(folder: Path) -> Iterator[None]:
    """Whatever a checkpoint with right hashes but odd content makes torch and others raise becomes one ``EunoeError``."""
    try:
        yield
    except EunoeError:
        raise
    except Exception as error:
        raise Damaged(f"{folder} cannot be read as a checkpoint: {first_line(error)} Its files have the right hashes but not what a "
                         "checkpoint of this version holds. Delete the folder; the same command makes it again.") from error  # fmt: skip


def whole(folder: Path) -> bool:
    """Is there a checkpoint here (complete, not yet verified)?"""
    _put_back(folder)
    return (folder / "manifest.json").is_file()


def manifest_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's manifest, which names all its content; raises ``EunoeError`` if it cannot be read."""
    return _manifest(folder)[2]


def identity_of(folder: Path) -> dict[str, str] | None:
    """What a checkpoint says it is of; None: it does not say. Raises ``EunoeError`` if the manifest cannot be read."""
    return _manifest(folder)[1]


def newest(
    parent: Path, identity: Mapping[str, str] | None = None, prefix: str = "step-"
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below ``parent`` that verifies, and why newer ones were skipped.

    Raises ``EunoeError`` for one that says it is of something else than ``identity``; with ``identity`` given, one that says
    nothing (of a version before 0.2) is skipped.
    """
    skipped: list[str] = []
    for folder in reversed(_series(parent, prefix)):
        try:
            said = _manifest(folder)[1]
        except EunoeError as error:
            skipped.append(str(error))
            continue
        if identity and said is None:
            skipped.append(
                f"{folder} was written by an earlier version of eunoe, which does not say what it is a checkpoint of."
            )
            continue
        _refuse_other(folder, said, identity)
        try:
            return load(folder), skipped
        except EunoeError as error:
            skipped.append(str(error))
    return None, skipped


def newest_whole(parent: Path, prefix: str = "step-") -> Path | None:
    """The newest checkpoint below ``parent`` whose files have their hashes; nothing of it is loaded."""
    return next((folder for folder in reversed(_series(parent, prefix)) if intact(folder)), None)


def intact(folder: Path) -> bool:
    """Are all files of a checkpoint there with the hashes that its manifest says?"""
    try:
        for name, expected in _manifest(folder)[0].items():
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return False
    except (OSError, EunoeError):
        return False
    return True


def digest(tree: Any) -> str:
    """SHA-256 over nested tensors and plain values: the same for the same bits."""
    tensors: dict[str, Tensor] = {}
    total = hashlib.sha256(json.dumps(_split(tree, "", tensors), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _manifest(folder: Path) -> tuple[dict[str, str], dict[str, str] | None, str]:
    """A manifest's hashes, what it says it is of, and its own hash."""
    try:
        _put_back(folder)
        data = (folder / "manifest.json").read_bytes()
        manifest = json.loads(data)
        hashes, form, said = dict(manifest["sha256"]), manifest["format"], manifest.get("identity")
        said = None if said is None else {str(key): str(value) for key, value in said.items()}
    except Exception as error:  # a damaged file can raise anything
        raise Damaged(
            f"{folder} is not a whole checkpoint: its manifest.json cannot be read ({first_line(error)})"
        ) from None
    if form != _FORMAT:
        raise EunoeError(
            f"{folder} has the checkpoint format {form!r}; this version of eunoe reads {_FORMAT}. Use the version that wrote it."
        )
    for name in hashes:
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in (".json", ".safetensors"):
            raise Damaged(f"{folder}: the manifest names {name!r}, which is not a file of this folder.")
    return hashes, said, hashlib.sha256(data).hexdigest()


def _refuse_other(folder: Path, said: Mapping[str, str] | None, identity: Mapping[str, str] | None) -> None:
    if said is None or not identity:
        return
    wrong = [key for key, value in identity.items() if said.get(key) != value]
    if wrong:
        listed = "; ".join(f"{key}: {visible(said.get(key))} there, {visible(identity[key])} here" for key in wrong)
        raise EunoeError(f"{folder} belongs to another training ({listed}). Put back what it began with, or delete the folder: the same "
                         "command then starts this part over.")  # fmt: skip


def prune(parent: Path, keep: int, prefix: str = "step-") -> None:
    """Delete all but the ``keep`` newest checkpoints of a series (and what a kill left half-written)."""
    if not parent.is_dir():
        return
    series = _series(parent, prefix)
    left = [p for p in parent.iterdir() if p.suffix in (".partial", ".old") and p.stem.startswith(prefix)]
    for folder in [*left, *series[: max(len(series) - keep, 0)]]:
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
        # a copy: views and tied tensors are not saved as they lie, and training changes them
        tensors[path] = tree.detach().to("cpu").contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, Mapping):
        odd = next((key for key in tree if not isinstance(key, bool | int | float | str | None)), None)
        if odd is not None:
            raise TypeError(f"{path}: a checkpoint's keys are plain values, not {type(odd).__name__}")
        pairs = [[key, _split(value, f"{path}/{key}", tensors)] for key, value in tree.items()]
        # JSON has keys of text alone; all others are kept as pairs
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
