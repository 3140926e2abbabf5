"""What a command loads before it needs it: each of these packages costs a tenth of a second to two seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATER = {"sklearn", "scipy.stats", "matplotlib", "pandas", "pyarrow", "datasets", "peft"}


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        ("import eunoe.engine", LATER),  # also what each of several jobs loads
        ("from eunoe.cli import main; main(['list', 'methods'])", LATER | {"transformers", "accelerate"}),
        (
            "from eunoe.cli import main; main(['list', 'recipes'])",
            LATER | {"transformers", "accelerate", "torch", "numpy"},
        ),
        (
            "from eunoe.cli import main; main([])",
            LATER | {"transformers", "accelerate", "torch", "numpy", "pydantic", "rich", "yaml"},
        ),
    ],
)
def test_nothing_heavy_is_loaded_that_is_not_needed_yet(code: str, unneeded: set[str]) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    loaded = set(printed.stdout.splitlines()[-1].split())
    assert "eunoe" in loaded
    assert not unneeded & loaded
