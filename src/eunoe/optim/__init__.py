"""Optimizers that remember: RecAdam, its groups, and the table of optimizers a recipe may name."""

from eunoe.optim.groups import anchored_groups, param_groups
from eunoe.optim.protect import Protected
from eunoe.optim.recadam import RecAdam
from eunoe.optim.schedules import SCHEDULES, make_scheduler
from eunoe.optim.table import OPTIMIZERS

__all__ = ["OPTIMIZERS", "SCHEDULES", "Protected", "RecAdam", "anchored_groups", "make_scheduler", "param_groups"]
