"""Finding libmoe.so, and the lifetime of what it makes."""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from . import _abi, _abi_model
from ._callbacks import raised
from ._version import __version__
from .errors import BadStateError, error_for


def _candidates() -> list[Path]:
    """Places of the library, best first; a library the user names is the only one."""
    named = os.environ.get("LIBMOE_LIBRARY")
    if named:
        return [Path(named)]
    package = Path(__file__).resolve().parent
    places = [package / "lib" / "libmoe.so"]
    checkout = package / ".." / ".." / ".." / ".."
    if (checkout / "include" / "moe.h").exists():
        places.append(checkout.resolve() / "build" / "lib" / "libmoe.so")
    return places


def _load() -> ctypes.CDLL:
    """Load the first library that loads and has this package's version."""
    failures = []
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
            library.moe_version_string.restype = ctypes.c_char_p
            version = library.moe_version_string().decode()
        except (OSError, AttributeError) as failure:
            failures.append(f"{path}: {failure}")
            continue
        if version == __version__:
            return _declare(library)
        failures.append(f"{path}: is version {version}, but this package needs {__version__}")
    raise ImportError(
        "libmoe.so was not found.  Tried:\n  "
        + "\n  ".join(failures)
        + "\nBuild it with `make lib`, or name it in the environment variable LIBMOE_LIBRARY."
    )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give every function its types, and every status its exception."""
    for name, (result, arguments) in {**_abi.FUNCTIONS, **_abi_model.FUNCTIONS}.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
        if result is _abi.Status:
            function.errcheck = _raise_failure
    return library


def _raise_failure(status: _abi.Status, function: Any, arguments: Any) -> None:
    """Raise what a callback raised during the call, else what the status says."""
    exception = raised.take()
    if exception is not None:
        raise exception
    if status.value != 0:
        # Names in it may be cut off within a character, or be no UTF-8.
        raise error_for(status.value, lib.moe_last_error_message().decode(errors="replace"))


lib = _load()
"""The loaded library; ctypes lets go of the interpreter lock while one of its functions runs."""


class Handle:
    """One native object, freed when the last Python reference to its handle goes.

    Whoever needs the native object holds its handle: a running call, a numpy view of its memory, the handles
    made from it.  So nothing is freed under somebody's feet, whatever is closed first.

    Parameters
    ----------
    create, free
        Functions of the library; the last argument of ``create`` is the out pointer.
    arguments
        The other arguments of ``create``.
    keep
        Objects that must live as long as the native object: handles, callbacks, bound arrays.
    """

    def __init__(self, create: Any, free: Any, *arguments: Any, keep: dict[Any, Any]) -> None:
        self.keep = keep
        # ctypes passes this where the handle is an argument.
        self._as_parameter_ = create.argtypes[-1]._type_()
        try:
            create(*arguments, ctypes.byref(self._as_parameter_))
        finally:  # a log callback may have raised although the object was made; freeing NULL is harmless
            finalizer = weakref.finalize(self, free, self._as_parameter_)
            finalizer.atexit = False  # a daemon thread may still compute while the interpreter exits


class Borrowed(Handle):
    """Part of another native object, which it keeps alive: nothing is freed with it.

    Parameters
    ----------
    pointer
        The native object.
    owner
        To whom it belongs.
    keep
        As of :class:`Handle`; the owner has it too.
    """

    def __init__(self, pointer: Any, owner: Handle, keep: dict[Any, Any]) -> None:
        self._as_parameter_ = pointer
        self._owner = owner
        self.keep = keep


class Native:
    """Base of the classes that stand for a native object; ``with`` or :meth:`close` lets go of it early."""

    _open_handle: Handle | None

    @property
    def _handle(self) -> Handle:
        if self._open_handle is None:
            raise BadStateError(f"this {type(self).__name__} is closed")
        return self._open_handle

    def close(self) -> None:
        """Let go of the native object; its memory goes with the last array or object that uses it."""
        self._open_handle = None

    def __enter__(self) -> Any:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
