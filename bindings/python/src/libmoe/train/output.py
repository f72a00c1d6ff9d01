"""What a command says, also where nobody reads it any more: a pipe that was closed ends no training."""

from __future__ import annotations

import os
import sys
from typing import Any


class Watched:
    """A stream that notes the error of a write: a full disk's names no file by which to tell whose it is.

    Attributes
    ----------
    failure : OSError or None
        The last one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return int(self._stream.write(text)) if self._stream else 0  # a process may have none
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            if self._stream:
                self._stream.flush()
        except OSError as error:
            self.failure = error
            raise

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self._stream, name)


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Print a line at once, to the standard error if `error`.

    A reader that is gone (EPIPE of a pipe, EIO of a terminal that was closed) or a full disk under the output
    is no reason to lose what was learnt: what is said from then on is dropped.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # a process without it
        return
    try:
        print(text, file=stream, end=end, flush=True)
    except OSError:
        drop(error=error)


def drop(*, error: bool = False) -> None:
    """Send the rest of an output nowhere, what is buffered too, so that leaving does not fail on it."""
    stream = sys.stderr if error else sys.stdout
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def counted(count: int, noun: str) -> str:
    """Return ``1 layer``, ``2 layers``."""
    return f"{count:,} {noun}" + "s" * (count != 1)
