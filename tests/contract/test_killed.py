"""SIGKILL in every method of METHODS, and in those made up for the hooks that no method of the table uses."""

from eunoe.contract.test_killed import *  # noqa: F403
from tests.contract.made_up import MADE_UP as ADDED  # noqa: F401
