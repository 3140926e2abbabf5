"""``python -m eunoe.methods [PAGE ...]``: the table of methods, printed, or what pages make of METHODS, written between their marks."""

from __future__ import annotations

import sys
from pathlib import Path

from eunoe.atomic import write_text
from eunoe.methods.facts import in_page, table

if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        write_text(page, in_page(page.read_text(encoding="utf-8")))
    if not sys.argv[1:]:
        print(table(), end="")
