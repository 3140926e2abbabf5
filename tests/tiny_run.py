"""The contract's whole run in small, which all tests share, and what earlier versions left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from eunoe.contract.tiny_run import state, tiny_recipe, tiny_settings, write_task, write_text


def count(folder: Path, name: str, inside: str = "") -> int:
    """Files so called below a folder (in folders whose names begin with ``inside``), also while others write and remove there."""
    return sum(name in files and Path(root).name.startswith(inside) for root, _, files in os.walk(folder))


def as_before_0_2(out: Path) -> Path:
    """Turn a run folder into what versions before 0.2 left: no cells and marks, nothing that says whose a checkpoint is."""
    for mark in [*out.rglob("cell.json"), out / "head/rows.jsonl"]:
        mark.unlink(missing_ok=True)
    for scores in out.glob("sequences/*/scores"):
        shutil.rmtree(scores)
    for manifest in out.rglob("manifest.json"):
        said = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({key: said[key] for key in ("format", "sha256")}))
    texts = json.loads((out / "texts.json").read_text())
    (out / "texts.json").write_text(json.dumps({k: v[:32] for k, v in texts.items() if k not in ("format", "model")}))
    if (out / "finished.json").is_file():
        finished = json.loads((out / "finished.json").read_text())
        (out / "finished.json").write_text(json.dumps({"rows_sha256": finished["rows_sha256"]}))
    return out


__all__ = ["as_before_0_2", "state", "tiny_recipe", "tiny_settings", "write_task", "write_text"]
