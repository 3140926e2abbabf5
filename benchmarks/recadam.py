"""RecAdam's step against torch's fused AdamW in the same run; the limit is 8 streams of memory to AdamW's 7 (8/7 = 1.14).

Weights of the MiniLM shape (22M) and of BERT-base's (110M), float32. A literal per-tensor loop is shown beside it.
"""

from __future__ import annotations

import time

import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.measure import in_turn, ratio
from eunoe.optim import RecAdam, anchored_groups


def _model(width: int, layers: int, inner: int) -> BertForMaskedLM:
    config = BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=inner)
    model = BertForMaskedLM(config)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def main() -> None:
    for name, shape in {"22M (MiniLM)": (384, 6, 1536), "110M (BERT-base)": (768, 12, 3072)}.items():
        optimizers = [
            RecAdam(anchored_groups(_model(*shape)), lr=2e-5),
            torch.optim.AdamW(_model(*shape).parameters(), lr=2e-5, fused=True),
            RecAdam(anchored_groups(_model(*shape)), lr=2e-5, fused=False),
        ]

        def timed(optimizer: torch.optim.Optimizer) -> float:
            began = time.perf_counter()
            for _ in range(3):
                optimizer.step()
            return time.perf_counter() - began

        ours, peer, literal = in_turn(*(lambda o=o: timed(o) for o in optimizers), rounds=7)
        print(
            f"{name}: {ratio(ours, peer)} fused AdamW's step time (limit 1.14); literal loop {ratio(literal, peer)}",
            flush=True,
        )
