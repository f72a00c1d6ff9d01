"""Native calls that run: waited for when the interpreter ends, kept apart where one runs within another."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Any

Arguments = tuple[Any, ...]


class Running:
    """The calls that each thread has within the library, by the thread's number, the outermost first.

    A call within another is made by what Python runs during a call: a signal handler, a log function, a
    finaliser that the garbage collector found.
    """

    def __init__(self) -> None:
        self.calls: dict[int, list[Arguments]] = {}
        self.ender: int | None = None  # the thread that ends the interpreter, once it has begun to

    def must_stop(self) -> bool:
        """Return whether the interpreter ends, and not by this thread: no call may ask Python any more."""
        return self.ender is not None and self.ender != threading.get_ident()

    def end(self) -> None:
        """Wait for the calls of other threads, which are daemons, or else had been joined.

        They ask for their cancellation every few milliseconds, and get it.  Once the interpreter has begun
        to take itself apart, a call that asked would crash: Python ends a thread that wants its lock then,
        in the middle of the library.
        """
        self.ender = threading.get_ident()
        while any(thread != self.ender for thread in list(self.calls)):
            try:
                time.sleep(0.001)
            except BaseException:  # a second Ctrl-C does not make it safe
                continue

    def forked(self) -> None:
        """Forget the threads that a forked child does not have."""
        me = threading.get_ident()
        self.calls = {me: self.calls[me]} if me in self.calls else {}


running = Running()
atexit.register(running.end)
os.register_at_fork(after_in_child=running.forked)
