"""What ULMFiT is set to: its options, the presets, and what they make of a model's groups of layers (arXiv 1801.06146)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from eunoe.choices import written_out
from eunoe.data.collate import row_steps
from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.models.anatomy import RECURRENT, anatomy
from eunoe.models.depth import DepthGroup
from eunoe.models.load import LanguageModel
from eunoe.optim.schedules import SCHEDULES
from eunoe.optim.unfreeze import FACTOR, Order, discriminative
from eunoe.recipe import Batch, Below1, Count, Epochs, Positive, Share
from eunoe.transfer.lm_text import LMStage


@dataclass(kw_only=True)
class UlmfitSettings:
    """ULMFiT; null is what the preset has."""

    preset: Literal["auto", "paper", "scripts", "transformer"] = "auto"
    """``paper`` (arXiv 1801.06146), ``scripts`` (fast.ai's for IMDb) or ``transformer`` (ours: learning rates that a transformer bears);
    auto: paper for an AWD-LSTM, transformer for others."""
    lm: LMStage = field(default_factory=LMStage)
    """Fine-tuning of the language model on the task's text."""
    epochs: Epochs | None = None
    """Passes over the training rows in all phases together."""
    steps: Count | None = None
    """Optimizer steps in all phases together, instead of ``epochs``."""
    batch: Batch | None = None
    """Labelled rows in a step."""
    micro_batch: Batch | None = None
    """Rows or blocks that pass the model at once; batch norm sees as many. Default: all. The streams of an AWD-LSTM's language model pass
    together in any case."""
    lr: Positive | None = None
    """Highest learning rate, of the head."""
    body_lr: Positive | None = None
    """Highest learning rate of the last pretrained layer; null: ``lr`` divided by ``discriminative``."""
    discriminative: Positive | list[Positive] | None = None
    """Each group of layers learns at 1 / this of the one above; 1: all alike. A list: the share of each, the lowest first."""
    unfreeze: Order = "gradual"
    """``gradual``: the head first, one more group in each phase; ``chain-thaw``; ``last``: the head alone; ``none``: all at once."""
    unfreeze_every: Positive | None = None
    """Passes over the rows that a phase lasts; the last phase takes those that are left."""
    unfreeze_most: Count | None = None
    """Phases before the one in which all train, at most; null: one for each group (scripts: 2)."""
    schedule: str | None = None
    """slanted_triangle | constant | linear | cosine, in each phase anew."""
    cut_frac: Share | None = None
    """Share of a phase's steps over which a slanted triangle rises (scripts: 1/3, and 1/8 in the last phase)."""
    ratio: Annotated[float, Field(ge=1)] | None = None
    """How many times the lowest learning rate of a slanted triangle the highest is (scripts: 8)."""
    pooling: Literal["concat", "first", "last", "mean"] = "concat"
    """``concat``: last, max and mean of the states, and the batch-norm head; else one state, and the plain head of ``finetune``."""
    hidden: Batch = 50
    """Width between the two blocks of the batch-norm head."""
    head_dropout: tuple[Below1, Below1] = (0.4, 0.1)
    """Dropout rates of the head's two blocks (the plain head: the second)."""
    dropout: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies the five dropout rates of an AWD-LSTM, in both steps; other models keep the dropout of their configuration."""
    max_length: Batch | None = None
    """Tokens of a row; longer ones are cut. null: an AWD-LSTM with concat pooling reads rows whole, however long, and pools the last
    ``pooled`` tokens; else 1,400."""
    chunk: Batch | None = None
    """Tokens that are read at once (BPT3C); null: an AWD-LSTM's 70, and for other models the whole row."""
    pooled: Batch = 1400
    """Last tokens of a row that are pooled at most."""
    alpha: Annotated[float, Field(ge=0)] | None = None
    """AWD-LSTM: activation regularisation of the classifier."""
    beta: Annotated[float, Field(ge=0)] | None = None
    """AWD-LSTM: temporal activation regularisation of the classifier."""
    optimizer: Any = None
    """A name of the optimizer table, or a mapping with its options."""
    clip: Positive | None = None
    """Largest gradient norm of the classifier."""
    weight_decay: Below1 | None = None
    """Pull toward zero, times the learning rate; read by optimizers that have it."""
    start: Literal["pretrained", "random"] = "pretrained"
    """``random``: the model starts afresh: the paper's "without pretraining", and with ``lm: {tune: none}`` its "from scratch"."""
    backward: str | None = None
    """A language model that reads backward, to be fine-tuned in the same way; class probabilities are averaged."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """``auto``: bf16 on a GPU that has it and on a CPU with units for it (AVX512_BF16, AMX), else float32."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""


_PAPER: dict[str, Any] = {
    "epochs": 50.0, "batch": 64, "lr": 0.01, "discriminative": FACTOR, "unfreeze_every": 1.0, "schedule": "slanted_triangle",
    "cut_frac": 0.1, "ratio": 32.0, "chunk": 70, "alpha": 2.0, "beta": 1.0, "clip": 0.25, "weight_decay": 1.2e-6,
    "optimizer": {"name": "adamw", "betas": (0.7, 0.99)},
    "lm": {
        "epochs": 50.0, "batch": 64, "block": 70, "lr": 0.004, "discriminative": FACTOR, "schedule": "slanted_triangle",
        "cut_frac": 0.1, "ratio": 32.0, "clip": 0.25, "weight_decay": 1.2e-6,
    },
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "scripts": {
        **_PAPER, "batch": 32, "unfreeze_most": 2, "cut_frac": None, "ratio": 8.0, "clip": 25.0, "weight_decay": 1e-6,
        "optimizer": {"name": "adamw", "betas": (0.8, 0.99)},
        "lm": {**_PAPER["lm"], "discriminative": [1 / 6, 1 / 3, 1.0, 1 / 2], "clip": 0.3, "weight_decay": 1e-7},
    },
    "transformer": {
        **_PAPER, "epochs": 8.0, "batch": 32, "lr": 1e-3, "body_lr": 1e-4, "discriminative": 1.2, "unfreeze_every": 0.5,
        "max_length": 128, "chunk": None, "alpha": 0.0, "beta": 0.0, "clip": 1.0, "weight_decay": 0.01,
        "optimizer": {"name": "adamw", "betas": (0.9, 0.999)},
        "lm": {**_PAPER["lm"], "epochs": 3.0, "batch": 32, "block": 128, "lr": 1e-4, "discriminative": 1.2, "clip": 1.0,
               "weight_decay": 0.01},
    },
}  # fmt: skip
"""What null stands for. The paper tuned its epochs for each task and says of the optimizer's clipping and decay only that they are
AWD-LSTM's; 50 epochs are those of its ablation."""
CUT = 1400
"""``max_length`` where nothing sets it and memory grows with a row."""
SCRIPTS_CUT, SCRIPTS_LAST_CUT = 1 / 3, 1 / 8
"""``cut_frac`` of the scripts' phases, where none is given, and of their last one."""


def filled(settings: UlmfitSettings, preset: str) -> UlmfitSettings:
    """The settings with the preset's values where they have none and something reads them."""
    values = PRESETS[preset]
    own = {k: v for k, v in values.items() if k != "lm" and getattr(settings, k) is None}
    lm = {k: v for k, v in values["lm"].items() if getattr(settings.lm, k) is None}
    whole = replace(settings, preset=preset, lm=replace(settings.lm, **lm), **own)  # type: ignore[arg-type]
    own = {name: None for name in _unread(whole) if name in own}
    lm = {name: None for name in _unread(whole.lm) if name in lm}
    return replace(whole, lm=replace(whole.lm, **lm), **own)


def _unread(settings: UlmfitSettings | LMStage) -> dict[str, str]:
    """Keys that the other settings leave unread, each with the reason."""
    unread: dict[str, str] = {}
    if settings.schedule not in (None, "slanted_triangle"):
        unread |= dict.fromkeys(("cut_frac", "ratio"), f"schedule: {settings.schedule}")
    if settings.steps is not None:
        unread["epochs"] = f"steps: {settings.steps}"
    if isinstance(settings, LMStage):
        if settings.tune == "none":
            names = (
                "epochs",
                "steps",
                "batch",
                "block",
                "lr",
                "discriminative",
                "schedule",
                "cut_frac",
                "ratio",
                "clip",
                "weight_decay",
            )
            unread = dict.fromkeys(names, "tune: none")
        return unread
    if settings.unfreeze in ("none", "last"):
        unread |= dict.fromkeys(("unfreeze_every", "unfreeze_most"), f"unfreeze: {settings.unfreeze}")
    if isinstance(settings.discriminative, list):
        unread["body_lr"] = "discriminative: [...]"
    if settings.unfreeze == "last":
        unread |= dict.fromkeys(("discriminative", "body_lr"), "unfreeze: last")
    if settings.pooling != "concat":
        unread |= dict.fromkeys(("chunk", "alpha", "beta"), f"pooling: {settings.pooling}")
    return unread


def refuse_unread(settings: UlmfitSettings, words: bool, objective: str, where: str) -> None:
    """Raise ``EunoeError`` for a setting that is not the default and that this kind of model leaves unread.

    ``words``: is its tokenizer AWD-LSTM's, which takes the words of the task?
    """
    lm, plain = settings.lm, LMStage()
    unread: dict[str, str] = {}
    if not words or lm.vocabulary == "kept":
        why = f"vocabulary: {lm.vocabulary}" if words else "a tokenizer that keeps its vocabulary"
        unread = dict.fromkeys(("largest", "least"), why)
    if not words:
        unread["vocabulary"] = "a tokenizer that keeps its vocabulary"
    if lm.tune == "none":
        unread |= dict.fromkeys(("mask_rate", "max_length"), "tune: none")
    elif objective != "masked":
        unread["mask_rate"] = "a model that learns by the next token"
    for name, why in unread.items():
        if getattr(lm, name) != getattr(plain, name):
            raise EunoeError(f"{where}.lm.{name} is not read with {why}; leave it out.")
    if settings.pooling != "concat" and settings.head_dropout[0] != UlmfitSettings.head_dropout[0]:
        raise EunoeError(f"{where}.head_dropout: the first dropout rate is not read with pooling: {settings.pooling}; set it to "
                         f"{UlmfitSettings.head_dropout[0]:g}.")  # fmt: skip


def for_model(settings: UlmfitSettings, lm: LanguageModel) -> UlmfitSettings:
    """As ``filled``, for a model: ``auto`` is decided by its kind."""
    recurrent = anatomy(lm.model).model_type in RECURRENT
    preset = settings.preset if settings.preset != "auto" else "paper" if recurrent else "transformer"
    whole = filled(settings, preset)
    if whole.max_length is None and not (recurrent and whole.pooling == "concat"):
        return replace(whole, max_length=CUT)  # what reads a row at once, or keeps all its chunks, has to have an end
    return whole


def resolve(settings: UlmfitSettings, where: str) -> UlmfitSettings:
    """Names looked up, and the preset's values written out where it is named; ``auto`` waits for the model."""
    for stage, place in ((settings, where), (settings.lm, f"{where}.lm")):
        if stage.schedule is not None:
            lookup({**SCHEDULES, "slanted_triangle": None}, stage.schedule, f"schedule in {place}")
        if isinstance(stage.discriminative, float) and stage.discriminative < 1:
            raise EunoeError(f"{place}.discriminative is {stage.discriminative:g}; lower layers learn slower: give 1 or more (the "
                             f"paper: {FACTOR}).")  # fmt: skip
        for name, why in _unread(stage).items():
            if getattr(stage, name) is not None:
                raise EunoeError(f"{place}.{name} is not read with {why}; leave it out.")
    if settings.pooling != "concat" and (settings.hidden, settings.pooled) != (
        UlmfitSettings.hidden,
        UlmfitSettings.pooled,
    ):
        raise EunoeError(f"{where}: hidden and pooled are not read with pooling: {settings.pooling}; leave them out.")
    if settings.preset != "auto":
        settings = filled(settings, settings.preset)
    if settings.optimizer is not None:
        settings = _one_decay(settings, written_out(settings.optimizer, f"{where}.optimizer"), where)
    return settings


def _one_decay(settings: UlmfitSettings, optimizer: dict[str, Any], where: str) -> UlmfitSettings:
    """The optimizer written out without its decay, which ``weight_decay`` and ``lm.weight_decay`` are."""
    given = isinstance(settings.optimizer, dict) and "weight_decay" in settings.optimizer
    if given and optimizer["weight_decay"] != settings.weight_decay:
        raise EunoeError(f"{where}.optimizer.weight_decay is {optimizer['weight_decay']:g}: the classifier and the language model decay by "
                         f"{where}.weight_decay and {where}.lm.weight_decay. Set those, and leave this one out.")  # fmt: skip
    return replace(settings, optimizer={k: v for k, v in optimizer.items() if k != "weight_decay"})


def phase_steps(settings: UlmfitSettings, rows: int, phases: int, where: str) -> list[int]:
    """Optimizer steps of each phase; raises ``EunoeError`` where the last would have none."""
    assert settings.batch is not None
    total = row_steps(rows, settings.batch, settings.epochs or 1.0, settings.steps)
    if phases == 1:
        return [total]
    every = row_steps(rows, settings.batch, settings.unfreeze_every or 1.0)
    last = total - every * (phases - 1)
    if last < 1:
        raise EunoeError(
            f"{where}: {phases} phases of unfreezing of {every} steps each ({settings.unfreeze_every} passes) are longer than the "
            f"{total} steps of training, so all layers would never train together. Raise epochs, lower unfreeze_every, or limit the "
            "phases with unfreeze_most."
        )
    return [every] * (phases - 1) + [last]


def wrong_shares(given: list[float], groups: int, where: str) -> EunoeError:
    return EunoeError(f"{where} lists {len(given)} shares, but the model has {groups} groups of layers (`eunoe.models.depth`). Give one "
                      f"for each, the lowest first, or a factor such as {FACTOR}.")  # fmt: skip


def shares_of(
    factor: float | list[float], body: float | None, groups: Sequence[DepthGroup], where: str
) -> dict[str, float]:
    """Name of each weight -> share of the learning rate. ``body``: that of the highest group below the head."""
    if isinstance(factor, list):
        if len(factor) != len(groups):
            raise wrong_shares(factor, len(groups), where)
        shares = factor
    elif body is None:
        shares = discriminative(len(groups), factor)
    else:
        shares = [body * share for share in discriminative(len(groups) - 1, factor)] + [1.0]
    return {name: share for group, share in zip(groups, shares, strict=True) for name in group.weights}


__all__ = [
    "PRESETS",
    "SCRIPTS_CUT",
    "SCRIPTS_LAST_CUT",
    "UlmfitSettings",
    "filled",
    "for_model",
    "phase_steps",
    "refuse_unread",
    "resolve",
    "shares_of",
    "wrong_shares",
]
