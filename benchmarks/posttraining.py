"""Post-training's step: our loop against the same Hugging Face model run plainly (labels given, all positions scored).

Two shapes with random weights and dropout 0.1: MiniLM (6 layers, width 384, vocabulary 30,522; 32 x 128 tokens a step) and
RoBERTa-base (12 layers, width 768, vocabulary 50,265; 8 x 128). Two ways: all weights train; only CPT's plug-ins train on the
frozen model (the plain loop has the same plug-ins and frozen weights). Each in float32 and in bfloat16 (autocast), against the
plain loop in the same precision, and our bfloat16 against our float32.

Ours is ``eunoe.train.train`` as users run it (masking, clipping and records included); the plain loop gets ready-made batches. The
four take turns step by step, and what is compared is the processor time of one thread. The share is of the matrix-product
peak of the same thread in the same precision, measured in the same run, for needed arithmetic (``benchmarks/arithmetic.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from benchmarks.arithmetic import Shape, all_weights, plugins_alone
from benchmarks.measure import DTYPE, Precision, peak_flops, ratio, side_by_side
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks
from eunoe.methods import METHODS
from eunoe.methods.base import Method, Stage
from eunoe.models.half import can_half
from eunoe.models.heads import lm_loss
from eunoe.recipe import LoopSettings
from eunoe.train import Job

ROUNDS = 2
"""Steps of each that count; one before them does not."""


@dataclass(frozen=True)
class Model:
    """A shape, the rows of a step, its heads, and the sizes of CPT's plug-ins."""

    shape: Shape
    rows: int
    heads: int
    roberta: bool = False

    def make(self, frozen: bool) -> tuple[nn.Module, Method]:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "vocab_size": self.shape.vocabulary, "hidden_size": self.shape.width, "num_hidden_layers": self.shape.layers,
            "num_attention_heads": self.heads, "intermediate_size": self.shape.inner,
        }  # fmt: skip
        model: nn.Module = (
            RobertaForMaskedLM(RobertaConfig(**sizes, max_position_embeddings=514, type_vocab_size=1))
            if self.roberta
            else BertForMaskedLM(BertConfig(**sizes))
        )
        entry = METHODS["cpt" if frozen else "ncl"]
        return model, entry.method(model, entry.settings(), ["d"])

    def batches(self, steps: int) -> LMBatches:
        drawn = np.random.default_rng(0).integers(
            min(1000, self.shape.vocabulary // 2), self.shape.vocabulary, (self.rows * 8, self.shape.block)
        )
        blocks = Blocks(drawn.astype(np.uint16), np.array([0, 101, 102, 103]), "random")
        return LMBatches(blocks, "masked", 103, self.shape.vocabulary, self.rows, steps, seed=0)


MODELS = {
    "MiniLM, 32 x 128": Model(Shape(layers=6, width=384, inner=1536, vocabulary=30522, block=128), 32, 12),
    "RoBERTa-base, 8 x 128": Model(Shape(layers=12, width=768, inner=3072, vocabulary=50265, block=128), 8, 12, True),
}
WAYS = {
    "all weights train": (False, {"float32": 2.0, "bf16": 2.5}),
    "frozen model, CPT plug-ins train": (True, {"float32": 1.8, "bf16": 2.3}),
}
"""Is the model frozen, and what is aimed at against the plain loop."""
AIM_HALF = 1.7
"""What is aimed at for our bf16 against our float32."""


def ours(model: Model, frozen: bool, precision: Precision) -> Job:
    """Our training, as a run composes it."""
    lm, method = model.make(frozen)
    steps = ROUNDS + 1
    settings = LoopSettings(batch=model.rows, steps=steps, lr=1e-4, precision=precision)
    return Job(name="d", model=lm, batches=model.batches(steps), loss=lm_loss, settings=settings, seed=0, method=method,
               optimizer=lambda m: make_optimizer("adamw", m, 1e-4, steps))  # fmt: skip


def plain(model: Model, frozen: bool, precision: Precision) -> Callable[[], None]:
    """A function that makes one step of the plain loop."""
    lm, method = model.make(frozen)
    batches = model.batches(ROUNDS + 1)
    if frozen:
        method.begin(Stage(name="d", domains=("d",), batches=batches))
        method.before_step(len(batches) // 2, len(batches))
    lm.train()
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-4, fused=True)
    ready = _labelled(batches)

    def step() -> None:
        ids, labels = next(ready)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = lm(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _labelled(batches: LMBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids, and labels at all positions (-100 where there is no target), over and over."""
    ready = []
    for (batch,) in (batches[step] for step in range(len(batches))):
        labels = torch.full((batch["input_ids"].numel(),), -100)
        labels[batch["positions"]] = batch["labels"]
        ready.append((batch["input_ids"], labels.view_as(batch["input_ids"])))
    return cycle(ready)


def main() -> None:
    precisions: list[Precision] = ["float32", "bf16"] if can_half() else ["float32"]
    if not can_half():
        print(
            "this CPU has no units for bfloat16 (AVX512_BF16, AMX): no rows for bf16, which is slower than float32 here"
        )
    peaks = {precision: peak_flops(dtype=DTYPE[precision]) for precision in precisions}
    for name, model in MODELS.items():
        for way, (frozen, aims) in WAYS.items():
            columns = side_by_side(
                [ours(model, frozen, precision) for precision in precisions],
                *(plain(model, frozen, precision) for precision in precisions),
            )
            own_times, theirs = columns[: len(precisions)], columns[len(precisions) :]
            for precision, own, other in zip(precisions, own_times, theirs, strict=True):
                needed, tokens = _needed(model, frozen), model.rows * model.shape.block
                share = needed * tokens / median(own) / peaks[precision]
                print(f"{name}, {way}, {precision}: {ratio(other, own)} the plain loop's speed, aim {aims[precision]} x; "
                      f"{tokens / median(own):.0f} tokens/s of one core, {share:.0%} of its matrix-product peak "
                      f"({needed / 1e6:.0f} MFLOP a token needed, {peaks[precision] / 1e9:.0f} GFLOP/s peak)", flush=True)  # fmt: skip
            if len(own_times) == 2:
                print(
                    f"{name}, {way}: bf16 is {ratio(*own_times)} as fast as our own float32, aim {AIM_HALF} x",
                    flush=True,
                )


def _needed(model: Model, frozen: bool) -> float:
    """FLOP a token that a step cannot do without."""
    batches = model.batches(ROUNDS + 1)
    targets = sum(len(batches[s][0]["labels"]) for s in range(len(batches))) / (
        len(batches) * model.rows * model.shape.block
    )
    return (
        plugins_alone(model.shape, round(model.shape.width * 2 / 3), model.shape.width, targets)
        if frozen
        else all_weights(model.shape, targets)
    )
