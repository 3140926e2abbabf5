"""The message of the one error that something ends in."""

from __future__ import annotations

from typing import Any

import pytest

from eunoe.errors import EunoeError


def refusal(call: Any, *args: Any, **more: Any) -> str:
    """What ``call`` refuses its arguments with."""
    with pytest.raises(EunoeError) as caught:
        call(*args, **more)
    return str(caught.value)
