"""Freed memory stays with a process of ours, and a user's own settings stand."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

AGAIN = """
import resource, sys
from eunoe import cli, worker
from eunoe.allocator import keep_freed_memory
{begin}
import torch
torch.set_num_threads(1)
for i in range(50):
    if i == 40:  # holes that fit have been found by then
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)
print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 10 * 2**20 * 4 // 4096
"""Of the ten tensors that count; where the system gives huge pages, a 512th."""


def faults(begin: str, **env: str) -> int:
    """Pages that ten tensors of 40 MB, one after the other, take from the system after forty more were freed."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc is asked to keep freed memory")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    words = [sys.executable, "-c", AGAIN.format(begin=begin), "list", "methods"]
    out = subprocess.run(words, env=plain | env, capture_output=True, text=True, check=True).stdout
    return int(out.rpartition("faults ")[2])


@pytest.mark.parametrize("begin", ["keep_freed_memory()", "cli.main()"])
def test_a_freed_block_is_taken_again_without_asking_the_system(begin: str) -> None:
    assert faults(begin) < PAGES / 1000


def test_a_job_keeps_what_it_frees() -> None:
    begin = "worker.stop.watching = worker._listen = None\ntry: worker.main('x')\nexcept TypeError: pass"  # begins, and ends at once
    assert faults(begin) < PAGES / 1000


def test_a_program_that_calls_the_library_is_left_alone() -> None:
    assert faults("cli.main(['list', 'methods'])") > PAGES / 600


def test_the_users_own_settings_stand() -> None:
    assert faults("assert not keep_freed_memory()", MALLOC_ARENA_MAX="2") > PAGES / 600
