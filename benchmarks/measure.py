"""Timing: cases that are compared with each other take turns, and the median of their runs counts."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence

ROUNDS = 7
TURN = 0.1  # seconds that a turn lasts at least


def turn(run: Callable[[], object]) -> list[float]:
    """Run for a while, at least once, and return the seconds of each run."""
    times: list[float] = []
    while sum(times) < TURN:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def read_bandwidth(machine: str, threads: int) -> float:
    """Return the bytes that the threads read from memory in a second: it changes by the minute."""
    marks = subprocess.run([machine, str(threads)], check=True, stdout=subprocess.PIPE).stdout
    return 1e9 * float(json.loads(marks)[0]["gbs"])


def alternate(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each, from turns A B C A B C ... after a first run that does not count."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, mine in zip(runs, times):
            mine.append(statistics.median(turn(run)))
    return [statistics.median(mine) for mine in times]
