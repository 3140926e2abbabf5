"""What a step of each method costs against one of ncl, beside what its row in METHODS says of its arithmetic.

A BERT of base width (two layers of 768) learns three short domains with each method; steps of the last one, where a method carries
most, take turns with ncl's, in processor time of one thread. What a method does once a stage (Fisher, buffer, nearest expert) is not in
a step. The width matters: at 256 o-lora takes 1.9 times ncl's step and bcl 1.6, as what is added beside a layer goes with its width,
and the layer's own products with its square.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.measure import side_by_side
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks, joined
from eunoe.errors import EunoeError
from eunoe.methods import METHODS, Entry, Method
from eunoe.methods.base import Stage
from eunoe.models.heads import lm_loss
from eunoe.recipe import LoopSettings
from eunoe.train import Job, train

DOMAINS = ("law", "sea", "art")
VOCABULARY, BLOCK, ROWS, STEPS = 4000, 128, 4, 7
OVER = 1.2
"""How far above its row a method may lie."""


def text(domain: str) -> Blocks:
    ids = np.random.default_rng(DOMAINS.index(domain)).integers(5, VOCABULARY, (ROWS * STEPS, BLOCK)).astype(np.uint16)
    return Blocks(ids, np.arange(5), domain)


def stage(row: Entry, domains: tuple[str, ...], i: int, steps: int) -> Stage:
    batches = LMBatches(joined([text(d) for d in domains]), "masked", 4, VOCABULARY, ROWS, steps, seed=i)
    old = {d: text(d) for d in DOMAINS[:i]} if "earlier" in row.reads else {}
    valid = {d: LMBatches(text(d), "masked", 4, VOCABULARY, ROWS, 1, seed=i)[0] for d in (*domains, *old)}
    general = text("law") if "general" in row.reads else None
    return Stage(name="+".join(domains), domains=domains, index=i, epochs=steps * ROWS / len(text("law")), seed=i, batches=batches,
                 earlier=old, general=general, valid=valid)  # fmt: skip


def job(method: Method, row: Entry, domains: tuple[str, ...], i: int, steps: int) -> Job:
    ready = stage(row, domains, i, steps)
    return Job(name=ready.name, model=method.model, batches=ready.batches, loss=lm_loss, seed=0, method=method, stage=ready,
               settings=LoopSettings(batch=ROWS, steps=steps, lr=1e-4),
               optimizer=lambda m: make_optimizer("adamw", m, 1e-4, steps))  # fmt: skip


def last_stage(name: str) -> Job | None:
    """The training of a method's last stage, those before it learnt; None where it learns none."""
    torch.manual_seed(0)
    row = METHODS[name]
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=3072,
                        max_position_embeddings=256)  # fmt: skip
    settings: Any = row.settings()
    stages = row.method.stages(DOMAINS, settings)
    if not stages:
        return None
    method = row.method(BertForMaskedLM(config), settings, list(DOMAINS))
    for i, domains in enumerate(stages[:-1]):
        train(job(method, row, domains, i, 2))
    return job(method, row, stages[-1], len(stages) - 1, STEPS)


def main() -> None:
    above = []
    for name, row in METHODS.items():
        ours, naive = last_stage(name), last_stage("ncl")
        if ours is None or naive is None:
            print(f"{name}: learns no stage")
            continue
        column, base = side_by_side([ours, naive])
        times = median(a / b for a, b in zip(column, base, strict=True))
        within = times <= OVER * row.arithmetic
        print(
            f"{name}: {times:.2f} x a step of ncl, its row says {row.arithmetic:g} x{'' if within else ', MORE THAN 20 % ABOVE'}",
            flush=True,
        )
        if not within:
            above.append(name)
    if above:
        raise EunoeError(f"more than 20 % above their rows: {', '.join(above)}.")
