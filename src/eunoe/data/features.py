"""Features of words on disk: what a frozen model gives for each word of a list of texts, computed once and read ever after.

``EUNOE_CACHE/features/DIGEST/values.bin`` holds (words of all texts, layers, width) numbers, ``meta.json`` how many words each
text has and the file's SHA-256, which is verified once in a process. The digest is of all that the numbers depend on, so
another model, text or tokenizer is another entry. Written as tokenised text is: whole or not at all, synced. Whoever made an entry
for a task alone takes it off the disk after it; others that read it at that moment have it open, or make it again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eunoe.atomic import sync_folder, write_synced
from eunoe.data.cache import DamagedError, cache_folder, partial_folder
from eunoe.errors import EunoeError
from eunoe.foreign import first_line
from eunoe.progress import say

FORMAT = 1
KINDS = ("float16", "float32")
_verified: set[tuple[int, ...]] = set()


class Stored:
    """Features as they lie on the disk, mapped: ``stored[i]`` is (words, layers, width) of text i."""

    def __init__(self, folder: Path, values: NDArray[Any], lengths: list[int], stays: bool) -> None:
        self.folder, self.values, self.lengths, self.stays = folder, values, lengths, stays
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> NDArray[Any]:
        return self.values[self._starts[i] : self._starts[i + 1]]

    @property
    def bytes(self) -> int:
        """What the values take on the disk."""
        return self.values.nbytes

    def remove(self) -> None:
        """Take the entry off the disk unless it was made to stay; what is mapped stays readable until it is let go."""
        if not self.stays:
            shutil.rmtree(self.folder, ignore_errors=True)


def stored_features(
    digest: str,
    kind: str,
    layers: int,
    width: int,
    what: str,
    make: Callable[[], Iterable[NDArray[np.float32]]],
    stays: bool = True,
) -> Stored:
    """The features that ``digest`` names, made by ``make`` (one array (words, layers, width) a text, in order) where they are
    not there or are damaged; says how much of the disk they take. ``kind``: ``float16`` or ``float32``. ``stays``: are those made here for
    later tasks too, which ``Stored.remove`` leaves?

    Raises ``EunoeError`` where the folder cannot be written, or a number does not fit the kind.
    """
    folder = cache_folder() / "features" / f"{digest}-{kind}"
    if os.path.lexists(folder):
        try:
            stored = _read(folder, kind, layers, width)
            say(f"features of {what}: {shown_size(stored.bytes)} read from {folder}")
            return stored
        except DamagedError as fault:
            say(f"the stored features of {what} are damaged ({fault}): they are made again")
            shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    stored = _write(folder, kind, layers, width, what, make(), stays)
    say(f"features of {what}: {len(stored):,} texts, {sum(stored.lengths):,} words, {shown_size(stored.bytes)} on the disk in {folder}, "
        f"made in {time.monotonic() - began:.1f} s")  # fmt: skip
    return stored


def shown_size(size: int) -> str:
    """Bytes as people read them.

    >>> shown_size(2_500_000)
    '2.5 MB'
    """
    size_mb = size / 1e6
    return (
        f"{size_mb / 1e3:,.1f} GB" if size_mb >= 1e3 else f"{size_mb:,.1f} MB" if size_mb >= 0.1 else f"{size:,} bytes"
    )


def _read(folder: Path, kind: str, layers: int, width: int) -> Stored:
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        lengths = [int(length) for length in meta["lengths"]]
        if [meta["format"], meta["kind"], meta["layers"], meta["width"]] != [FORMAT, kind, layers, width]:
            raise DamagedError("meta.json was changed")
        with open(folder / "values.bin", "rb") as file:
            state = os.fstat(file.fileno())
            shape = (sum(lengths), layers, width)
            if state.st_size != int(np.prod(shape)) * np.dtype(kind).itemsize:
                raise DamagedError(f"values.bin has {state.st_size:,} bytes, meta.json says {shape}")
            seen = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            if seen not in _verified:
                if hashlib.file_digest(file, "sha256").hexdigest() != meta["sha256"]:
                    raise DamagedError("the SHA-256 of values.bin differs")
                _verified.add(seen)
            values = np.memmap(file, dtype=kind, mode="r", shape=shape) if state.st_size else np.empty(shape, kind)
            return Stored(folder, values, lengths, bool(meta.get("stays", True)))
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from None
    except PermissionError as error:
        raise EunoeError(f"the stored features {error.filename} cannot be read: {error.strerror}. Set EUNOE_CACHE to another "
                         "folder.") from None  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise DamagedError(first_line(error).rstrip(".")) from None


def _write(
    folder: Path, kind: str, layers: int, width: int, what: str, rows: Iterable[NDArray[np.float32]], stays: bool
) -> Stored:
    """Stream the rows to an entry, which appears whole or not at all, and open it before another process could remove it."""
    total, lengths = hashlib.sha256(), list[int]()
    try:
        with partial_folder(folder.parent) as partial:
            with open(partial / "values.bin", "wb") as file:
                for row in rows:
                    assert row.shape[1:] == (layers, width), (row.shape, layers, width)
                    with np.errstate(over="ignore"):
                        values = np.ascontiguousarray(row, dtype=kind)
                    if not np.isfinite(values).all():
                        advice = (
                            "Set stored_as: float32." if np.isfinite(row).all() else "Are the model's weights whole?"
                        )
                        raise EunoeError(f"text {len(lengths) + 1} of {what} has features that {kind} does not hold (largest "
                                         f"{float(np.abs(row).max())}). {advice}")  # fmt: skip
                    data = values.tobytes()
                    file.write(data)
                    total.update(data)
                    lengths.append(len(row))
                file.flush()
                os.fsync(file.fileno())
            meta = {
                "format": FORMAT,
                "kind": kind,
                "layers": layers,
                "width": width,
                "lengths": lengths,
                "sha256": total.hexdigest(),
                "stays": stays,
            }
            write_synced(partial / "meta.json", json.dumps(meta).encode())
            sync_folder(partial)
            try:
                stored = _read(partial, kind, layers, width)
            except DamagedError as fault:
                raise EunoeError(f"{folder} does not read back as it was written ({fault}). Is the disk damaged? Set EUNOE_CACHE to a "
                                 "folder on another one.") from None  # fmt: skip
            stored.folder = folder
            try:
                partial.rename(folder)
            except OSError as error:  # another process put the same entry there first
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                stored.stays = True  # theirs to remove
            sync_folder(folder.parent)
            return stored
    except OSError as error:
        raise EunoeError(f"the features of {what} cannot be written to {folder.parent}: {error.strerror or error}. Free space there, set "
                         "EUNOE_CACHE to another folder, or give fewer rows.") from None  # fmt: skip


__all__ = ["KINDS", "Stored", "shown_size", "stored_features"]
