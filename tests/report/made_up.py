"""A made-up run folder: 2 methods x 3 seeds x 4 domains, LM loss, accuracy, macro-F1, general text, base rows, curves.

The numbers follow a formula and a seeded generator; ``cpt`` keeps every score it ever had, ``ncl`` loses some. For a
look at the page: ``python -m tests.report.made_up FOLDER``.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

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
        told = [g if chance.random() < skill else chance.choice(CLASSES) for g in gold]
        scores = classification_scores(gold, told, CLASSES)
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


if __name__ == "__main__":
    made_up_run(Path(sys.argv[1]))
