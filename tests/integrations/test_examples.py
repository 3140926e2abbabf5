"""The examples run as they stand, offline, on a tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.tiny import tiny_folder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_recadam_trainer_trains_with_both_optimizers(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "recadam_trainer.py", "--model", tiny_folder(tmp_path), "--steps", "6"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    matches = re.findall(r"^(\w+) +accuracy ([\d.]+)  distance from the pretrained weights (\S+)$", done.stdout, re.M)
    assert [name for name, *_ in matches] == ["adamw", "recadam"]
    assert 0 < float(matches[1][2]) < float(matches[0][2])  # recalled for half of the run
