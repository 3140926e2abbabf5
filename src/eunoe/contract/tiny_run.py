"""A whole run in small: two domains with text, end tasks and general text, a tiny BERT, two methods, in a second or two.

``tiny_recipe(folder)`` writes all of it below ``folder`` and returns the recipe's file; ``state(out)`` says what a run
folder holds, so that two can be compared to the byte.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import torch
import yaml

from eunoe.contract.tiny import WORDS, sentences, tiny_folder


def write_text(path: Path, seed: int, n: int = 60) -> Path:
    """A .txt corpus of ``n`` short documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(sentences(n, seed)) + "\n", encoding="utf-8")
    return path


def write_task(path: Path, seed: int, n: int = 24) -> Path:
    """A .csv of labelled rows: ``good`` or ``bad``, and the word stands in the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = torch.randint(len(WORDS), (n, 6), generator=torch.Generator().manual_seed(seed)).tolist()
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i, row in enumerate(draws):
            label = ("good", "bad")[i % 2]
            writer.writerow([" ".join([label, *(WORDS[w] for w in row)]), label])
    return path


def tiny_settings(folder: Path, **change: Any) -> dict[str, Any]:
    """The recipe as plain data, its files written below ``folder``; ``change`` replaces whole top-level keys."""
    domains = []
    for i, name in enumerate(("sport", "money")):
        text = write_text(folder / f"{name}.txt", seed=10 + i)
        train = write_task(folder / f"{name}_train.csv", seed=20 + i)
        test = write_task(folder / f"{name}_test.csv", seed=30 + i, n=40)
        corpus = {"source": str(text), "documents": "paragraphs", "valid_share": 0.25}
        domains.append({"name": name, "corpus": corpus, "task": {"train": str(train), "test": str(test)}})
    general = write_text(folder / "general.txt", seed=99, n=20)
    return {
        "name": "tiny",
        "model": {"name": str(tiny_folder(folder)), "dropout": 0.1},
        "domains": domains,
        "general": {"source": str(general)},
        "methods": ["ncl", "cpt"],
        "training": {"block": 16, "batch": 4, "steps": 4, "lr": 0.005, "checkpoint_every": 2},
        "transfer": {"name": "finetune", "epochs": 2, "batch": 8, "lr": 0.002, "max_length": 32},
        "evaluation": {"blocks": 6, "batch": 8},
        "seeds": [0, 1],
        **change,
    }


def tiny_recipe(folder: Path, **change: Any) -> Path:
    """Write the recipe and all it reads below ``folder``; returns ``folder/tiny.yaml``."""
    settings = tiny_settings(folder, **change)
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


def state(out: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file below ``out``, but for the names in ``but``."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name not in but)
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
