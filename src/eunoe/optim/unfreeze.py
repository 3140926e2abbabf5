"""Which groups of layers train when, and at which share of the learning rate: ULMFiT (ACL 2018, https://arxiv.org/abs/1801.06146).

Groups are numbered from the lowest (0: embeddings) to the highest (the head). Discriminative fine-tuning gives group l the
learning rate eta^{l-1} = eta^l / 2.6; gradual unfreezing trains the last group first and one more in each phase; chain-thaw, which
the paper compares with, trains the new head, then each other group alone from the lowest on, then all.
"""

from __future__ import annotations

from typing import Literal

Order = Literal["none", "last", "gradual", "chain-thaw"]
"""``none``: all train from the start; ``last``: the head alone, to the end."""
FACTOR = 2.6
"""The paper's factor between the learning rates of neighbouring groups."""


def unfreezing_phases(order: Order, groups: int, most: int | None = None) -> list[frozenset[int]]:
    """The groups that train in each phase; the last phase lasts to the end of the run.

    ``most``: phases before the one in which all train, at most (the released scripts have 2); what is still frozen is then
    unfrozen at once. Raises ``ValueError`` for an unknown order, or fewer than one group.

    >>> [sorted(phase) for phase in unfreezing_phases("gradual", 3)]
    [[2], [1, 2], [0, 1, 2]]
    >>> [sorted(phase) for phase in unfreezing_phases("chain-thaw", 3)]
    [[2], [0], [1], [0, 1, 2]]
    """
    if groups < 1:
        raise ValueError(f"groups {groups}: a model has one group at least")
    whole, last = frozenset(range(groups)), frozenset([groups - 1])
    if order == "none":
        return [whole]
    if order == "last":
        return [last]
    if order == "gradual":
        before = [frozenset(range(i, groups)) for i in range(groups - 1, 0, -1)]
    elif order == "chain-thaw":
        before = [last, *(frozenset([i]) for i in range(groups - 1))] if groups > 1 else []
    else:
        raise ValueError(f"unknown order {order!r}; allowed: none, last, gradual, chain-thaw")
    return [*before[:most], whole]


def discriminative(groups: int, factor: float = FACTOR) -> list[float]:
    """What the learning rate of each group is multiplied by: 1 for the last, 1 / ``factor`` for the one below it, and so on.

    >>> [round(share, 4) for share in discriminative(3)]
    [0.1479, 0.3846, 1.0]
    """
    return [factor ** (i + 1 - groups) for i in range(groups)]


__all__ = ["FACTOR", "Order", "discriminative", "unfreezing_phases"]
