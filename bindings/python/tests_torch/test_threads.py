"""libmoe computes on torch's threads, and leaves no others spinning beside them."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNTED = """
import os, sys, torch
import libmoe, libmoe.torch
torch.set_num_threads(2)
torch.ones(1 << 20).add_(1)  # torch starts its threads
before = len(os.listdir("/proc/self/task"))
x = torch.linspace(-1, 1, 256 * 32).reshape(256, 32)
if "module" in sys.argv:
    libmoe.torch.MoE(32, 16, 4, 2)(x)
else:
    ids = torch.arange(512).reshape(256, 2) % 4
    ones = torch.ones
    libmoe.torch.experts(x, ids, ones(256, 2), ones(4, 32, 32), ones(4, 32, 16))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("what", ["module", "experts"])
def test_no_thread_beside_those_of_torch(what: str) -> None:
    command = [sys.executable, "-c", COUNTED, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0


def test_the_context_says_whose_threads_compute() -> None:
    import torch

    import libmoe.torch._threads as threads

    torch.set_num_threads(2)
    assert "threads: 2 of the host" in threads.context().build_info()


def test_a_mapped_file_whose_name_is_no_text(tmp_path: Path) -> None:
    import libmoe.torch._threads as threads

    path = os.fsencode(tmp_path) + b"/\xff"
    with open(path, "w+b") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        with mmap.mmap(file.fileno(), 0):
            assert path in Path("/proc/self/maps").read_bytes()
            assert threads._parallel()
