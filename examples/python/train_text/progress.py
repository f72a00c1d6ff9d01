"""A progress bar of one line: rewritten on a terminal, a plain line now and then elsewhere."""

import shutil
import sys
import time


class Progress:
    """Call `show` as often as you like, then `close`."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._pause = 0.1 if self._terminal else 10.0  # seconds between two lines
        self._due = time.monotonic() + self._pause

    def show(self, done: float, text: str) -> None:
        """Show that the share `done` of the work is done; the last call, with 1, always shows."""
        if time.monotonic() < self._due and done < 1:
            return
        self._due = time.monotonic() + self._pause
        if not self._terminal:
            print(f"{done:4.0%}  {text}", flush=True)
            return
        columns = shutil.get_terminal_size().columns - 1
        length = max(0, min(30, columns - len(text) - 9))
        full = int(done * length)
        line = f"[{'#' * full}{'.' * (length - full)}] {done:4.0%}  {text}"
        print(f"\r{line[:columns]:<{columns}}", end="", flush=True)

    def close(self) -> None:
        """Leave the line."""
        if self._terminal:
            print()
