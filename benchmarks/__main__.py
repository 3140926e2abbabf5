"""Run all benchmarks, or those named. Ratios are medians over rounds in which us and the peer take turns."""

from __future__ import annotations

import sys

from benchmarks import cpt, posttraining, protocol, recadam, startup
from eunoe.lookup import lookup

BENCHMARKS = {
    "startup": startup.main,
    "posttraining": posttraining.main,
    "recadam": recadam.main,
    "cpt": cpt.main,
    "protocol": protocol.main,
}


def main(names: list[str]) -> None:
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        lookup(BENCHMARKS, name, "benchmark")()


if __name__ == "__main__":
    main(sys.argv[1:])
