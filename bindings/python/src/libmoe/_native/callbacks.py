"""What happens in Python while a native call runs: signals such as Ctrl-C, and the log."""

from __future__ import annotations

import ctypes
import functools
import operator
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ..errors import ArgumentTypeError
from . import abi, check
from .running import running

Kept = tuple[Any, ...]


class Told(int):
    """A function that a native call tells something, as the user pointer of its callback; as a number 0."""

    function: Callable[..., Any]
    count: int
    stops: bool

    def __new__(cls, function: Callable[..., Any], count: int = 2, stops: bool = True) -> Told:
        """Hold a function of so many arguments, which are those of the callback behind the user pointer.

        With ``stops`` an exception that waits asks the library to stop, whatever raised it.
        """
        told = super().__new__(cls, 0)
        told.function = function
        told.count = count
        told.stops = stops
        return told

    @property
    def address(self) -> int:
        """The user pointer; whoever makes the native call keeps this object as long."""
        return id(self)


FAILED = object()
"""What a function returns that has failed without an exception for the caller."""


class _Raised(threading.local):
    """The exception that a callback of this thread's native call raised, kept until the call has returned.

    An exception cannot cross native frames, and ctypes would print it and go on.  So it waits here, and the
    library is asked to stop.  A signal handler is the hard case: Python runs it on entry to the next
    function, which would be the callback itself, before any ``try`` of its own is reached.  A generator that
    is resumed is already inside its ``try``; therefore the cancel callback is the ``__next__`` of one, called
    without a Python function in between, and callbacks with arguments hand them to the ``send`` of another
    (see :func:`_told`).  Each thread has its own, and each call that is made within another (by a signal
    handler): a running generator cannot be resumed.
    """

    exception: BaseException | None = None

    def __init__(self) -> None:
        self.poll: Callable[[], bool]
        self.hear: Callable[[Any], int]
        self.begin()

    def begin(self) -> None:
        """Have generators of one's own, for a call within another; :meth:`put_back` ends them."""
        self.exception = None
        poll, hear = self._watch().__next__, self._listen().send
        poll()  # as far as the first yield
        hear(None)
        self.poll, self.hear = poll, hear

    def kept(self) -> Kept:
        """Return what the outer call has, for :meth:`put_back`."""
        return self.poll, self.hear, self.exception

    def put_back(self, kept: Kept) -> None:
        """Go on for the outer call."""
        self.poll, self.hear, self.exception = kept

    # raised(value) is raised.hear(value) of this thread, without a Python function in between.
    __call__ = property(operator.attrgetter("hear"))

    def _watch(self) -> Iterator[bool]:
        while True:
            try:
                while True:
                    yield self.exception is not None or running.must_stop()
            except GeneratorExit:
                return
            except BaseException as exception:
                self.exception = exception

    def _listen(self) -> Generator[int, Any, None]:
        """Take a callback's arguments one by one, and call the function when all are there.

        What is yielded falls from argument to argument, and rises once something is wrong: so the largest
        belongs to the first argument if all went well, else to the last.
        """
        given: list[Any] = []
        number = 0
        wrong = False
        while True:
            try:
                while True:
                    number += 1
                    waits = self.exception is not None and bool(given) and given[0].stops
                    value = yield number if wrong or waits else -number
                    if isinstance(value, Told):
                        given, wrong = [value], False
                    elif given:
                        given.append(value)
                        if len(given) == 1 + given[0].count:
                            wrong = given[0].function(*given[1:]) is FAILED
            except GeneratorExit:
                return
            except BaseException as exception:
                self.exception = exception
                # An argument may be lost: what is left of this callback's changes nothing.
                given, wrong = [], True

    def take(self) -> BaseException | None:
        """Return the exception and forget it."""
        exception, self.exception = self.exception, None
        return exception


raised = _Raised()
"""One per thread; its address is the user pointer of the cancel callback."""

_cancel = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.py_object)(operator.methodcaller("poll"))
cancel = ctypes.cast(_cancel, abi.moe_context_config_cancel)
"""1 when the native call should end, for the thread that asks; its user pointer is ``id(raised)``."""


def _told(result: Any, *types: Any) -> Any:
    """Return a native callback (user, a, b), whose user pointer is a :class:`Told`, that calls its function.

    ``max`` sends the three arguments to :meth:`_Raised._listen` and returns one of them: the user object,
    which is 0, to go on, or the last one, which is not, to stop.
    """
    return ctypes.CFUNCTYPE(result, ctypes.py_object, *types)(functools.partial(max, key=raised))


def telling(kind: Any, function: Callable[..., Any]) -> Any:
    """Return a native callback of a type, which tells a function all of its arguments, user pointer included.

    It returns 0, or 1 where the function has raised something or returned :data:`FAILED`.
    """
    told = Told(function, len(kind._argtypes_), stops=False)
    # What max returns is then its last argument, of which a bool is 1.
    result = kind._restype_ and ctypes.c_bool
    native = ctypes.CFUNCTYPE(result, *kind._argtypes_)(functools.partial(max, told, key=raised))
    return ctypes.cast(native, kind)


Log = Callable[[int, str], None]

_log = _told(None, ctypes.c_int32, ctypes.c_char_p)
# Of a bool any number but 0 is 1, also one whose lower half is 0.
_progress = _told(ctypes.c_bool, ctypes.c_size_t, ctypes.c_size_t)


def log_function(log: Log | None) -> tuple[Any, Told | None]:
    """Native function that passes level and line to ``log``, and its user pointer; NULL for None."""
    if log is None:
        return abi.moe_context_config_log(), None
    if not callable(log):
        raise ArgumentTypeError(
            f"log: expected a function of level and line, got {type(log).__name__}; use print"
        )
    return (
        ctypes.cast(_log, abi.moe_context_config_log),
        Told(lambda level, message: log(level, message.decode())),
    )


def tell_progress(options: Any, progress: Callable[[int, int], Any] | None) -> None:
    """Have a function told bytes that are done and all bytes; what it raises comes out of the call.

    ``options`` has ``progress`` and ``progress_user``, and lives as long as the call.
    """
    if progress is None:
        return
    if not callable(progress):
        raise ArgumentTypeError(
            f"progress: expected a callable, got {type(progress).__name__}; use lambda done, total: ..."
        )
    options.progress = ctypes.cast(_progress, type(options.progress))
    options.told = Told(progress)
    options.progress_user = options.told.address


def host_threads(address: int) -> Any:
    """Native function at that address; NULL for 0."""
    address = check.integer("host_threads", address, ctypes.c_size_t)
    return abi.moe_context_config_host_threads(address) if address else abi.moe_context_config_host_threads()
