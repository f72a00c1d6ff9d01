"""Resident memory of this process, as Linux counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def status(field: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS, what is resident, or VmHWM, the most there was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, value = line.split(":", 1)
        if name == field:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"/proc/self/status has no {field}")


def growth(run: Callable[[], Result]) -> tuple[int, Result]:
    """Return by how many bytes resident memory grows at most while `run` runs, and its result."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again, at VmRSS
    before = status("VmRSS")
    result = run()
    return status("VmHWM") - before, result
