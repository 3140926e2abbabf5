"""Over which methods the tests of the contract go: those that installed packages bring, or else all of METHODS.

A test of the contract asks for ``name``. A module that imports the tests (``from eunoe.contract.test_methods import *``) and
sets ``ADDED`` runs them over all of METHODS and its own rows, as if each were a row of METHODS.
"""

from __future__ import annotations

import pytest

from eunoe.methods import METHODS, Entry


def rows(module: object) -> dict[str, Entry]:
    """The rows that the tests of ``module`` go over."""
    added = getattr(module, "ADDED", None)
    if added is not None:
        return {**METHODS, **added}
    return {name: entry for name, entry in METHODS.items() if entry.package} or dict(METHODS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``name`` runs once for each row."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", sorted(rows(metafunc.module)))


@pytest.fixture(autouse=True)
def registered(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The added rows stand in METHODS while a test runs; nothing is drawn on the screen, fetched or kept in the user's cache."""
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, entry in getattr(request.module, "ADDED", {}).items():
        monkeypatch.setitem(METHODS, name, entry)


__all__ = ["pytest_generate_tests", "registered", "rows"]
