"""Over which methods the tests of the contract go: those that installed packages bring, or else all of METHODS.

A test of the contract asks for ``name``, a method that learns a stage, or for ``any_name``, which may learn none. A module that
imports the tests (``from eunoe.contract.test_methods import *``) and sets ``ADDED`` runs them over all of METHODS and its own
rows, as if each were a row of METHODS.
"""

from __future__ import annotations

import pytest

from eunoe.contract.way import DOMAINS
from eunoe.methods import METHODS, Entry


def rows(module: object) -> dict[str, Entry]:
    """The rows that the tests of ``module`` go over."""
    added = getattr(module, "ADDED", None)
    if added is not None:
        return {**METHODS, **added}
    return {name: entry for name, entry in METHODS.items() if entry.package} or dict(METHODS)


def learning(module: object) -> dict[str, Entry]:
    """Those of methods that learn a stage."""
    return {name: row for name, row in rows(module).items() if row.method.stages(DOMAINS, row.settings())}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``name`` or ``any_name`` runs once for each row."""
    for fixture, table in (("name", learning), ("any_name", rows)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, sorted(table(metafunc.module)))


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


__all__ = ["learning", "pytest_generate_tests", "registered", "rows"]
