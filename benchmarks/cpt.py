"""CPT's step: tokens/s against the released way, its share of the machine's matrix-product peak, and its cost as domains
pile up.

RoBERTa-base's shape (12 layers, width 768, vocabulary 50,265; random weights, dropout 0.1), plug-ins of 512 and 768 inner units,
4 x 164 tokens a step, float32, two threads, AdamW, each tensor clipped by itself. Ours is ``eunoe.train.train`` as users run
it: masking, blocking, clipping, the optimizer's step and records included. After six of its steps the others take
their turn: products of two 2048 x 2048 matrices (the peak), and six steps the released way. The first three of six are not
counted: they ask the system again for memory that the other gave back, which a training by itself does in its first steps alone.

The released way (https://github.com/UIC-Liu-Lab/CPT) is done by plain transformers with the same plug-ins and masks: labels
given, so every position passes the vocabulary product; LayerNorms and the LM head's dense layer train too. It gets ready-made
batches and torch's fused AdamW, which the release has not.

Step cost against finished domains: three models, of which 1, 10 and 100 domains are finished, take turns step by step; one row
of 164 tokens a step, so that what does not depend on tokens (blocking, the optimizer) weighs four times as much; processor time on
one thread, which a busy machine moves less than the clock on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForMaskedLM

from benchmarks.arithmetic import Shape, as_released, plugins_alone
from benchmarks.measure import peak_flops, quartiles, ratio, side_by_side, taking_turns
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks
from eunoe.methods.base import Batches, Method, Stage
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import lm_loss
from eunoe.recipe import LoopSettings
from eunoe.train import Job

ROWS, ATTENTION, FFN, TURNS, EACH, SETTLE, AGAINST = 4, 512, 768, 3, 6, 3, 15
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


def job(lm: nn.Module, method: Cpt, domain: str, steps: int, rows: int = ROWS) -> Job:
    """One domain to learn with the published settings, as a run composes it."""
    return Job(
        name=domain, model=lm, batches=batches(steps, rows), loss=lm_loss, seed=0, method=method,
        settings=LoopSettings(batch=rows, steps=steps, lr=1e-4, clip_by="tensor"),
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
    """Our step, the released way and the machine's peak in turn."""
    peaks: list[float] = []
    steps = TURNS * EACH
    ours, theirs = taking_turns(
        job(*model(1), "0", steps),
        released(*model(1), "0", batches(steps)),
        each=EACH,
        settle=SETTLE,
        before=lambda: peaks.append(peak_flops(seconds=0.6)),
    )
    targets = sum(len(batches(steps)[step][0]["labels"]) for step in range(steps)) / (steps * ROWS * SHAPE.block)
    need, tokens = plugins_alone(SHAPE, ATTENTION, FFN, targets), ROWS * SHAPE.block
    around = [max(pair) for pair in pairwise(peaks)]  # the better of the peaks before and after a turn
    beside = [peak for peak in around for _ in range(EACH - SETTLE)]
    shares = sorted(need * tokens / seconds / peak for seconds, peak in zip(ours, beside, strict=True))
    print(
        f"{ratio(theirs, ours)} the released way's tokens/s ({tokens / median(ours):.0f} against {tokens / median(theirs):.0f}; "
        f"needed {need / 1e6:.0f} MFLOP a token, theirs {as_released(SHAPE, ATTENTION, FFN) / 1e6:.0f}); "
        f"{median(shares):.0%} ({shares[0]:.0%} to {shares[-1]:.0%}) of the matrix-product peak "
        f"({median(beside) / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads)",
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
