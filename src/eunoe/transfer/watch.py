"""What is seen of a model while it is fine-tuned: its scores and its distance to the pretrained weights, at the steps asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from eunoe.evaluate.evaluator import Score
from eunoe.evaluate.retention import distances


class Watch:
    """Scores and distances at the steps that a transfer's settings ask for (``evaluate_every``, ``observe_every``).

    ``score``: the scores on the test rows now. ``trunk``: compared with ``anchor``, weights of the same names, which are copied.
    """

    def __init__(
        self, score: Callable[[], list[Score]], trunk: nn.Module, anchor: Mapping[str, Tensor], steps: int,
        evaluate_every: float | None, observe_every: float | None,
    ) -> None:  # fmt: skip
        self.score, self.trunk, self.steps = score, trunk, steps
        self.anchor = {n: p.detach().clone() for n, p in anchor.items()} if observe_every else {}
        self.every = [in_steps(evaluate_every, steps), in_steps(observe_every, steps)]
        self.asked = any(self.every)

    def observe(self, step: int) -> dict[str, float]:
        """What is seen after ``step`` (from 1); {} at most steps."""
        seen: dict[str, float] = {}
        evaluate, observe = (every and (step % every == 0 or step == self.steps) for every in self.every)
        if observe or (self.anchor and step == 1):
            seen["anchor_distance"] = distances(self.trunk, self.anchor, ())["total"]
        if evaluate:
            seen.update({score.metric: score.value for score in self.score()})
        return seen


def best_of(observed: list[tuple[int, str, float]], rows: int) -> tuple[list[Score], int]:
    """Of what was observed, (step, metric, value), the scores on ``rows`` test rows at the step with the best first metric, the earliest
    of equals, and that step; ``[], 0`` where none was scored.

    >>> best_of([(2, "accuracy", 0.5), (4, "accuracy", 0.75), (6, "accuracy", 0.75)], 8)[1]
    4
    """
    steps: dict[int, list[Score]] = {}
    for step, metric, value in observed:
        if metric != "anchor_distance":
            steps.setdefault(step, []).append(Score(metric, value, rows))
    if not steps:
        return [], 0
    best_step = max(steps, key=lambda step: (steps[step][0].value, -step))
    return steps[best_step], best_step


def scorings(settings: Any, steps: int) -> int:
    """How often the test rows are scored: on the way, and after the last step."""
    every = in_steps(settings.evaluate_every, steps)
    return 1 if not every else 1 + -(-steps // every)


def no_best(settings: Any) -> str | None:
    """Why there is no best evaluation: there is one."""
    return None if settings.evaluate_every else "evaluate_every is not set: there is one evaluation. Set evaluate_every"


def in_steps(every: float | None, steps: int) -> int:
    """A number of steps, or a share of the run, as steps; 0 for never."""
    if every is None:
        return 0
    return max(1, round(every * steps if every < 1 else every))


__all__ = ["Watch", "best_of", "in_steps", "no_best", "scorings"]
