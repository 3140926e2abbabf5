"""Run all benchmarks but the long ones, or those named. Ratios are medians over rounds in which we and the peer take turns."""

from __future__ import annotations

import sys

from benchmarks import (
    awd_lstm,
    contention,
    cpt,
    features,
    jobs,
    memory,
    methods,
    posttraining,
    protocol,
    recadam,
    science,
    startup,
)
from eunoe.lookup import lookup

BENCHMARKS = {
    "startup": startup.main,
    "posttraining": posttraining.main,
    "recadam": recadam.main,
    "cpt": cpt.main,
    "protocol": protocol.main,
    "jobs": jobs.main,
    "contention": contention.main,
    "methods": methods.main,
    "science": science.main,
    "awd_lstm": awd_lstm.main,
    "features": features.main,
    "memory": memory.main,
}

LONG = ("protocol", "memory")
"""Those that take 20 minutes and more; they run when they are named."""


def main(names: list[str]) -> None:
    for name in names or [name for name in BENCHMARKS if name not in LONG]:
        print(f"== {name}", flush=True)
        lookup(BENCHMARKS, name, "benchmark")()
    if not names:
        print(f"left out, for they take 20 minutes and more: python -m benchmarks {' '.join(LONG)}")


if __name__ == "__main__":
    main(sys.argv[1:])
