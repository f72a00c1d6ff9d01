"""Torch's threads, which would keep the processors from libmoe's.

After every parallel region the threads of GNU OpenMP, which torch computes with, wait for the next one
without letting go of their processor, for milliseconds; libmoe's threads wait for them meanwhile.  OpenMP's
library waits so only as long as it has no more threads than there are processors.  One region on a thread
that then sleeps for good gives it more, and its threads go to sleep after microseconds; they are woken as
before.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import torch

from ..context import Context, processors

_contexts: dict[tuple[int, int], Context] = {}
_CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # a user who sets one has decided
_asked = threading.Event()  # in this process or in one that it was forked from, whose threads count on


def context() -> Context:
    """Return the context of as many threads as torch may use now; one for each process."""
    key = os.getpid(), torch.get_num_threads()
    found = _contexts.get(key)
    if found is None:
        calm()
        found = _contexts[key] = Context(min(key[1], processors()))
    return found


def calm() -> None:
    """Have idle OpenMP threads sleep in this process, once."""
    if _asked.is_set():
        return
    _asked.set()
    path = _library()
    if path is None or any(name in os.environ for name in _CHOSEN):
        return
    try:
        gomp, libc = ctypes.CDLL(path), ctypes.CDLL(None)
    except OSError:  # the file has been replaced since it was loaded
        return
    ready = threading.Event()

    def park() -> None:
        # Each thread of the region frees NULL, which does nothing, and stays to be used again.
        nothing = ctypes.cast(libc.free, ctypes.c_void_p)
        gomp.GOMP_parallel(nothing, None, ctypes.c_uint((os.cpu_count() or 1) + 1), ctypes.c_uint(0))
        ready.set()
        threading.Event().wait()

    threading.Thread(target=park, name="libmoe: more OpenMP threads than processors", daemon=True).start()
    ready.wait(10)


def _library() -> str | None:
    """Return the GNU OpenMP library that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = (line[line.index("/") :] for line in lines if "/" in line)
    return next((path for path in paths if os.path.basename(path).startswith("libgomp")), None)
