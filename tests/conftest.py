"""Shared by all tests: no network, few threads, and the one helper that finds the developers' shared folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("EUNOE_JOBS", "1")  # in this process, where tests can look into it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; workers that share the cores only get in each other's way

SHARED = Path(os.environ.get("EUNOE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(relative: str) -> Path:
    """A path below the developers' shared folder (``EUNOE_SHARED``, else ``../shared``); skips where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{path} is not here: set EUNOE_SHARED to the folder that holds {relative}")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenised text goes to a folder of the test, never to the user's cache."""
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power: a killed process loses nothing that it wrote, and a hundred syncs a run cost more than its training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        yield
