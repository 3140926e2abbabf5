"""``python -m eunoe.methods [PAGE]``: the table of methods, printed, or what the pages beside PAGE make of METHODS, written into them."""

from __future__ import annotations

import sys
from pathlib import Path

from eunoe.atomic import write_text
from eunoe.methods.facts import CHOICES, MARKS, in_page, table

if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        write_text(given, in_page(given.read_text(encoding="utf-8")))  # raises where it has no marks
        for page in given.parent.glob("*.md"):
            text = page.read_text(encoding="utf-8")
            if MARKS[0] in text or CHOICES[0] in text:
                write_text(page, in_page(text))
    if not sys.argv[1:]:
        print(table(), end="")
