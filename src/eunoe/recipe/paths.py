"""Paths in recipes: ``$VARIABLES`` and ``~``."""

from __future__ import annotations

import os
import re

from eunoe.errors import EunoeError


def expand(text: str) -> str:
    """``$SHARED``-like variables and ``~`` in a path; an unset variable is an error. What exists as it stands is taken as it stands."""
    if os.path.lexists(text):
        return text
    out = os.path.expanduser(os.path.expandvars(text))
    unset = None if os.path.lexists(out) else re.search(r"\$\{?(\w+)", out)
    if unset:
        raise EunoeError(f"{text!r} names the environment variable {unset.group(1)}, which is not set. "
                         f"Set it: export {unset.group(1)}=/path/to/folder")  # fmt: skip
    return out
