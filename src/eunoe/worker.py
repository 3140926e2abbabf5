"""One job of several (jobs.py): the process that resumes a run folder's recipe and takes cells until none is left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from eunoe import stop
from eunoe.errors import EunoeError
from eunoe.progress import tell


def main(out: str) -> int:
    """Work on the cells of the run folder ``out``; returns the exit code. An error goes to the starter as a line of JSON."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        with stop.watching(command=True):
            from eunoe.engine import join  # torch: after the handlers are set

            join(Path(out))
    except EunoeError as error:
        tell({"error": str(error)})
        return error.code
    return 0


def _end_with_starter() -> None:
    """The starter holds the other end of stdin: when it ends, however it ends, so does this process. Nothing is torn by that."""
    while os.read(0, 1024):
        pass
    os._exit(130)


__all__ = ["main"]
