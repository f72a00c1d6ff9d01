"""Steps over three ranks, which are threads, with faults, for a long time: soak.py STEPS.

Fails where a rank hangs, where ranks hear different things of a fault, where memory grows, or where the
parameters are not those of one process.
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
import time

from resident import status

from rank_soak import require_the_bits_of_one_process, soak

GROWTH = (
    4 << 20
)  # bytes that the process may grow by after the first tenth, in which all of its memory has been used


def main() -> int:
    """Print a line for each tenth, and what became of all."""
    steps, started, resident = int(sys.argv[1]), time.monotonic(), []

    def tenth(done: int) -> None:
        resident.append(status("VmRSS"))
        seconds = time.monotonic() - started
        print(f"{done:8,} steps {seconds:8.0f} s {resident[-1] / 2**20:8.1f} MiB resident", flush=True)

    soaked = soak(steps, tenth=tenth)
    require_the_bits_of_one_process(soaked, steps)
    grown = resident[-1] - resident[0]
    print(f"{soaked.faults:,} faults, each the same words on all ranks; the bits are those of one process")
    print(f"resident memory has grown by {grown / 2**20:.1f} MiB since the first tenth")
    held = [f"{each[0]:,} then {each[-1]:,}" for each in soaked.memory]
    print(f"bytes that the ranks' contexts hold: {'; '.join(held)}")
    return 1 if grown > GROWTH else 0


sys.exit(main())
