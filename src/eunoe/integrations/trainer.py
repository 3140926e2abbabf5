"""RecAdam in the Trainer of Hugging Face: one argument of ``Trainer``, and the loop stays theirs.

Paper: RecAdam ("Recall and Learn", EMNLP 2020, https://arxiv.org/abs/2004.12651). ``Trainer(optimizer_cls_and_kwargs=(cls,
kwargs))`` calls an optimizer class with the Trainer's own two groups, decay and no decay, which know no anchors. Whatever
is no optimizer class it calls as ``cls()(model, **kwargs)``: so here ``cls`` is ``Maker``, which makes the groups from the
model.

Different from anchoring there and then: the anchors are taken when ``recadam`` is called. The Trainer makes its optimizer
after ``resume_from_checkpoint`` has put trained weights into the model, and those cannot be the anchor. The learning rate and all else
that ``TrainingArguments`` has a field for is read from it, when the optimizer is made: a hyperparameter search changes it
on the way.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from math import ceil, floor, inf
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from eunoe.errors import EunoeError
from eunoe.integrations.layerwise import layerwise_groups, slanted_triangle, unfreezing
from eunoe.lookup import unknown
from eunoe.optim import advice
from eunoe.optim.groups import Anchor, anchored_groups
from eunoe.optim.names import plain_name
from eunoe.optim.table import OPTIMIZERS, RecAdamSettings
from eunoe.recipe import build

if TYPE_CHECKING:
    from transformers import TrainingArguments

THEIRS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "adam_beta1 and adam_beta2",
    "eps": "adam_epsilon",
}
"""What ``TrainingArguments`` decides, and its fields."""
OURS = tuple(field.name for field in fields(RecAdamSettings) if field.name not in THEIRS)
"""What ``recadam`` takes."""
IGNORED = ("optim_args", "optim_target_modules")
"""Fields of ``TrainingArguments`` for other optimizers than RecAdam."""


def recadam(
    model: nn.Module,
    args: TrainingArguments,
    *,
    anchor: Anchor = None,
    free: Collection[str] = (),
    rows: int | None = None,
    **settings: Any,
) -> tuple[type[Maker], dict[str, Any]]:
    """What ``Trainer(optimizer_cls_and_kwargs=...)`` takes, so that the Trainer trains with RecAdam.

    model: as it is before any training: its weights, or ``anchor`` (a state dict, or a safetensors file or checkpoint
    folder, which is only mapped into memory), are what is recalled. Weights outside the base model (a new head) have no
    anchor. Call again for another model; with ``model_init`` give ``model_init()``.
    free: parts of the base model that are new and have no anchor either, as in ``anchored_groups``.
    args: the Trainer's own; its learning rate, weight decay, betas, epsilon, schedule and number of steps hold. Its warm-up is that of
    transformers, whose first step has the learning rate 0 (``eunoe.optim.make_scheduler``'s has not: see there, and ``optimizers=``
    of ``Trainer``).
    rows: training rows, from which the length of the run follows where ``args.max_steps`` does not give it.
    settings: ``gamma``, ``anneal``, ``k``, ``rise``, ``t0``, ``weight``, ``correct_bias``, ``form``, as in
    ``eunoe.optim.table.RecAdamSettings``; ``t0`` below 1 and ``rise`` are shares of the run.

    Checkpoints of the Trainer hold no anchor but its fingerprint; resuming over other anchors is refused. Settings under
    which nothing is pulled or nothing is learnt are warned about, as ``eunoe finetune`` does. Works with gradient
    accumulation, half precision, data parallel and FSDP2; not with DeepSpeed, which flattens the weights.

    Raises ``EunoeError`` for unknown settings and those that ``args`` has, fields of ``args`` that RecAdam would not read
    (another ``optim``), shares of a run of unknown length, weights that no process may anchor to, and what ``RecAdam`` and
    ``anchored_groups`` refuse.

    >>> import tempfile
    >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    >>> shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    >>> model = BertForSequenceClassification(BertConfig(**shape))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     args = TrainingArguments(folder, max_steps=1000, learning_rate=2e-5, report_to="none")
    ...     trainer = Trainer(model, args, optimizer_cls_and_kwargs=recadam(model, args, t0=0.25, rise=0.2))
    >>> type(trainer.create_optimizer()).__name__
    'RecAdam'
    """
    if not isinstance(model, nn.Module) or not hasattr(args, "learning_rate"):
        raise EunoeError(
            f"recadam takes the model and then its TrainingArguments; received {type(model).__name__} and "
            f"{type(args).__name__}. As in: recadam(model, args, t0=0.25)."
        )
    if args.deepspeed:
        raise EunoeError(
            "recadam does not work with DeepSpeed, which flattens the weights, so that none is beside its anchor any "
            "more. Use data parallel or FSDP2."
        )
    _refuse_unread(args)
    anchors, unanchored = _split(anchored_groups(model, anchor=anchor, free=free))
    if any(value.is_meta for value in anchors.values()):
        raise EunoeError(
            "the model's weights are not loaded in this process (they are on the meta device), so they cannot be the anchor. "
            "Name the checkpoint that the model comes from: recadam(model, args, anchor=FOLDER)."
        )
    kwargs = {"args": args, "anchor": anchors, "free": unanchored, "rows": rows, "settings": settings}
    Maker()(model, **kwargs)  # once now, because what is wrong should be said now
    _warn(args, rows, settings)
    return Maker, kwargs


class Maker:
    """What the Trainer makes and calls with its model; see ``recadam``."""

    def __call__(
        self,
        model: nn.Module,
        *,
        args: TrainingArguments,
        anchor: Mapping[str, Tensor],
        free: frozenset[str],
        rows: int | None,
        settings: Mapping[str, Any],
    ) -> Optimizer:
        """RecAdam for the trainable weights of ``model``; ``free``: the names that are meant to have no anchor."""
        whole, steps = whole_settings(args, settings), steps_of_run(args, rows)
        if steps is None and (0 < whole.t0 < 1 or whole.rise is not None):
            raise EunoeError(
                f"t0 {whole.t0:g} and rise {whole.rise} are shares of the run, but the length of the run is not known. Set "
                "max_steps in TrainingArguments, or (without auto_find_batch_size) give rows=len(train_dataset)."
            )
        names = (plain_name(name) for name, p in model.named_parameters() if p.requires_grad)
        lost = [name for name in names if name not in anchor and name not in free]
        if lost:
            raise EunoeError(
                f"{len(lost)} trainable weights have no anchor, because they were frozen or not there when recadam was "
                f"called: {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Unfreeze them before that call."
            )
        return OPTIMIZERS["recadam"].build(model, whole, args.learning_rate, steps, anchor, free)


def steps_of_run(args: TrainingArguments, rows: int | None) -> int | None:
    """Optimizer steps that the Trainer will take: ``args.max_steps``, else from the ``rows`` of its training set.

    None where it is not known: without ``rows``, and where the Trainer may change the batch (``auto_find_batch_size``).
    """
    if args.max_steps > 0:
        return int(args.max_steps)
    if rows is None or args.auto_find_batch_size:
        return None
    batches: int = rows
    for share in (args.train_batch_size, args.world_size):  # rows -> batches -> batches of one process
        batches = floor(batches / share) if args.dataloader_drop_last else ceil(batches / share)
    steps: int = ceil(args.num_train_epochs * max(ceil(batches / args.gradient_accumulation_steps), 1))
    return steps


def whole_settings(args: TrainingArguments, settings: Mapping[str, Any]) -> RecAdamSettings:
    """The settings given to ``recadam`` and those that ``TrainingArguments`` has; raises ``EunoeError`` for others."""
    for name in settings:
        if name in THEIRS:
            raise EunoeError(f"{name} is the Trainer's: set {THEIRS[name]} in TrainingArguments.")
        if name not in OURS:
            raise unknown(name, OURS, "setting of recadam")
    theirs = {
        "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon, "weight_decay": args.weight_decay,
    }  # fmt: skip
    given = {name: "inf" if value == inf else value for name, value in settings.items()}
    return build(RecAdamSettings, {**theirs, **given}, "recadam")


def _split(groups: list[dict[str, Any]]) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The anchors by the weight's name, and the names of weights that have none."""
    anchors: dict[str, Tensor] = {}
    free: set[str] = set()
    for group in groups:
        names = [plain_name(name) for name, _ in group["params"]]
        if group["anchor"] is None:
            free.update(names)
        else:
            anchors.update(zip(names, group["anchor"], strict=True))
    return anchors, frozenset(free)


