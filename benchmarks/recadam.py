"""RecAdam's step against torch's fused AdamW in the same run; the limit is 8 streams of memory to AdamW's 7 (8/7 = 1.14).

Weights of the shapes of MiniLM (22M), BERT-base (110M) and RoBERTa-base (124M), float32, while the anchor pulls. Beside it
torch's kernel and an addition (no C compiler) and a written-down loop over the tensors. Then, for RoBERTa-base, what the process holds
for itself with the anchor as a copy and as a memory map, and the size of a checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from benchmarks.measure import in_turn, ratio
from eunoe import checkpoint
from eunoe.optim import RecAdam, anchored_groups

WAYS: dict[str, tuple[dict[str, bool], int, int]] = {
    "in C": ({"compiled": True}, 4, 15),
    "by torch's kernel": ({"compiled": False}, 4, 9),
    "literal loop": ({"fused": False}, 1, 5),
}
"""How RecAdam is asked for it, steps a round, rounds."""
THREADS = 2


def _minilm() -> nn.Module:
    return BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))


def _bert() -> nn.Module:
    return BertModel(BertConfig())


def _roberta() -> nn.Module:
    return RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))


def _ready(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def main() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rounds = ", ".join(f"{way} {rounds} x {count}" for way, (_, count, rounds) in WAYS.items())
    print(
        f"{THREADS} threads; median (least to greatest) of rounds x steps ({rounds}), over fused AdamW's; the limit is 1.14 x"
    )
    for make in (_minilm, _bert, _roberta):
        _speed(make.__name__[1:], _ready(make()))
    _memory()
    torch.set_num_threads(threads)


def _speed(name: str, model: nn.Module) -> None:
    weights = sum(p.numel() for p in model.parameters())

    def steps(optimizer: torch.optim.Optimizer, count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            optimizer.step()
        return (time.perf_counter() - began) / count

    peer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    for way, (settings, count, rounds) in WAYS.items():
        ours = RecAdam(anchored_groups(model), lr=2e-5, **settings)
        seconds = in_turn(partial(steps, ours, count), partial(steps, peer, count), rounds=rounds)
        print(f"{name} ({weights / 1e6:.0f}M), {way}: {ratio(*seconds)}", flush=True)


def _memory() -> None:
    """Each figure from a process of its own, which prints it; another process has the file mapped, as a second run would."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.safetensors")
        save_file({name: p.detach() for name, p in _roberta().named_parameters()}, file)
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.recadam", "hold", file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()  # it has read every page
            for anchor in ("none", "copied", "mapped"):
                print(subprocess.run(
                    [sys.executable, "-m", "benchmarks.recadam", anchor, file], check=True, capture_output=True, text=True
                ).stdout, end="", flush=True)  # fmt: skip
            other.communicate(b"\n")


def _child(what: str, file: str) -> None:
    model = _ready(_roberta())
    size = sum(4 * p.numel() for p in model.parameters())
    groups = anchored_groups(model, anchor=None if what == "copied" else file)
    if what == "hold":
        print(sum(float(anchor.sum()) for group in groups for anchor in group.get("anchor") or []), flush=True)
        sys.stdin.read(1)
        return
    if what == "none":
        groups = [{"params": list(model.parameters()), "anchor": None}]
    optimizer = RecAdam(groups, lr=2e-5)
    optimizer.step()
    bytes_held = psutil.Process().memory_full_info().uss
    print(
        f"anchor {what}: unique set size {bytes_held / 1e6:,.0f} MB = {bytes_held / size:.2f} x the model's {size / 1e6:,.0f} MB"
    )
    if what == "mapped":
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder) / "state", {"optimizer": optimizer.state_dict()})
            saved = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        print(f"checkpoint of the optimizer: {saved / size:.2f} x the model")


if __name__ == "__main__":
    _child(*sys.argv[1:])
