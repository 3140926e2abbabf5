"""The contract in two processes, over METHODS and the made-up methods."""

from eunoe.contract.test_two_processes import *  # noqa: F403
from tests.contract.made_up import MADE_UP as ADDED  # noqa: F401
