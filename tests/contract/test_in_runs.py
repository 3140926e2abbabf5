"""Every method of METHODS in whole runs. The made-up ones have runs of their own (test_runs.py)."""

from eunoe.contract.test_in_runs import *  # noqa: F403

ADDED: dict[str, object] = {}
