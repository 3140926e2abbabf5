"""Tokenised text on disk, written as checkpoints are: whole or not at all, synced, with a SHA-256 that is checked.

``blocks/DIGEST/ids.bin`` holds blocks of token ids, ``meta.json`` what they are and their hash, which is verified once in
a process. What does not fit is made again, and that is said: a flipped bit would train another model without notice.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eunoe.atomic import sync_folder, write_synced
from eunoe.errors import EunoeError
from eunoe.foreign import first_line
from eunoe.progress import say

FORMAT = 3
"""Of the cached files and of what their digests name; another number is another entry."""
_TRIES = 3
_verified: set[tuple[int, ...]] = set()


class DamagedError(Exception):
    """An entry is there, but is not what was written."""


def cache_folder() -> Path:
    """Where tokenised text is kept: ``EUNOE_CACHE``, else ``~/.cache/eunoe``; raises ``EunoeError`` where there is no home."""
    given = os.environ.get("EUNOE_CACHE")
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache" / "eunoe"
    except RuntimeError:
        raise EunoeError("there is no home folder (HOME is not set) to keep tokenised text in. Set EUNOE_CACHE to a folder that "
                         "can be written.") from None  # fmt: skip


def sha256(parts: Iterable[Any]) -> str:
    """SHA-256 over plain values, by which a run that is resumed knows what it read."""
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, ensure_ascii=True).encode() + b"\n")
    return total.hexdigest()


def cached_blocks(
    digest: str, block: int, largest: int, what: str, make: Callable[[], Iterable[list[int]]], enough: int | None = None
) -> tuple[NDArray[Any], int]:
    """The blocks ``digest`` names, int array (n, block) mapped from disk, and how many tokens there were to cut.

    ``make`` gives the tokens where the cache lacks them or holds something else; reading it stops after ``enough`` tokens.
    ``largest``: the highest token id; ``what``: the text, for messages. Raises ``EunoeError`` if the folder cannot be used.
    """
    folder = cache_folder() / "blocks" / digest
    kind = "uint16" if largest < 2**16 else "uint32"
    # written, then read back: what is trained on is what lies on the disk, checked by its hash
    for tried in range(_TRIES):
        try:
            if os.path.lexists(folder):
                return _read(folder, block)
        except DamagedError as fault:
            say(f"the cached tokens of {what} are damaged ({fault}): tokenising it again")
        if tried < _TRIES - 1:
            _write(folder, block, kind, make(), enough)
    raise EunoeError(f"{folder} does not read back as it was written, {_TRIES} times. Is the disk damaged? "
                     "Set EUNOE_CACHE to a folder on another one.")  # fmt: skip


def _read(folder: Path, block: int) -> tuple[NDArray[Any], int]:
    """An entry of the cache; raises ``DamagedError`` with the reason if it is not whole."""
    try:
        with open(folder / "ids.bin", "rb") as file:
            meta = json.loads((folder / "meta.json").read_bytes())
            kind, count, tokens = np.dtype(meta["dtype"]), int(meta["blocks"]), int(meta["tokens"])
            if meta["format"] != FORMAT or meta["block"] != block or kind not in (np.uint16, np.uint32):
                raise DamagedError("meta.json was changed")
            size = os.fstat(file.fileno()).st_size
            if count != tokens // block or size != count * block * kind.itemsize:
                raise DamagedError(f"ids.bin has {size:,} bytes, meta.json says {count:,} blocks of {tokens:,} tokens")
            _verify(file, meta["sha256"])
            shape = (count, block)
            ids = np.memmap(file, dtype=kind, mode="r", shape=shape) if count else np.empty(shape, kind)
            return ids, tokens
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from None
    except PermissionError as error:
        raise EunoeError(f"the token cache {error.filename} cannot be read: {error.strerror}. Set EUNOE_CACHE to another "
                         "folder.") from None  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DamagedError(first_line(error).rstrip(".")) from None


def _verify(file: BufferedReader, expected: str) -> None:
    """The file's SHA-256, once a process for a file that has not been written to since."""
    now = os.fstat(file.fileno())
    key = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    if key in _verified:
        return
    if hashlib.file_digest(file, "sha256").hexdigest() != expected:
        raise DamagedError("the SHA-256 of ids.bin differs")
    _verified.add(key)


def _write(folder: Path, block: int, kind: str, pieces: Iterable[list[int]], enough: int | None) -> None:
    """Stream tokens to an entry, which appears whole or not at all and replaces a damaged one."""
    tokens, row = 0, block * np.dtype(kind).itemsize
    total, rest = hashlib.sha256(), b""
    try:
        with partial_folder(folder.parent) as partial:
            with open(partial / "ids.bin", "wb") as file:
                for ids in pieces:
                    rest += np.asarray(ids, dtype=kind).tobytes()
                    whole, rest = rest[: len(rest) // row * row], rest[len(rest) // row * row :]
                    file.write(whole)
                    total.update(whole)  # of what is meant to be there: a bit lost on the way to the disk is noticed
                    tokens += len(ids)
                    if enough is not None and tokens >= enough:
                        break
                file.flush()
                os.fsync(file.fileno())
            meta = {
                "format": FORMAT,
                "dtype": kind,
                "tokens": tokens,
                "blocks": tokens // block,
                "block": block,
                "sha256": total.hexdigest(),
            }
            write_synced(partial / "meta.json", json.dumps(meta).encode())
            sync_folder(partial)
            _replace(folder, partial, block)
            sync_folder(folder.parent)
    except OSError as error:
        raise EunoeError(f"the token cache {folder.parent} cannot be written: {error.strerror or error}. "
                         "Free space there or set EUNOE_CACHE to another folder.") from None  # fmt: skip


def _replace(folder: Path, partial: Path, block: int) -> None:
    """Put a finished entry in its place, unless another process put a whole one there first."""
    if os.path.lexists(folder):
        try:
            _read(folder, block)
            return
        except DamagedError:
            old = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
            folder.rename(old / "damaged")
            shutil.rmtree(old, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A folder to write in, which is removed at the end if it is still there; what killed processes left goes first.

    Its writer holds a lock on it, and a lock dies with its owner: a folder that can be locked has no living writer. The
    lock on ``parent`` keeps others from looking between a folder's making and its locking.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        with _locked(parent):
            for left in parent.glob("partial-*"):
                _sweep(left)
            partial = Path(tempfile.mkdtemp(prefix="partial-", dir=parent))
            locks.enter_context(_locked(partial))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sweep(left: Path) -> None:
    """Remove what a killed process left; a folder whose lock is held, or cannot be asked for, stays."""
    with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB, must=True):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path, how: int = fcntl.LOCK_EX, must: bool = False) -> Iterator[None]:
    """The folder with a lock on it. A file system without locks is written to without, unless it ``must`` be had."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, how)
        except OSError:
            if must:
                raise
        yield
    finally:
        os.close(handle)
