"""Ctrl-C as a wish: the step that runs is finished, the run saved, and the process leaves by itself."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class AtOnce(KeyboardInterrupt):
    """A second signal, which does not wait for the step.

    Attributes
    ----------
    signal : int
        Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


class Interrupt:
    """Within a ``with``, notes SIGINT, SIGTERM and SIGHUP; a second of the first two interrupts at once.

    A terminal that closes sends SIGHUP, often twice (the system and the shell) and often with a SIGTERM, so
    it never hastens the end.  Where it is ignored already, as under ``nohup``, it stays so.

    Attributes
    ----------
    signal : int
        The number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        """Handle the signals; only the main thread can, in others they are left alone."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Handle them as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal and signal.SIGHUP not in (number, self.signal):
            raise AtOnce(number)
        self.signal = self.signal or number
