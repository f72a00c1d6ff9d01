"""Torch's threads, on which libmoe computes too.

After every parallel region the threads of GNU OpenMP, which torch computes with, wait for the next one
without letting go of their processor, for milliseconds; threads of libmoe's own would have to wait for them.
So libmoe's work is a parallel region as well.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from ..context import Context, processors

_contexts: dict[tuple[int, int], Context] = {}


def context() -> Context:
    """Return the context of as many threads as torch may use now; one for each process."""
    key = os.getpid(), torch.get_num_threads()
    found = _contexts.get(key)
    if found is None:
        found = _contexts[key] = Context(min(key[1], processors()), host_threads=_parallel())
    return found


def _parallel() -> int:
    """Return the address of GOMP_parallel in the GNU OpenMP library that torch has loaded, or 0."""
    try:
        # Names of other files that are mapped may be any bytes.
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        lines = maps.splitlines()
        paths = (line[line.index("/") :] for line in lines if "/" in line)
        path = next(path for path in paths if os.path.basename(path).startswith("libgomp"))
        parallel = ctypes.CDLL(path).GOMP_parallel
    except (OSError, AttributeError, StopIteration):  # another library, or its file has been replaced since
        return 0
    return ctypes.cast(parallel, ctypes.c_void_p).value or 0
