"""Do the methods do what they are for? On text made so that the answer is known, with seeds.

Words of a domain follow each other by a rule of its own (each word has two successors), and domains share no word, so what is learnt of
one says nothing of another. A small BERT that was trained on a fourth such text, the general one, learns them in whole runs of
``eunoe run``. Scored is the LM loss of held-out text; forgetting is the loss at the end less the loss right after a domain was
learnt. Three texts: domains that share nothing; the same domain twice, under two names; a domain that returns.

Each claim is a line that ends in ``holds`` or ``DOES NOT HOLD``; where one does not, the command ends with an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from eunoe.choices import make_optimizer
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.models.heads import lm_loss
from eunoe.recipe import LoopSettings, load_recipe
from eunoe.report.schema import Row, read_rows
from eunoe.train import Job, train
from eunoe.verify import verify

WORDS, SENTENCES, SENTENCE = 24, 160, 24
SEEDS = (0, 1, 2)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ("general", "law", "sea", "art")
KEEPING = ("cpt", "one", "demix", "adapter-one", "prompt-one")
LAMBDAS, SHARES, WEIGHTS = (0.0, 1e2, 1e4), (0.0, 0.25, 0.5), (0.0, 0.5, 1.0)


def words(text: str) -> list[str]:
    return [f"{text}{i}" for i in range(WORDS)]


def sentences(text: str, seed: int, n: int = SENTENCES) -> list[str]:
    """``n`` lines: after each word one of its two successors, which are a rule of the text and not of the seed."""
    rule = np.random.default_rng(TEXTS.index(text)).integers(WORDS, size=(WORDS, 2))
    draw, lines, names = np.random.default_rng(1000 + seed), [], words(text)
    for _ in range(n):
        at, line = int(draw.integers(WORDS)), []
        for _ in range(SENTENCE):
            line.append(names[at])
            at = int(rule[at, draw.integers(2)])
        lines.append(" ".join(line))
    return lines


def pretrained(folder: Path, steps: int = 400) -> Path:
    """A BERT of two layers that has learnt the general text, as a model folder."""
    vocabulary = SPECIAL + [word for text in TEXTS for word in words(text)]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{key}_token": f"[{key.upper()}]" for key in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                        max_position_embeddings=160, initializer_range=0.1, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0)  # fmt: skip
    model = BertForMaskedLM(config)
    ids = np.array([tokenizer(line)["input_ids"] for line in sentences("general", 0)], dtype=np.uint16)
    blocks = Blocks(ids, np.arange(5), "general")
    batches = LMBatches(blocks, "masked", 4, len(vocabulary), 16, steps, seed=0)
    train(Job(name="general", model=model, batches=batches, loss=lm_loss, seed=0, settings=LoopSettings(batch=16, steps=steps, lr=2e-3),
              optimizer=lambda m: make_optimizer("adamw", m, 2e-3, steps)))  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Claims:
    """What the runs showed, line by line, and which claims do not hold."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def check(self, text: str, holds: bool) -> None:
        line = f"{text}: {'holds' if holds else 'DOES NOT HOLD'}"
        print(line, flush=True)
        self.lines.append(line)
        if not holds:
            self.failed.append(text)


