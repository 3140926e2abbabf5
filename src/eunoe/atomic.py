"""Files that appear whole or not at all, whatever kills the process; for checkpoints, run folders and reports alike."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from eunoe.errors import EunoeError


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; a file that already holds this text is not touched."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; a file that already holds these bytes is not touched."""
    partial = path.with_name(path.name + ".partial")
    try:
        if path.exists() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(partial, data)
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise EunoeError(
            f"{path} could not be written: {error.strerror or error}. Free space or choose another --out."
        ) from None


def write_synced(path: Path, data: bytes) -> str:
    """Write ``data`` through to the disk; returns its SHA-256."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames and new files in ``folder`` last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
