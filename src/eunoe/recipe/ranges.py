"""What a number or a name of a recipe may be, as types; ``build`` names the place and the value where one is not.

The upper ends are where a slip is certain (a batch of 1e12), not where sense ends.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from eunoe.errors import EunoeError
from eunoe.recipe.names import safe_name


def _different(seeds: list[int]) -> list[int]:
    if not seeds or len(set(seeds)) != len(seeds):
        raise EunoeError(f"give at least one seed, each once; received {seeds}.")
    return seeds


Batch = Annotated[int, Field(ge=1, le=1_000_000)]
"""Rows, blocks or tokens that are held at once."""
Block = Annotated[int, Field(ge=8, le=1_000_000)]
"""Tokens of a block."""
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""Rows or steps over a whole run."""
Epochs = Annotated[float, Field(gt=0, le=1_000_000)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
"""A share that is neither nothing nor all."""
Below1 = Annotated[float, Field(ge=0, lt=1)]
"""A share that may be nothing: a warm-up, a dropout rate."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator of torch, numpy and Python takes."""
Seeds = Annotated[list[Seed], AfterValidator(_different)]
Name = Annotated[str, AfterValidator(safe_name)]
"""Part of a path: 1 to 64 letters, digits, ``-`` and ``_``."""
Threads = Annotated[int, Field(ge=1, le=4096)]
