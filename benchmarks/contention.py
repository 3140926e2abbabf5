"""A step beside another busy process, against the same step on a quiet machine.

A step of an end task (MiniLM's shape with a classifier, 8 rows x 40 tokens, all weights train, float32, as many threads as the process
has cores) as the command runs it, which sets ``OMP_WAIT_POLICY=PASSIVE`` before torch is loaded: threads that spin while they wait
lose their core to the other process just when the others wait for them. Five pairs: steps alone, then steps beside one process
that does nothing but compute. Time on the wall: that is what is looked at here, so the machine must be quiet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from statistics import median

PAIRS, STEPS, SETTLE = 5, 9, 1
ROWS, TOKENS = 8, 40
SIZES = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
LIMIT = 2.5


def main() -> None:
    words = [sys.executable, "-m", "benchmarks.contention"]
    surroundings = {"OMP_WAIT_POLICY": "PASSIVE", "EUNOE_QUIET": "1", **os.environ}
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=surroundings).stdout
    pairs: list[tuple[float, float]] = [(quiet, beside) for quiet, beside in json.loads(said.splitlines()[-1])]
    ratios = sorted(beside / quiet for quiet, beside in pairs)
    print(f"a step of {ROWS} rows x {TOKENS} tokens: {median(quiet for quiet, _ in pairs) * 1000:.0f} ms alone, "
          f"{median(beside for _, beside in pairs) * 1000:.0f} ms beside one busy process: {median(ratios):.2f} x "
          f"({ratios[0]:.2f} to {ratios[-1]:.2f}), limit {LIMIT} x; OMP_WAIT_POLICY={surroundings['OMP_WAIT_POLICY']}, "
          f"load of the machine before it {os.getloadavg()[1]:.1f} over 5 minutes")  # fmt: skip


def measure() -> list[tuple[float, float]]:
    """Seconds of a step alone and beside a busy process, for each pair: medians over its steps."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from eunoe.choices import make_optimizer
    from eunoe.data.collate import RowBatches, Rows
    from eunoe.models.heads import Classifier
    from eunoe.recipe import LoopSettings
    from eunoe.train import Job, train
    from eunoe.transfer.finetune import task_loss

    torch.manual_seed(0)
    model = Classifier(BertForMaskedLM(BertConfig(**SIZES)), 2, "first")
    ids = torch.randint(5, SIZES["vocab_size"], (ROWS, TOKENS)).tolist()
    rows = Rows([{"input_ids": row} for row in ids], torch.arange(ROWS) % 2, 0)
    turns = 2 * PAIRS
    total = turns * (STEPS + SETTLE)
    batches = RowBatches(rows, ROWS, total, 0)
    seconds: list[list[float]] = [[] for _ in range(turns)]
    busy: list[subprocess.Popen[bytes]] = []
    began = [time.perf_counter()]

    def observe(step: int) -> dict[str, float]:
        turn, place = divmod(step - 1, STEPS + SETTLE)
        if place >= SETTLE:
            seconds[turn].append(time.perf_counter() - began[0])
        if place == STEPS + SETTLE - 1:  # the next turn is of the other kind
            if busy:
                busy[0].kill()
                busy.pop().wait()
            elif turn % 2 == 0:
                busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        began[0] = time.perf_counter()
        return {}

    settings = LoopSettings(batch=ROWS, steps=total, lr=1e-5, precision="float32")
    try:
        train(Job(name="end task", model=model, batches=batches, loss=task_loss, settings=settings, seed=0, observe=observe,
                  optimizer=lambda m: make_optimizer("adamw", m, 1e-5, total)))  # fmt: skip
    finally:
        for process in busy:
            process.kill()
            process.wait()
    medians = [median(turn) for turn in seconds]
    return list(zip(medians[::2], medians[1::2], strict=True))


if __name__ == "__main__":
    print(json.dumps(measure()))
