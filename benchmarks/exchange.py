"""What messages between the ranks of this machine take: mpiexec -n 2 python exchange.py LIBRARY.

LIBRARY is libmoe_mpi.so.  Rank 0 prints a line of JSON: `copy_rate`, the bytes a second that the ranks
together move to each other, and `copy_latency`, the seconds of an exchange of 8 bytes.
"""
# Types are checked where mpi4py need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from measure import ROUNDS

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from over_mpi import over_mpi  # noqa: E402

import libmoe  # noqa: E402

BYTES = 16 << 20  # from each rank to each, more than caches hold
SMALL = 200  # exchanges of 8 bytes that are timed together


def exchange(communicator: libmoe.Communicator, bytes_: int, times: int) -> float:
    """Return the seconds of an exchange of all with all, with nothing to a rank itself."""
    struct = communicator._struct
    size = struct.size
    counts = (ctypes.c_int64 * size)(*(0 if r == struct.rank else bytes_ for r in range(size)))
    offsets = (ctypes.c_int64 * size)(*(r * bytes_ for r in range(size)))
    out, into = (np.ones(size * bytes_, np.uint8) for _ in range(2))
    request = ctypes.c_void_p()
    started = time.perf_counter()
    for _ in range(times):
        code = struct.all_to_all(
            struct.user,
            out.ctypes.data,
            counts,
            offsets,
            into.ctypes.data,
            counts,
            offsets,
            ctypes.addressof(request),
        )
        if code or struct.wait(struct.user, request.value):
            raise RuntimeError("an exchange has failed")
    return (time.perf_counter() - started) / times


def main() -> None:
    """Measure; the first time of each does not count."""
    communicator = over_mpi(sys.argv[1])
    size = communicator.size
    large, small = (
        statistics.median([exchange(communicator, *what) for _ in range(1 + ROUNDS)][1:])
        for what in ((BYTES, 2), (8, SMALL))
    )
    if communicator.rank == 0:
        print(json.dumps({"copy_rate": size * (size - 1) * BYTES / large, "copy_latency": small}), flush=True)


main()
