"""What happens in Python while a native call runs: signals such as Ctrl-C, and the log."""

from __future__ import annotations

import ctypes
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ArgumentTypeError
from . import abi, check
from .running import running

Kept = tuple[Any, ...]


class _Raised(threading.local):
    """The exception that a callback of this thread's native call raised, kept until the call has returned.

    An exception cannot cross native frames, and ctypes would print it and go on.  So it waits here, and the
    library is asked to stop.  A signal handler is the hard case: Python runs it on entry to the next
    function, which would be the callback itself, before any ``try`` of its own is reached.  A generator that
    is resumed is already inside its ``try``; therefore the cancel callback is the ``__next__`` of one, called
    without a Python function in between.  Each thread has its own, and each call that is made within another
    (by a signal handler): a running generator cannot be resumed.
    """

    exception: BaseException | None = None

    def __init__(self) -> None:
        self.poll: Callable[[], bool]
        self.begin()

    def begin(self) -> None:
        """Have a generator of one's own, for a call within another; :meth:`put_back` ends it."""
        self.exception = None
        poll = self._watch().__next__
        poll()  # as far as the first yield
        self.poll = poll

    def kept(self) -> Kept:
        """Return what the outer call has, for :meth:`put_back`."""
        return self.poll, self.exception

    def put_back(self, kept: Kept) -> None:
        """Go on for the outer call."""
        self.poll, self.exception = kept

    def _watch(self) -> Iterator[bool]:
        while True:
            try:
                while True:
                    yield self.exception is not None or running.must_stop()
            except GeneratorExit:
                return
            except BaseException as exception:
                self.exception = exception

    def take(self) -> BaseException | None:
        """Return the exception and forget it."""
        exception, self.exception = self.exception, None
        return exception


raised = _Raised()
"""One per thread; its address is the user pointer of the cancel callback."""

_cancel = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.py_object)(operator.methodcaller("poll"))
cancel = ctypes.cast(_cancel, abi.moe_context_config_cancel)
"""1 when the native call should end, for the thread that asks; its user pointer is ``id(raised)``."""

Log = Callable[[int, str], None]


def log_function(log: Log | None) -> Any:
    """Native function that passes level and line to ``log``; NULL for None."""
    if log is None:
        return abi.moe_context_config_log()
    if not callable(log):
        raise ArgumentTypeError(
            f"log: expected a function of level and line, got {type(log).__name__}; use print"
        )

    def pass_on(_user: int | None, level: int, message: bytes) -> None:
        try:
            log(level, message.decode())
        except BaseException as exception:
            raised.exception = exception

    return abi.moe_context_config_log(pass_on)


def host_threads(address: int) -> Any:
    """Native function at that address; NULL for 0."""
    address = check.integer("host_threads", address, ctypes.c_size_t)
    return abi.moe_context_config_host_threads(address) if address else abi.moe_context_config_host_threads()
