"""Progress of a run on the standard error: one line that changes on a terminal, sometimes one that stays."""

from __future__ import annotations

import shutil
import sys
import time

BAR = 24  # characters
PAUSE = 0.1  # seconds between two changes of the line on a terminal


class Progress:
    """Shows how far a run is; use it in a ``with``.

    Parameters
    ----------
    steps : int
        Of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._first: int | None = None  # step at which this process began
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal on a line of its own."""
        if self._terminal and self._drawn:
            print(file=sys.stderr)

    def step(self, done: int, text: str) -> None:
        """Show that `done` steps are done; on a terminal only."""
        if self._first is None:
            self._first = done - 1
        now = time.monotonic()
        if not self._terminal or (now - self._drawn < PAUSE and done < self._steps):
            return
        self._drawn = now
        share = done / self._steps
        left = (now - self._started) / (done - self._first) * (self._steps - done)
        bar = "#" * round(BAR * share)
        line = f"[{bar:-<{BAR}}] {done}/{self._steps}  {text}  {clock(left)} left"
        print(
            "\r\033[K" + line[: shutil.get_terminal_size().columns - 1], end="", file=sys.stderr, flush=True
        )

    def line(self, text: str) -> None:
        """Print a line that stays."""
        start = "\r\033[K" if self._terminal else ""
        print(start + text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    return (
        f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02d} h"
    )
