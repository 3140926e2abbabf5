"""Memory that a training step frees stays with the process, so that the next step does not fetch it from the system again.

glibc gives a block of more than 32 MB back as soon as it is freed. A step's logits are such blocks: the system clears
their pages anew in every step, a fifth of an AWD-LSTM's time on one thread. No number changes.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Of mallopt(3)."""
_LARGEST = 2**31 - 1
_AT_ONCE = 64 * 2**20
"""Bytes that the heap grows by at least."""


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; False where there is no glibc, or the user has settings of their own.

    For processes of eunoe's own: what is freed once may stay until the process ends.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - other C libraries give these numbers other meanings
        return all(libc.mallopt(what, value) == 1 for what, value in
                   ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _AT_ONCE)))  # fmt: skip
    except (AttributeError, OSError, TypeError):
        return False


__all__ = ["keep_freed_memory"]
