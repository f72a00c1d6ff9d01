"""How far a command is with files, and how fast it writes, on the standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from .train.output import counted, say

PAUSE = 0.1  # seconds between two changes of the line on a terminal


class Meter:
    """Told how many bytes of all are done: a line that changes on a terminal, one line at the end elsewhere.

    Parameters
    ----------
    verb, done : str
        ``"reading"`` and ``"read"``.
    what : str
        The folder.
    told : callable
        From how many to the words for it; by default of bytes.
    """

    def __init__(self, verb: str, done: str, what: str, told: Callable[[int], str] | None = None) -> None:
        self._told = told or size
        self._verb, self._done, self._what = verb, done, what
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._total = 0

    def __call__(self, done: int, total: int) -> None:
        """Show it, on a terminal and not too often."""
        self._total = total
        now = time.monotonic()
        if self._terminal and now - self._drawn >= PAUSE:
            self._drawn = now
            share = done / max(1, total)
            say(f"\r\033[K{self._verb} {self._what}: {share:.0%} of {self._told(total)}", error=True, end="")

    def end(self) -> None:
        """Say how long it took."""
        seconds = time.monotonic() - self._started
        start = "\r\033[K" if self._terminal else ""
        say(f"{start}{self._done} {self._what}: {self._told(self._total)} in {seconds:.1f} s", error=True)


class Speed:
    """Times tokens as they come.

    Attributes
    ----------
    n_prompt : int
        Tokens that are read first.
    ends : collection of int
        Tokens that end the text.
    """

    def __init__(self, n_prompt: int, ends: Collection[int] = ()) -> None:
        self.n_prompt, self.ends = n_prompt, ends
        self._token: Any = None  # the last one
        self._started = time.monotonic()
        self._first: float | None = None
        self._last = self._started
        self._count = 0

    def timed(self, tokens: Iterator[int]) -> Iterator[int]:
        """Yield them, and note when."""
        for token in tokens:
            self._last = time.monotonic()
            self._first = self._first or self._last
            self._count += 1
            self._token = token
            yield token

    def __str__(self) -> str:
        """One line: the prompt, the time to the first token, tokens a second after it, and what ended it."""
        if self._first is None:
            return f"{counted(self.n_prompt, 'token')} of the prompt, none written"
        wait = self._first - self._started
        text = f"{counted(self.n_prompt, 'token')} of the prompt, first token after {wait:.2f} s"
        ended = self._token in self.ends
        if self._count > 1:
            rate = (self._count - 1) / max(self._last - self._first, 1e-9)
            text += f"; {self._count} tokens written, {rate:,.1f} tokens/s after the first"
        elif not ended:
            text += "; 1 token written"
        if ended:
            text += f"; token {self._token} ended the text" + (" before it began" if self._count == 1 else "")
        return text


def size(count: int) -> str:
    """Bytes for people."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"
