"""RecAdam's step as one loop in C: compiled on the machine it runs on, at the first step, in a quarter of a second.

torch's fused kernel knows no anchor, so with torch alone the weights pass the processor twice (10 streams of memory to
AdamW's 7); one loop takes 8. On 24M float32 weights and two cores that is 1.0 to 1.2 times fused AdamW's time against 1.8
to 2.7 (the written-down loop over tensors: 8 to 10), so the loop is worth a compiler's call. It needs one that knows OpenMP (``cc``, or
what ``$CC`` names); where there is none, or where it fails, ``RecAdam`` takes torch's fused kernel and one addition, and
``compiled=True`` says why it cannot. Nothing is kept on disk: the library is made in a folder of its own, loaded, and the
folder removed, so no file of anybody else is ever loaded.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernel.c")
FLAGS = [
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
]  # no -ffast-math: NaN stays NaN
WIDE = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
"""Compilers take half of a processor's widest vectors unless told: this loop waits for memory and gains 3 to 10 %."""
PARTS = 1 << 15
"""Elements below which a second thread costs more than it brings."""


@functools.cache
def kernels() -> dict[torch.dtype, Callable[..., None]] | str:
    """The compiled loops by dtype, or why there are none. Compiled once for each process."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler: {compiler[0]!r} is not on the PATH (CC may name another)"
    with tempfile.TemporaryDirectory(prefix="eunoe-") as folder:
        library = Path(folder) / "kernel.so"
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(library), "-lm"]
        try:
            wide = subprocess.run([*command, *WIDE], capture_output=True, timeout=60, check=False)
            if wide.returncode:  # a compiler that does not know the word
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            loaded = ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            return f"{compiler[0]!r} could not compile {SOURCE.name}: {said.decode(errors='replace').strip()[:400]}"
    loops: dict[torch.dtype, Callable[..., None]] = {}
    for dtype, function in ((torch.float32, loaded.step_float32), (torch.float64, loaded.step_float64)):
        loops[dtype] = function
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        function.restype = None
    return loops


def step(pieces: Sequence[Sequence[Tensor]], numbers: Sequence[float]) -> None:
    """Move all ``pieces`` (weight, gradient, m, v, anchor: contiguous, one dtype, CPU) by ``numbers`` (x in kernel.c).

    As many threads as torch uses, and where both are linked to the same OpenMP library, as with torch's wheels on Linux, the same
    ones: threads of our own would have to share cores with torch's, which wait busily for more work after a backward pass.
    """
    loops = kernels()
    assert not isinstance(loops, str)
    table = array("q")
    for piece in pieces:
        table.extend([x.data_ptr() for x in piece])
        table.append(piece[0].numel())
    threads = max(1, min(torch.get_num_threads(), sum(table[5::6]) // PARTS))
    x = array("d", numbers)
    loops[pieces[0][0].dtype](table.buffer_info()[0], len(pieces), threads, x.buffer_info()[0])
