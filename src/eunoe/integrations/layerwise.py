"""ULMFiT's three techniques in the Trainer of Hugging Face, for any model: layer-wise learning rates, slanted triangle, unfreezing.

Paper: ULMFiT (ACL 2018, https://arxiv.org/abs/1801.06146). Each can be used alone. What trains and how fast is a function of the
number of steps done, so training that is resumed in the middle of unfreezing ends in the same bits.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eunoe.errors import EunoeError
from eunoe.models.depth import depth_groups
from eunoe.optim.schedules import SlantedTriangle
from eunoe.optim.unfreeze import FACTOR, discriminative, unfreezing_phases


def layerwise_groups(
    model: nn.Module, lr: float, *, factor: float = FACTOR, weight_decay: float = 0.0,
    tied: Literal["embeddings", "head"] = "embeddings",
) -> list[dict[str, Any]]:  # fmt: skip
    """Parameter groups for any optimizer: the head learns at ``lr``, each group below at 1 / ``factor`` of the one above it.

    The groups are those of ``eunoe.models.depth.depth_groups`` (embeddings, each layer, head), each with and without weight
    decay: biases and norm weights have none. Frozen weights are left out, but for those that ``unfreezing`` froze and a broken-off run
    left so. Raises ``EunoeError`` for numbers out of range, where every weight is frozen, and for a model whose family is not known.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    >>> groups = layerwise_groups(BertForSequenceClassification(tiny), lr=0.01)
    >>> sorted({round(group["lr"], 5) for group in groups})
    [0.00148, 0.00385, 0.01]
    """
    if not lr > 0 or not factor >= 1 or not weight_decay >= 0:
        raise EunoeError(
            f"layerwise_groups received lr {lr!r}, factor {factor!r} and weight_decay {weight_decay!r}. Give lr above 0, factor of at "
            f"least 1 (the paper's is {FACTOR}) and weight_decay of at least 0."
        )
    by_depth, named, to_train = depth_groups(model, tied=tied), dict(model.named_parameters()), _to_train(model)
    groups: list[dict[str, Any]] = []
    for depth, share in zip(by_depth, discriminative(len(by_depth), factor), strict=True):
        weights = [(name, named[name]) for name in depth.weights if named[name] in to_train]
        for decays in (True, False):
            params = [(name, p) for name, p in weights if (p.ndim > 1) is decays]
            if params:
                decay = weight_decay if decays else 0.0
                groups.append({"params": params, "lr": lr * share, "weight_decay": decay})
    if not groups:
        raise EunoeError("every weight of the model is frozen: there is nothing to train. Set requires_grad on some.")
    return groups


def slanted_triangle(
    optimizer: Optimizer, steps: int, *, cut_frac: float = 0.1, ratio: float = 32.0
) -> SlantedTriangle:
    """A scheduler: over the first ``cut_frac`` of ``steps`` the learning rates rise from 1 / ``ratio`` of their highest, then they fall
    to it. ``eunoe.integrations.trainer.steps_of_run`` says how many steps the Trainer will take.

    Raises ``EunoeError`` for numbers out of range.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.2)
    >>> scheduler = slanted_triangle(optimizer, 100)
    >>> round(optimizer.param_groups[0]["lr"], 6)
    0.1
    """
    try:
        return SlantedTriangle(optimizer, steps, cut_frac, ratio)
    except ValueError as error:
        raise EunoeError(f"slanted_triangle: {error}.") from None


def unfreezing(
    order: Literal["gradual", "chain-thaw", "last"] = "gradual", *, every: int | None = None, most: int | None = None
) -> Unfreezing:
    """A callback for ``Trainer(callbacks=[...])``: the head trains first, and one more group of layers in each phase.

    order: ``gradual`` (ULMFiT), ``chain-thaw`` (the head, then each other group alone from the lowest, then all) or ``last`` (the head
    alone). every: optimizer steps of a phase; default: one pass over the training rows. most: phases before the one in which all
    train; default: as many as there are groups. The last phase lasts to the end of the run.

    Weights that are frozen when training begins stay frozen; when it ends, all are as they were. Works with gradient
    accumulation and across ``resume_from_checkpoint``. In several processes DDP must be told that some weights have no
    gradient: ``ddp_find_unused_parameters=True``. Raises ``EunoeError`` for that, for numbers out of range, and where training begins
    for a run that ends before all groups are unfrozen and for an optimizer without weights that a broken-off run left frozen.

    >>> unfreezing(every=100).phase(250)
    2
    """
    for name, value in (("every", every), ("most", most)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise EunoeError(f"unfreezing: {name} is {value!r}; give a whole number of at least 1, or leave it out.")
    if order not in ("gradual", "chain-thaw", "last"):
        raise EunoeError(f"unfreezing: order is {order!r}; allowed: gradual, chain-thaw, last.")
    if order == "last" and (every or most):
        raise EunoeError("unfreezing: order 'last' has one phase and reads neither every nor most: leave them out.")
    return Unfreezing(order, every, most)


class Unfreezing(TrainerCallback):  # type: ignore[misc]
    """What ``unfreezing`` makes."""

    def __init__(self, order: Literal["gradual", "chain-thaw", "last"], every: int | None, most: int | None) -> None:
        self.order, self.every, self.most = order, every, most
        self._every = every or 1
        self.phases: list[frozenset[int]] = []
        """The groups that train in each phase, once training has begun."""
        self._groups: list[list[nn.Parameter]] = []

    def phase(self, step: int) -> int:
        """The phase that step ``step`` (from 0) falls in, were there no last one."""
        return step // self._every

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for weight in _to_train(
            kwargs["model"]
        ):  # what a broken-off run left frozen: the Trainer's optimizer has to see it
            if not weight.requires_grad:
                _set_waiting(weight, False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, batches = kwargs["model"], kwargs["train_dataloader"]
        if args.world_size > 1 and not args.ddp_find_unused_parameters:
            raise EunoeError(
                "unfreezing in several processes: weights that are frozen have no gradient, which DDP waits for. Set "
                "ddp_find_unused_parameters=True in TrainingArguments."
            )
        if self.every is None:
            try:
                self._every = max(1, -(-len(batches) // args.gradient_accumulation_steps))
            except TypeError:  # a data set that has no length
                raise EunoeError(
                    "unfreezing: the length of a pass over the training rows is not known. Give every=STEPS."
                ) from None
        named, by_depth, to_train = dict(model.named_parameters()), depth_groups(model), _to_train(model)
        optimised = {p for group in kwargs["optimizer"].param_groups for p in group["params"]}
        if lacking := [
            name for name, p in named.items() if p in to_train and not p.requires_grad and p not in optimised
        ]:
            raise EunoeError(
                f"unfreezing: {len(lacking)} weights ({lacking[0]}, ...) are still frozen by a run that was broken off, and the optimizer "
                "was made without them: they would never train. Give unfreezing() to Trainer(callbacks=[...]), not to add_callback, or set "
                "requires_grad on them before the optimizer is made."
            )
        self._groups = [[named[n] for n in group.weights if named[n] in to_train] for group in by_depth]
        self.phases = unfreezing_phases(self.order, len(by_depth), self.most)
        needed = (len(self.phases) - 1) * self._every + 1
        if state.max_steps < needed:
            raise EunoeError(
                f"unfreezing: {len(self.phases)} phases of {self._every} steps need {needed} steps at least, and the run has "
                f"{state.max_steps}: some layers would never train. Train longer, or give a smaller every or most."
            )
        self._set(state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for group in self._groups:
            for weight in group:
                _set_waiting(weight, False)

    def _set(self, step: int) -> None:
        trains = self.phases[min(self.phase(step), len(self.phases) - 1)]
        for i, group in enumerate(self._groups):
            for weight in group:
                _set_waiting(weight, i not in trains)


_WAITS = "_eunoe_waits_for_its_phase"
"""On the weights that ``unfreezing`` trains: is it frozen until its phase? A run that is broken off (an exception, Ctrl-C) leaves it."""


def _set_waiting(weight: nn.Parameter, waits: bool) -> None:
    weight.requires_grad_(not waits)
    setattr(weight, _WAITS, waits)


def _to_train(model: nn.Module) -> set[nn.Parameter]:
    """Trainable weights, now or in a later phase. Whoever froze or freed any after a run was broken off is taken at their word."""
    known = [p for p in model.parameters() if hasattr(p, _WAITS)]
    if any(p.requires_grad is getattr(p, _WAITS) for p in known):
        for p in known:
            delattr(p, _WAITS)
    return {p for p in model.parameters() if p.requires_grad or getattr(p, _WAITS, False)}


__all__ = ["Unfreezing", "layerwise_groups", "slanted_triangle", "unfreezing"]
