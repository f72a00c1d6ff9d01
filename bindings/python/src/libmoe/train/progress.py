"""Progress of a run on the standard error: one line that changes on a terminal, lines that stay elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time

from .output import say

BAR, SMALLEST_BAR = 24, 8  # characters
PAUSE = 0.1  # seconds between two changes of the line on a terminal


class Progress:
    """Shows how far a run is; use it in a ``with``.

    Parameters
    ----------
    steps : int
        Of the whole run.
    quiet : bool
        Whether nothing is shown.
    """

    def __init__(self, steps: int, *, quiet: bool = False) -> None:
        self._steps = steps
        self._quiet = quiet
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._started = time.monotonic()
        self._first: int | None = None  # step at which this process began
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal on a line of its own."""
        if self._terminal and self._drawn:
            say("", error=True)

    def step(self, done: int, loss: str, speed: str) -> None:
        """Show that `done` steps are done; on a terminal only."""
        if self._first is None:
            self._first = done - 1
        now = time.monotonic()
        if self._quiet or not self._terminal or (now - self._drawn < PAUSE and done < self._steps):
            return
        self._drawn = now
        left = (now - self._started) / (done - self._first) * (self._steps - done)
        line = fitted(done, self._steps, [loss, f"{clock(left)} left", speed], _columns() - 1)
        say("\r\033[K" + line, error=True, end="")

    def logged(self, done: int, loss: str, speed: str) -> None:
        """Show a line of the log; where there is a terminal the changing line has said it."""
        if not self._terminal:
            self.line(f"step {done}/{self._steps}: {loss}, {speed}")

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            say(("\r\033[K" if self._terminal else "") + text, error=True)


def fitted(done: int, steps: int, parts: list[str], columns: int) -> str:
    """Return a line no wider than that: the first part, a small bar, then what else there is room for."""
    line, bar = f"{done}/{steps}", 0
    for number, part in enumerate(parts):
        if len(line) + 2 + len(part) + (bar and bar + 3) <= columns:
            line += "  " + part
        room = columns - len(line) - 3  # for the bar, between brackets, and a space
        if number == 0 and line.endswith(part) and room >= SMALLEST_BAR:
            bar = SMALLEST_BAR
    if bar:
        bar = min(BAR, columns - len(line) - 3)
        return f"[{'#' * round(bar * done / steps):-<{bar}}] {line}"
    return line[: max(0, columns)]


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    return (
        f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02d} h"
    )


def _columns() -> int:
    """Of the terminal that the line is on: the standard output may be something else."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return columns or shutil.get_terminal_size().columns