def _refuse_unread(args: TrainingArguments) -> None:
    """What ``args`` says about the optimizer and ``optimizer_cls_and_kwargs`` makes the Trainer ignore in silence."""
    optim = str(getattr(args.optim, "value", args.optim))
    if optim not in ("adamw_torch", "adamw_torch_fused"):
        raise EunoeError(f"optim is {optim} in TrainingArguments, but recadam makes the optimizer: leave optim out.")
    for name in IGNORED:
        if getattr(args, name):
            raise EunoeError(
                f"{name} is {getattr(args, name)!r} in TrainingArguments, and RecAdam reads none: leave it out."
            )


def shares_of_rate(args: TrainingArguments, steps: int) -> list[float] | None:
    """What the Trainer's schedule multiplies the learning rate by in each of ``steps``; None where the loss decides it."""
    named, kwargs = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)), args.lr_scheduler_kwargs
    stand_in = SGD([nn.Parameter(Tensor([0.0]))], lr=args.learning_rate)
    try:
        scheduler = get_scheduler(named, stand_in, args.get_warmup_steps(steps), steps, kwargs)
    except (TypeError, ValueError) as error:
        raise EunoeError(
            f"TrainingArguments have lr_scheduler_type {named} with lr_scheduler_kwargs {kwargs}, which transformers refuses: "
            f"{error}. Give what that schedule takes."
        ) from error
    if not isinstance(scheduler, LambdaLR):
        return None
    return [float(scheduler.lr_lambdas[0](step)) for step in range(steps)]


def _warn(args: TrainingArguments, rows: int | None, settings: Mapping[str, Any]) -> None:
    """What the settings will not do, as Python warnings at the line that called ``recadam``."""
    steps = steps_of_run(args, rows)
    shares = None if steps is None else shares_of_rate(args, steps)
    lines = [] if shares is None else advice.foreseen(whole_settings(args, settings), args.learning_rate, shares)
    if args.warmup_steps and getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) == "constant":
        lines.append(
            f"warmup_steps is {args.warmup_steps:g}, but the Trainer's schedule 'constant' has no warm-up: take "
            "lr_scheduler_type='constant_with_warmup'."
        )
    for line in lines:
        warnings.warn(line, stacklevel=3)


__all__ = [
    "Maker", "layerwise_groups", "recadam", "shares_of_rate", "slanted_triangle", "steps_of_run", "unfreezing", "whole_settings",
]  # fmt: skip
