"""CPT's step: its speed against the released way, in float32 and in bfloat16, its share of the matrix-product peak, and its cost as
domains pile up.

RoBERTa-base's shape (12 layers, width 768, vocabulary 50,265; random weights, dropout 0.1), plug-ins of 512 and 768 inner units,
4 x 164 tokens a step, AdamW, each tensor clipped by itself. Ours is ``eunoe.train.train`` as users run it: masking, blocking,
clipping, the optimizer's step and records included, in float32 and (where the CPU has units for it) in bfloat16. The two and the
released way in float32 take turns step by step; what is compared is the processor time of one thread.

The released way (https://github.com/UIC-Liu-Lab/CPT) is done by plain transformers with the same plug-ins and masks: labels
given, so every position passes the vocabulary product; LayerNorms and the LM head's dense layer train too. It gets ready-made
batches and torch's fused AdamW, which the release has not.

Step cost against finished domains: three models, of which 1, 10 and 100 domains are finished, take turns step by step; one row
of 164 tokens a step, so that what does not depend on tokens (blocking, the optimizer) weighs four times as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForMaskedLM

from benchmarks.arithmetic import Shape, as_released, plugins_alone
from benchmarks.measure import DTYPE, Precision, peak_flops, quartiles, ratio, side_by_side
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks
from eunoe.methods.base import Batches, Method, Stage
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.models.anatomy import anatomy
from eunoe.models.half import can_half
from eunoe.models.heads import lm_loss
from eunoe.recipe import LoopSettings
from eunoe.train import Job

ROWS, ATTENTION, FFN, ROUNDS, AGAINST = 4, 512, 768, 4, 12
AIMS: dict[Precision, float] = {"float32": 1.8, "bf16": 2.3}
"""What is aimed at against the released way in float32."""
SHAPE = Shape(layers=12, width=768, inner=3072, vocabulary=50265, block=164)
FINISHED = (1, 10, 100)


def model(domains: int, shape: Shape = SHAPE) -> tuple[RobertaForMaskedLM, Cpt]:
    """A masked LM of random weights with CPT's plug-ins, to learn so many domains."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers, intermediate_size=shape.inner,
        num_attention_heads=shape.width // 64, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    lm = RobertaForMaskedLM(config)
    return lm, Cpt(lm, CptSettings(attention_size=ATTENTION, ffn_size=FFN), [str(i) for i in range(domains)])


def batches(steps: int, rows: int = ROWS) -> LMBatches:
    """Blocks of random tokens, masked anew each step as in any training."""
    ids = np.random.default_rng(0).integers(1000, SHAPE.vocabulary, (rows * 8, SHAPE.block)).astype(np.uint16)
    return LMBatches(Blocks(ids, np.array([0, 1, 2, 3]), "random"), "masked", 4, SHAPE.vocabulary, rows, steps, seed=0)


def domain_stage(domain: str, ready: Batches) -> Stage:
    """One domain as a method is told of it."""
    return Stage(name=domain, domains=(domain,), batches=ready)


def job(lm: nn.Module, method: Cpt, domain: str, steps: int, rows: int = ROWS, precision: Precision = "float32") -> Job:
    """One domain to learn with the published settings, as a run composes it."""
    return Job(
        name=domain, model=lm, batches=batches(steps, rows), loss=lm_loss, seed=0, method=method,
        settings=LoopSettings(batch=rows, steps=steps, lr=1e-4, clip_by="tensor", precision=precision),
        optimizer=lambda m: make_optimizer("adamw", m, 1e-4, steps),
    )  # fmt: skip


def released(lm: nn.Module, method: Method, domain: str, ready: LMBatches, half: bool = False) -> Callable[[], float]:
    """A function that makes the next step the released way and returns its seconds; the batches are its own to read.

    ``half``: with products in bfloat16.
    """
    method.begin(domain_stage(domain, ready))
    base = set(anatomy(lm).base.parameters())
    for part in lm.modules():
        if isinstance(part, nn.LayerNorm):
            part.requires_grad_(True)
    for p in lm.parameters():
        if p not in base:  # the LM head; its vocabulary product is the embeddings', which stay
            p.requires_grad_(True)
    lm.train()
    trained = [p for p in lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0, fused=True)
    places = iter(range(len(ready)))

    def step() -> float:
        place = next(places)
        (batch,) = ready[place]
        labels = torch.full((batch["input_ids"].numel(),), -100)
        labels[batch["positions"]] = batch["labels"]
        began = time.perf_counter()
        method.before_step(place, len(ready))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = lm(input_ids=batch["input_ids"], labels=labels.view_as(batch["input_ids"])).loss
        loss.backward()
        method.on_gradients()
        for p in trained:
            if p.grad is not None:
                nn.utils.clip_grad_norm_([p], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()
        return time.perf_counter() - began

    return step


def speed() -> None:
    """Our step in each precision and the released way in float32, in turn."""
    precisions: list[Precision] = ["float32", "bf16"] if can_half() else ["float32"]
    if not can_half():
        print("this CPU has no units for bfloat16 (AVX512_BF16, AMX): no row for bf16")
    steps = ROUNDS + 1
    jobs = [job(*model(1), "0", steps, precision=precision) for precision in precisions]
    *ours, theirs = side_by_side(jobs, released(*model(1), "0", batches(steps)))
    targets = sum(len(batches(steps)[step][0]["labels"]) for step in range(steps)) / (steps * ROWS * SHAPE.block)
    need, tokens = plugins_alone(SHAPE, ATTENTION, FFN, targets), ROWS * SHAPE.block
    for precision, own in zip(precisions, ours, strict=True):
        peak = peak_flops(dtype=DTYPE[precision])
        rates = f"{tokens / median(own):.0f} against {tokens / median(theirs):.0f} tokens/s of one core"
        sums = f"needed {need / 1e6:.0f} MFLOP a token, theirs {as_released(SHAPE, ATTENTION, FFN) / 1e6:.0f}"
        share = f"{need * tokens / median(own) / peak:.0%} of the matrix-product peak ({peak / 1e9:.0f} GFLOP/s)"
        print(
            f"{precision}: {ratio(theirs, own)} the released way's speed in float32, aim {AIMS[precision]} x ({rates}; {sums}); {share}",
            flush=True,
        )


def finish(method: Cpt, domains: int) -> None:
    """Make the first ``domains`` finished, each with random masks over half of the units, as if they had been learnt."""
    for i in range(domains):
        learnt = domain_stage(str(i), batches(1))
        method.begin(learnt)
        method.end(learnt)


def growth() -> None:
    """Processor time of a step against the number of finished domains."""
    jobs = []
    for domains in FINISHED:
        lm, method = model(domains + 1)
        finish(method, domains)
        jobs.append(job(lm, method, str(domains), AGAINST + 1, rows=1))
    columns = side_by_side(jobs)
    for domains, column in zip(FINISHED, columns, strict=True):
        print(
            f"{domains} domains finished: {median(column):.3f} s of one core a step, {quartiles(column, columns[0])} that of {FINISHED[0]}",
            flush=True,
        )


def main() -> None:
    speed()
    growth()
