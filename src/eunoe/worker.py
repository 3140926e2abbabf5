"""One job of several (jobs.py): the process that resumes a run folder's recipe and takes cells until none is left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from eunoe import stop
from eunoe.allocator import keep_freed_memory
from eunoe.errors import EunoeError
from eunoe.progress import tell

_sent = threading.Event()


def main(out: str) -> int:
    """Work on the cells of the run folder ``out``; returns the exit code. An error goes to the starter as a line of JSON.

    Imports first, which takes seconds, and begins once the starter sends it to work.
    """
    keep_freed_memory()
    threading.Thread(target=_listen, daemon=True).start()
    try:
        with stop.watching(command=True):
            from eunoe.engine import join  # torch: after the handlers are set

            while not _sent.wait(0.1):
                stop.check("waiting to be sent to work", "nothing was begun")
            join(Path(out))
    except EunoeError as error:
        tell({"error": str(error)})
        return error.code
    return 0


def _listen() -> None:
    """The starter holds the other end of stdin. A line sends this process to work; when the starter ends, however it ends, so does
    this process. Nothing is torn by that."""
    while os.read(0, 1024):
        _sent.set()
    os._exit(130)


__all__ = ["main"]
