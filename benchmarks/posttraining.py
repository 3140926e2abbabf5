"""Post-training tokens/s: our loop against the same Hugging Face model run plainly (labels given, all positions scored).

MiniLM shape (6 layers, width 384, vocabulary 30,522; random weights, dropout 0.1), 32 x 128 tokens a step, float32, AdamW.
Two rows: all weights train; only CPT's plug-ins train on the frozen model (the plain loop has the same plug-ins and
frozen weights). Ours is ``eunoe.train.train`` as users run it (masking, clipping and records included); the plain loop gets
ready-made batches. The limit is the machine's matrix-product peak measured in the same run, against needed arithmetic
(``benchmarks/arithmetic.py``).
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.arithmetic import Shape, all_weights, plugins_alone
from benchmarks.measure import in_turn, peak_flops, ratio
from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks
from eunoe.methods import METHODS
from eunoe.methods.base import Method, Stage
from eunoe.models.heads import lm_loss
from eunoe.recipe import LoopSettings
from eunoe.train import Job, train

ROWS, BLOCK, STEPS, ROUNDS = 32, 128, 2, 4
LAYERS, WIDTH, INNER, VOCABULARY = 6, 384, 1536, 30522
SHAPE = Shape(layers=LAYERS, width=WIDTH, inner=INNER, vocabulary=VOCABULARY, block=BLOCK)


def _model(frozen: bool) -> tuple[BertForMaskedLM, Method]:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=12, intermediate_size=INNER)
    model = BertForMaskedLM(config)
    entry = METHODS["cpt" if frozen else "ncl"]
    return model, entry.method(model, entry.settings(), ["d"])


def _needed(frozen: bool, targets: float) -> float:
    """FLOP a token that a step cannot do without (``targets``: the share of target positions)."""
    return plugins_alone(SHAPE, 256, 384, targets) if frozen else all_weights(SHAPE, targets)


def main() -> None:
    rng = np.random.default_rng(0)
    blocks = Blocks(
        rng.integers(1000, VOCABULARY, (ROWS * 8, BLOCK)).astype(np.uint16), np.array([0, 101, 102, 103]), "random"
    )
    batches = LMBatches(blocks, "masked", 103, VOCABULARY, ROWS, STEPS, seed=0)
    settings = LoopSettings(batch=ROWS, steps=STEPS, lr=1e-4)
    for frozen in (False, True):
        model, method = _model(frozen)
        fresh = method.state_dict()
        plain_model, plain_method = _model(frozen)
        plain_batches = []
        for step in range(STEPS):
            (batch,) = batches[step]
            labels = torch.full((ROWS * BLOCK,), -100)
            labels[batch["positions"]] = batch["labels"]
            plain_batches.append((batch["input_ids"], labels.view(ROWS, BLOCK)))
        targets = sum(len(batches[step][0]["labels"]) for step in range(STEPS)) / (STEPS * ROWS * BLOCK)

        def ours(
            model: BertForMaskedLM = model, method: Method = method, frozen: bool = frozen, fresh: dict = fresh
        ) -> float:
            if frozen:  # the same domain again: forget that it was finished
                method.load_state_dict(fresh)
            job = Job(name="d", model=model, batches=batches, loss=lm_loss, settings=settings, seed=0, method=method,
                      optimizer=lambda m: make_optimizer("adamw", m, 1e-4, STEPS))  # fmt: skip
            done = train(job)
            return done.tokens / done.seconds

        if frozen:
            plain_method.begin(Stage(name="d", domains=("d",), batches=batches))
            plain_method.before_step(STEPS // 2, STEPS)
        plain_model.train()
        optimizer = torch.optim.AdamW([p for p in plain_model.parameters() if p.requires_grad], lr=1e-4, fused=True)

        def plain(
            model: BertForMaskedLM = plain_model, optimizer: torch.optim.AdamW = optimizer, data: list = plain_batches
        ) -> float:
            began = time.perf_counter()
            for ids, labels in data:
                model(input_ids=ids, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return STEPS * ROWS * BLOCK / (time.perf_counter() - began)

        a, b = in_turn(ours, plain, rounds=ROUNDS)
        peak = peak_flops()
        share = median(a) * _needed(frozen, targets) / peak
        what = "frozen model, CPT plug-ins train" if frozen else "all weights train"
        needed = f"{_needed(frozen, targets) / 1e6:.0f} MFLOP a token needed"
        machine = f"{peak / 1e9:.0f} GFLOP/s peak, {torch.get_num_threads()} threads"
        print(
            f"{what}: {ratio(a, b)} the plain loop's tokens/s; {share:.0%} of the matrix-product peak ({needed}, {machine})"
        )
