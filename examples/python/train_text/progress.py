"""Progress of the training: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time

from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PAUSE = 5.0  # seconds between two plain lines


class Progress:
    """Call `show` as often as you like, inside a `with`."""

    def __init__(self) -> None:
        columns = (
            BarColumn(30),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns)
        self._due = time.monotonic() + PAUSE

    def __enter__(self) -> Progress:
        """Draw the bar, on a terminal."""
        if self._bar.console.is_interactive:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()

    def show(self, done: float, text: str) -> None:
        """Show that the share `done` of the work is done; the last call, with 1, always shows."""
        if self._bar.console.is_interactive:
            self._bar.update(self._task, completed=done, description=text)
        elif time.monotonic() >= self._due or done == 1:
            self._due = time.monotonic() + PAUSE
            print(f"{done:4.0%}  {text}", flush=True)