def learnt(folder: Path, base: Path, methods: Sequence[Any], order: Sequence[tuple[str, str, int]], seeds: Sequence[int] = SEEDS,
           steps: int = 60) -> list[Row]:  # fmt: skip
    """Rows of a run in which each method learns ``order``: (domain's name, its text, seed of the text). Verified on the way."""
    domains = []
    for name, text, seed in {entry[0]: entry for entry in order}.values():
        for part, number, n in (("train", seed, SENTENCES), ("valid", 500 + seed, 40)):
            (folder / f"{name}.{part}.txt").write_text("\n".join(sentences(text, number, n)) + "\n")
        domains.append({"name": name, "corpus": {"source": str(folder / f"{name}.train.txt"), "valid": str(folder / f"{name}.valid.txt"),
                                                 "documents": "lines"}})  # fmt: skip
    (folder / "general.txt").write_text("\n".join(sentences("general", 7, 80)) + "\n")
    recipe = {
        "name": "science", "model": {"name": str(base)}, "domains": domains, "methods": list(methods), "seeds": list(seeds),
        "general": {"source": str(folder / "general.txt"), "documents": "lines"},
        "orders": {"given": [entry[0] for entry in order]},
        "training": {"block": 26, "batch": 16, "steps": steps, "lr": 2e-3, "precision": "float32"},
        "evaluation": {"blocks": 40, "batch": 40, "base": False},
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    out = folder / "out"
    run(load_recipe(file), out)
    broken = [finding for finding in verify(out) if finding.broken]
    if broken:
        raise EunoeError(f"eunoe verify: {broken[0].sequence}, {broken[0].domain}: {broken[0].text}")
    return [row for row in read_rows(out / "rows.jsonl") if row.metric == "lm_loss"]


def loss(rows: Sequence[Row], method: str, seed: int, task: str, after: int) -> float:
    """LM loss of ``task`` after ``after`` domains (counted as the order names them)."""
    (row,) = [r for r in rows if (r.method, r.seed, r.task, len(r.learnt)) == (method, seed, task, after)]
    return row.value


def forgot(rows: Sequence[Row], method: str, order: Sequence[str], seeds: Sequence[int] = SEEDS) -> list[float]:
    """By seed: mean over all domains but the last of the loss at the end less the loss right after learning it."""
    last = len(order)
    return [
        mean(loss(rows, method, s, d, last) - loss(rows, method, s, d, i + 1) for i, d in enumerate(order[:-1]))
        for s in seeds
    ]


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval (Student) over three seeds."""
    half = 4.303 * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.3f} +- {half:.3f}"


def least(values: Sequence[float]) -> float:
    """The lower end of the interval."""
    return mean(values) - 4.303 * stdev(values) / len(values) ** 0.5


def named(label: str, name: Any, **options: Any) -> dict[str, Any]:
    return {"name": name, "label": label, **options}


def nothing_shared(folder: Path, base: Path, claims: Claims) -> None:
    order = ["law", "sea", "art"]
    plugins = {"training": {"lr": 1e-2}}
    methods: list[Any] = [
        "ncl", "joint", named("cpt", "cpt", training={"lr": 2e-2, "clip_by": "tensor"}), "one",
        *(named(name, name, **plugins) for name in ("demix", "adapter-one", "prompt-one")),
        *(named(f"ewc-{k}", "ewc", strength=value) for k, value in enumerate(LAMBDAS)),
        *(named(f"replay-{k}", "replay", share=value) for k, value in enumerate(SHARES) if value),
        *(named(f"wise-{k}", "wise", alpha=value) for k, value in enumerate(WEIGHTS)),
    ]  # fmt: skip
    rows = learnt(folder, base, methods, [(name, name, 0) for name in order])
    naive = forgot(rows, "ncl", order)
    claims.check(f"ncl forgets domains that share nothing, {interval(naive)} nats", least(naive) > 0)
    ends = [mean(loss(rows, "ncl", s, d, 3) - loss(rows, "joint", s, d, 3) for d in order[:2]) for s in SEEDS]
    claims.check(
        f"joint does not: its loss on the first two domains is lower than ncl's at the end by {interval(ends)} nats",
        least(ends) > 0,
    )
    for name in KEEPING:
        claims.check(f"{name} forgets exactly 0, as eunoe verify says too", set(forgot(rows, name, order)) == {0.0})
        gained = [mean(loss(rows, "base", 0, d, 0) - loss(rows, name, s, d, 3) for d in order) for s in SEEDS]
        claims.check(f"{name} learns: its loss is below the base model's by {interval(gained)} nats", least(gained) > 0)
    ewc = [mean(forgot(rows, f"ewc-{k}", order)) for k in range(len(LAMBDAS))]
    claims.check(
        f"ewc's forgetting falls as lambda grows ({_pairs(LAMBDAS, ewc)})",
        sorted(ewc, reverse=True) == ewc and ewc[0] > ewc[-1],
    )
    replay = [mean(naive), *(mean(forgot(rows, f"replay-{k}", order)) for k in range(1, len(SHARES)))]
    claims.check(
        f"replay's falls as the share grows ({_pairs(SHARES, replay)})", sorted(replay, reverse=True) == replay
    )
    # the first domain alone: later ones start from what was interpolated before, each weight from another model
    old = [mean(loss(rows, f"wise-{k}", s, "general", 1) for s in SEEDS) for k in range(len(WEIGHTS))]
    claims.check(
        f"wise: what was known before, the general text, has a loss between its ends ({_pairs(WEIGHTS, old)})",
        min(old[0], old[2]) <= old[1] <= max(old[0], old[2]),
    )


def the_same_twice(folder: Path, base: Path, claims: Claims) -> None:
    order = ["law", "again"]
    rows = learnt(folder, base, ["ncl"], [("law", "law", 0), ("again", "law", 1)])
    naive = forgot(rows, "ncl", order)
    claims.check(
        f"ncl forgets nothing where the second domain is the first one's text, {interval(naive)} nats",
        mean(naive) <= 0.02,
    )


def one_returns(folder: Path, base: Path, claims: Claims) -> None:
    rows = learnt(folder, base, ["ncl"], [("law", "law", 0), ("sea", "sea", 0), ("law", "law", 0)])
    back = [loss(rows, "ncl", s, "law", 2) - loss(rows, "ncl", s, "law", 3) for s in SEEDS]
    claims.check(f"a domain that returns is learnt again: its loss falls by {interval(back)} nats", least(back) > 0)
    first = [loss(rows, "ncl", s, "law", 1) - loss(rows, "ncl", s, "law", 3) for s in SEEDS]
    claims.check(
        f"and is not higher than after its first visit, lower by {interval(first)} nats",
        -least([-x for x in first]) > 0,
    )


def _pairs(settings: Sequence[float], values: Sequence[float]) -> str:
    return ", ".join(f"{setting:g}: {value:.3f}" for setting, value in zip(settings, values, strict=True))


def main() -> None:
    claims = Claims()
    with tempfile.TemporaryDirectory() as name:
        base = pretrained(Path(name) / "base")
        for part in (nothing_shared, the_same_twice, one_returns):
            folder = Path(name) / part.__name__
            folder.mkdir()
            part(folder, base, claims)
    if claims.failed:
        raise EunoeError(f"{len(claims.failed)} of {len(claims.lines)} claims do not hold: {'; '.join(claims.failed)}.")
