"""Made-up run folders: a run over 2 methods x 3 seeds x 4 domains, and a study of 2 systems x 3 tasks with a search.

The numbers follow a formula and a seeded generator; ``cpt`` keeps every score it ever had, ``ncl`` loses some; ``recadam``
scores a little more than ``adamw`` and loses less. For a look at the pages: ``python -m tests.report.made_up FOLDER`` and
``eunoe report FOLDER/run``.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eunoe.evaluate.scores import classification_scores
from eunoe.report.schema import Row, to_line

DOMAINS = ("yelp_reviews", "ai_abstracts", "acl_abstracts", "bbc_news")
CLASSES = ("belongs", "does not belong", "other")
RECIPE = """# eunoe run recipes/four_domains.yaml
name: four_domains
model: {name: sentence-transformers/all-MiniLM-L6-v2}
methods: [{name: ncl, label: ncl}, {name: cpt, label: cpt}]
seeds: [0, 1, 2]
"""


def made_up_rows(
    *,
    run: str = "four_domains",
    methods: Sequence[str] = ("ncl", "cpt"),
    seeds: Sequence[int] = (0, 1, 2),
    domains: Sequence[str] = DOMAINS,
    end_tasks: bool = True,
    base: bool = True,
    order: str = "given",
) -> list[Row]:
    """Rows as a finished run writes them."""
    rows: list[Row] = []

    def add(method: str, seed: int, learnt: tuple[str, ...], task: str, loss: float, skill: float | None) -> None:
        where = {"run": run, "method": method, "order": order, "seed": seed, "learnt": learnt, "task": task}
        if skill is None:
            rows.append(Row(**where, transfer=None, shots_seed=None, metric="lm_loss", value=loss, n=4321, steps=120))
            return
        chance = random.Random(f"{seed} {task!a} {skill}")
        gold = [CLASSES[k % 7 % 2] for k in range(200)]
        predicted = [g if chance.random() < skill else chance.choice(CLASSES) for g in gold]
        scores = classification_scores(gold, predicted, CLASSES)
        for metric, value in (("accuracy", scores["accuracy"]), ("macro_f1", scores["macro_f1"])):
            rows.append(Row(**where, transfer="finetune", shots_seed=2022, metric=metric, value=value, n=scores["n"],
                            steps=40, detail={k: dict(v) for k, v in scores["detail"].items()}))  # fmt: skip

    for seed in seeds:
        start = {name: 4.1 + 0.35 * i for i, name in enumerate(domains)}
        if base:
            for name in (*domains, "general"):
                add("base", seed, (), name, start.get(name, 4.412345), None)
            for name in domains if end_tasks else ():
                add("base", seed, (), name, 0.0, 0.42)
        for method in methods:
            forgets = method != "cpt"
            noise = random.Random(f"{method} {seed}")
            after = {name: start[name] - (0.9 if forgets else 0.75) + noise.uniform(-0.04, 0.04) for name in domains}
            drift = noise.uniform(0.06, 0.09) if forgets else 0.0
            for i in range(len(domains)):
                learnt = tuple(domains[: i + 1])
                for j, name in enumerate(learnt):
                    add(method, seed, learnt, name, after[name] + drift * (i - j), None)
                add(method, seed, learnt, "general", 4.412345 + drift * (i + 1) * 1.3, None)
                for j, name in enumerate(learnt if end_tasks else ()):
                    add(method, seed, learnt, name, 0.0, 0.72 - 0.05 * (i - j if forgets else 0))
    return rows


def made_up_run(folder: Path, rows: Sequence[Row] | None = None, *, curves: bool = True) -> Path:
    """A run folder as ``eunoe run`` leaves it, without checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = made_up_rows() if rows is None else rows
    (folder / "rows.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    environment = {"command": "eunoe run recipes/four_domains.yaml --out runs/four", "python": "3.11.2", "torch": "2.13.0+cpu",
                   "transformers": "5.23.0", "threads": 2, "device": "cpu"}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")
    for row in rows if curves else ():
        if not row.learnt or row.task != row.learnt[-1] or row.metric != "lm_loss":
            continue
        i = len(row.learnt) - 1
        place = folder / "sequences" / f"{row.method}.{row.order}.seed{row.seed}" / "domains" / f"{i}-{row.task}"
        place.mkdir(parents=True, exist_ok=True)
        chance = random.Random(f"{place.name} {row.method} {row.seed}")
        lines = ["step,loss,lr,grad_norm\n"]
        for step in range(1, 301):
            loss = row.value + (1.1 - 0.2 * i) * math.exp(-step / 60) + chance.gauss(0, 0.12)
            lines.append(f"{step},{loss!r},{1e-4!r},1.0\n")
        (place / "curve.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def made_up_capacity(folder: Path, *, free: float = 0.55, layers: int = 6, method: str = "cpt") -> None:
    """capacity.json beside each curve of ``method``: each domain takes a share of what is left, so ``free`` stays of it."""
    for place in sorted(folder.glob(f"sequences/{method}.*/domains/*")):
        i, seed = int(place.name.partition("-")[0]), place.parents[1].name[-1]
        learnt = [one.name.partition("-")[2] for one in sorted(place.parent.iterdir())][: i + 1]
        chance = random.Random(f"{seed} {i}")
        rows = []
        for layer in range(layers):
            for part, units, size in (("attention", "inner", 256), ("attention", "outer", 384), ("feed_forward", "inner", 384),
                                      ("feed_forward", "outer", 384)):  # fmt: skip
                left = round(size * (free + 0.04 * layer / layers + chance.uniform(-0.02, 0.02)) ** (i + 1))
                taken = {name: round(size * free**k * (1 - free)) for k, name in enumerate(learnt)}
                shared = {name: n // (3 + layer) for name, n in taken.items() if name != learnt[-1]}
                rows.append({"layer": f"encoder.layer.{layer}", "part": part, "units": units, "size": size, "used": size - left,
                             "shared": (size - left) // 3, "free": left, "domains": {n: k + size // 8 for n, k in taken.items()},
                             "new": taken, "shared_with": shared})  # fmt: skip
        (place / "capacity.json").write_text(json.dumps(rows), encoding="utf-8")


# -- many methods -----------------------------------------------------------------------------------------------
GAINS: Mapping[str, tuple[float, float]] = {
    "ncl": (1.06, 0.47), "cpt": (0.83, 0.0), "ewc": (0.93, 0.11), "replay": (1.01, 0.13), "das": (0.97, 0.10), "kd": (0.94, 0.21),
    "der++": (0.99, 0.08), "l2": (0.88, 0.16), "recadam": (0.96, 0.24), "wise": (0.80, 0.05), "merge": (0.52, 0.09), "lora": (0.78, 0.26),
    "o-lora": (0.74, 0.12), "peft": (0.76, 0.27), "hat": (0.70, 0.015), "bcl": (0.71, 0.03), "classic": (0.72, 0.02),
    "one": (1.04, 0.0), "adapter-ncl": (0.77, 0.22), "adapter-one": (0.79, 0.0), "prompt-one": (0.31, 0.0), "demix": (0.86, 0.0),
    "replay-ewc": (0.95, 0.06), "ewc-weak": (1.0, 0.27),
}  # fmt: skip
"""Method -> what it learns and forgets of a domain, in nats. Invented, to look at pages with: measured nowhere."""
KEEPS = ("cpt", "one", "adapter-one", "prompt-one", "demix")


def many_rows(
    count: int = 24, *, seeds: Sequence[int] = (0, 1, 2), domains: Sequence[str] = DOMAINS, end_tasks: bool = True, at_once: bool = True
) -> list[Row]:  # fmt: skip
    """Rows of the first ``count`` methods of ``GAINS``, and of ``none`` and ``joint``."""
    rows: list[Row] = []
    start = {name: 4.1 + 0.35 * i for i, name in enumerate(domains)}
    every = (*domains, "general")

    def add(
        method: str, seed: int, learnt: tuple[str, ...], task: str, loss: float, skill: float, more: int | None = None
    ) -> None:
        where = {
            "run": "many",
            "method": method,
            "order": "given",
            "seed": seed,
            "learnt": learnt,
            "task": task,
            "at_once": more,
        }
        rows.append(Row(**where, transfer=None, shots_seed=None, metric="lm_loss", value=loss, n=4321, steps=120))
        if end_tasks and task != "general":
            for metric, value in (("accuracy", skill), ("macro_f1", skill - 0.03)):
                rows.append(
                    Row(**where, transfer="finetune", shots_seed=2022, metric=metric, value=value, n=200, steps=40)
                )

    for seed in seeds:
        for method in ("base", "none")[: 1 + at_once]:
            for name in every:
                add(method, seed, (), name, start.get(name, 4.4), 0.5 if method == "base" else 0.502)
        for method, (gain, drop) in dict(list(GAINS.items())[:count]).items():
            noise = random.Random(f"{method} {seed}")
            gains = {name: gain + noise.uniform(-0.03, 0.03) for name in domains}
            rate = drop * noise.uniform(0.85, 1.15)
            for i in range(len(domains)):
                learnt = tuple(domains[: i + 1])
                for j, name in enumerate(learnt):
                    lost = rate * (1 - 0.6 ** (i - j)) * 1.6 if method not in KEEPS else 0.0
                    add(
                        method,
                        seed,
                        learnt,
                        name,
                        start[name] - gains[name] + lost,
                        0.52 + 0.25 * gains[name] - 0.3 * lost,
                    )
                add(method, seed, learnt, "general", 4.4 + (0.2 * drop * (i + 1) if method not in KEEPS else 0.0), 0.0)
        for name in every if at_once else ():
            gain = 1.0 + random.Random(f"joint {seed} {name}").uniform(-0.03, 0.03)
            add("joint", seed, tuple(domains), name, start.get(name, 5.35) - gain, 0.52 + 0.25 * gain, len(domains))
    return rows


def made_up_many(folder: Path, count: int = 24, *, curves: bool = True, **more: Any) -> Path:
    """The folder of a run with many methods: with facts of its methods, sizes and times."""
    made_up_run(folder, many_rows(count, **more), curves=curves)
    (folder / "methods.json").write_text(
        json.dumps(made_up_facts(["none", *list(GAINS)[:count], "joint"])), encoding="utf-8"
    )
    times = []
    for place in sorted(folder.glob("sequences/*/domains/*")):
        method = place.parents[1].name.partition(".")[0]
        small = METHOD_FACTS.get(method, (1.0, "as ncl"))[1].startswith("-")
        beside = (
            {"Fisher": 91_000_000}
            if "ewc" in method
            else {"buffer": 4_000_000}
            if method in ("replay", "der++")
            else {}
        )
        sizes = {"checkpoint": 3_400_000 if small else 91_400_000, "beside": beside}
        (place / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
        seconds = 61.5 * METHOD_FACTS.get(method, (1.0, ""))[0]
        times.append({"what": f"{place.parents[1].name}/{place.name}", "seconds": seconds, "tokens": 9})
    (folder / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times), encoding="utf-8")
    return folder


METHOD_FACTS: Mapping[str, tuple[float, str]] = {
    "kd": (2.3, "+ 1 model (teacher)"), "ewc": (1.0, "+ 2 models (Fisher, anchor)"), "der++": (3.0, "+ the buffer"),
    "das": (2.8, "+ the activations of two more passes"), "classic": (2.0, "- 3 models + adapters"),
    **dict.fromkeys(("adapter-ncl", "adapter-one", "demix"), (0.75, "- 3 models + adapters")), "prompt-one": (1.3, "- 3 models + a prompt"),
    **dict.fromkeys(("cpt", "lora", "o-lora", "peft", "hat", "bcl"), (1.0, "- 3 models + plug-ins")),
}  # fmt: skip


def made_up_facts(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``methods.json`` of these methods."""
    facts = {}
    for method in methods:
        arithmetic, memory = METHOD_FACTS.get(method, (1.0, "as ncl"))
        facts[method] = {
            "methods": [method], "naive": method == "ncl", "in_turn": method not in ("none", "joint"), "forgets": method not in KEEPS,
            "needs_domain": method in (*KEEPS, "hat", "bcl", "classic"), "old_text": method in ("replay", "der++", "joint", "replay-ewc"),
            "keeps": "nothing", "arithmetic": arithmetic, "memory": memory,
        }  # fmt: skip
    return facts


# -- fine-tuning studies ----------------------------------------------------------------------------------------
SYSTEMS = {"adamw": ("lr=0.0001", "lr=0.0002", "lr=0.0004"),
           "recadam": ("lr=0.0001,t0=0.25", "lr=0.0001,t0=0.5", "lr=0.0002,t0=0.25", "lr=0.0002,t0=0.5")}  # fmt: skip
TASKS = {"rte": ("accuracy", "macro_f1"), "cola": ("matthews", "accuracy"), "stsb": ("pearson", "spearman")}
STUDY = """name: small
tasks:
  - {name: rte, glue: rte, seeds: [1, 2, 3, 4, 5]}
  - {name: cola, glue: cola}
  - {name: stsb, glue: stsb}
systems:
  adamw: {name: finetune, grid: {lr: [1.0e-4, 2.0e-4, 4.0e-4]}}
  recadam: {name: finetune, grid: {lr: [1.0e-4, 2.0e-4], optimizer.t0: [0.25, 0.5]}}
search: {seed: 0, by: last}
seeds: [1, 2, 3]
published:
  adamw: {rte: 71.1, cola: 60.6}
  recadam: {rte: 74.4, cola: 62.4}
"""


def study_rows(
    *, run: str = "small", tasks: Mapping[str, Sequence[str]] = TASKS, systems: Mapping[str, Sequence[str]] = SYSTEMS,
    search: bool = True, seeds: Sequence[int] = (1, 2, 3), best: bool = True, texts: Sequence[str] = ("wikipedia", "brown"),
    chosen: int = 1, layers: int = 6,
) -> list[Row]:  # fmt: skip
    """Rows as a finished study writes them: a search on seed 0, then point ``chosen`` of each grid on ``seeds``.

    ``rte`` gets two seeds more. Without ``search`` every point is reported.
    """
    rows: list[Row] = []
    for task, metrics in tasks.items():
        for k, (system, grid) in enumerate(systems.items()):
            labels = [f"{system}[{point}]" if point else system for point in grid]
            more = (*seeds, *(max(seeds) + i for i in (1, 2))) if task == "rte" else seeds
            cells = [(i, seed) for i in range(len(grid)) for seed in more]
            if search:
                cells = [(i, 0) for i in range(len(grid))] + [
                    cell for cell in cells if cell[0] == min(chosen, len(grid) - 1)
                ]
            for i, seed in cells:
                rows += _study_cell(run, task, metrics, labels[i], k, i, seed, best, texts, layers)
    return rows


def _study_cell(
    run: str, task: str, metrics: Sequence[str], label: str, k: int, i: int, seed: int, best: bool, texts: Sequence[str], layers: int
) -> list[Row]:  # fmt: skip
    noise = random.Random(f"{task} {label} {seed}")
    where = {
        "run": run,
        "method": "base",
        "transfer": label,
        "order": "none",
        "seed": seed,
        "shots_seed": None,
        "learnt": (),
        "task": task,
    }
    rows = []
    for name in metrics:
        value = 0.62 + 0.02 * k + 0.015 * i + noise.gauss(0, 0.012)
        rows.append(Row(**where, metric=name, value=value, n=277, steps=188))
        if best:
            rows.append(
                Row(**where, metric=name, value=value + abs(noise.gauss(0, 0.01)), n=277, steps=62 + seed, at="best")
            )
    rows.sort(key=lambda row: row.at != "last")
    lost = (0.9 if k == 0 else 0.35) * (1 + 0.4 * i) + noise.uniform(-0.05, 0.05)
    depth = [f"encoder.layer.{n}" for n in range(layers)]
    for t, text in enumerate(texts):
        rows.append(
            Row(
                **where, metric=f"lm_loss@{text}", value=4.07 + t + lost, n=4000, steps=188, detail={"before": 4.07 + t}
            )
        )
        alike = {str(n): 1 - 0.02 * (n + t) * lost for n in range(layers + 1)}
        rows.append(
            Row(
                **where,
                metric=f"cka@{text}",
                value=sum(alike.values()) / len(alike),
                n=2048,
                steps=188,
                detail={"layers": alike},
            )
        )
    if texts:
        far = {name: lost * (0.2 + 0.1 * n) for n, name in enumerate(["embeddings", *depth])}
        total = math.sqrt(sum(d * d for d in far.values()))
        rows.append(Row(**where, metric="anchor_distance", value=total, n=22000000, steps=188, detail={"layers": far}))
    return rows


def made_up_study(
    folder: Path, rows: Sequence[Row] | None = None, *, recipe: str = STUDY, cells: bool = True, far: bool = True
) -> Path:
    """A study's folder. ``far``: runs begin far from the pretrained weights, as a random start does."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = study_rows() if rows is None else rows
    (folder / "rows.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "environment.json").write_text(
        '{"command": "eunoe run recipes/small.yaml", "torch": "2.13.0+cpu"}', encoding="utf-8"
    )
    collected: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows if cells else ():
        collected.setdefault((row.task, str(row.transfer), row.seed), []).append(row)
    points: dict[tuple[str, str], list[str]] = {}
    for (task, label, seed), own_rows in collected.items():
        system, mark, _ = label.partition("[")
        known = points.setdefault((task, system), [])
        if label not in known:
            known.append(label)
        place = folder / "cells" / task / f"{system}{f'-{known.index(label)}' if mark else ''}.seed{seed}"
        place.mkdir(parents=True)
        (place / "rows.jsonl").write_text("".join(map(to_line, own_rows)), encoding="utf-8")
        chance, i = random.Random(f"{place.name} {task}"), known.index(label)
        loss = [f"{s},{0.1 * i + 0.7 * math.exp(-s / 50) + chance.gauss(0, 0.03)!r},1e-4,1.0\n" for s in range(1, 189)]
        (place / "curve.csv").write_text("step,loss,lr,grad_norm\n" + "".join(loss), encoding="utf-8")
        seen = ["step,metric,value\n"]
        for s in (1, *range(4, 189, 4)):
            away = (40 * math.exp(-s / (8 + 4 * i)) if far and system == "recadam" else 0.0) + (1 + i) * (
                1 - math.exp(-s / 60)
            )
            seen.append(
                f"{s},anchor_distance,{away!r}\n{s},lambda,{1 / (1 + math.exp(-(0.05 + 0.05 * i) * (s - 47)))!r}\n"
            )
            if s % 36 == 0 or s == 188:
                seen.append(f"{s},{own_rows[0].metric},{own_rows[0].value - 0.1 * (188 - s) / 188!r}\n")
        (place / "observed.csv").write_text("".join(seen), encoding="utf-8")
    return folder


if __name__ == "__main__":
    made_up_capacity(made_up_run(Path(sys.argv[1]) / "run"))
    made_up_study(Path(sys.argv[1]) / "study")
    for count in (1, 3, 8, 24):
        made_up_many(Path(sys.argv[1]) / f"methods-{count}", count)
    made_up_many(Path(sys.argv[1]) / "methods-24-one-seed", seeds=(0,))
