"""Files as a test reads them: their texts, or what they are refused with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eunoe.data.records import read_records
from eunoe.errors import EunoeError


def texts(path: Path, **more: Any) -> list[Any]:
    return [record["text"] for record in read_records(str(path), **more)]


def refusal(path: Path | str, **more: Any) -> str:
    with pytest.raises(EunoeError) as caught:
        list(read_records(str(path), **more))
    return str(caught.value)
