"""Files as a test reads them: their texts, or what they are refused with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eunoe.data.records import Record, read_rows
from eunoe.errors import EunoeError


def read_records(source: str, **how: Any) -> Iterator[Record]:
    """The rows without their places."""
    return (record for _, record in read_rows(source, **how))


def texts(path: Path, **more: Any) -> list[Any]:
    return [record["text"] for record in read_records(str(path), **more)]


def refusal(path: Path | str, **more: Any) -> str:
    with pytest.raises(EunoeError) as caught:
        list(read_records(str(path), **more))
    return str(caught.value)
