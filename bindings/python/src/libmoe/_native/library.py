"""Finding libmoe.so, and the lifetime of what it makes."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
import weakref
from pathlib import Path
from typing import Any, ClassVar

from .._keywords import unknown
from .._repr import described
from .._version import __version__
from ..errors import ArgumentTypeError, BadStateError, error_for
from . import abi
from .callbacks import cancel, raised
from .running import Arguments, running
from .struct import Status
from .wording import in_python


def _candidates() -> list[Path]:
    """Places of the library, best first; a library the user names is the only one."""
    named = os.environ.get("LIBMOE_LIBRARY")
    if named:
        return [Path(named)]
    package = Path(__file__).resolve().parents[1]
    places = [package / "lib" / f"libmoe.so.{__version__.rpartition('.')[0]}"]
    checkout = package / ".." / ".." / ".." / ".."
    if (checkout / "include" / "moe.h").exists():
        places.append(checkout.resolve() / "build" / "lib" / "libmoe.so")
    return places


def _load() -> ctypes.CDLL:
    """Load the first library that loads and has this package's version."""
    failures, reasons = [], []
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
            library.moe_version_string.restype = ctypes.c_char_p
            version = library.moe_version_string().decode()
            if version == __version__:
                return _declare(library)
        except (OSError, AttributeError) as failure:
            failures.append(f"{path}: {failure}")
            reasons.append(_cure(path, str(failure)))
            continue
        failures.append(f"{path}: is version {version}, but this package needs {__version__}")
        reasons.append(
            "Build the library and install the package from one checkout: `make lib`, then "
            "`pip install ./bindings/python`."
        )
    found = "could not be loaded" if any(path.exists() for path in _candidates()) else "was not found"
    raise ImportError(
        f"libmoe.so {found}.  Tried:\n  "
        + "\n  ".join(failures)
        + "\n"
        + "\n".join(dict.fromkeys(reasons))
        + "\nThe environment variable LIBMOE_LIBRARY names another libmoe.so."
    )


def _cure(path: Path, failure: str) -> str:
    """Return what to do about a library that is not there, or that the system's loader refuses."""
    if not path.exists() and len(path.parts) > 1:
        return f"There is no {path}: build it with `make lib` at the top of a checkout."
    missing = re.match(r"(\S+): cannot open shared object file", failure)
    if missing and Path(missing[1]).name != path.name:
        return f"{path} is there, but {missing[1]} is not, which it needs: {_provider(missing[1])}"
    symbol = re.search(r"version [`']?(GLIBC\w*_[0-9.]+)'? not found", failure)
    if symbol:
        return (
            f"{path} was built where the C library is newer ({symbol[1]}): build it on this machine with "
            "`make lib`."
        )
    if "wrong ELF class" in failure or "invalid ELF header" in failure or "file too short" in failure:
        return (
            f"{path} is no library for this machine ({platform.machine()}), or only a part of one: build it "
            "here with `make lib`."
        )
    if "Permission denied" in failure or "failed to map segment" in failure:
        return (
            f"The system does not let this process load {path}: look at its mode, and at the mount's noexec."
        )
    if "undefined symbol" in failure:
        return f"{path} is not libmoe, or not of this version: build it with `make lib`."
    return f"The system's loader refuses {path}, for the reason above."


def _provider(name: str) -> str:
    """Return how to get a library that libmoe.so was built to need."""
    if "openblas" in name.lower():
        return "install OpenBLAS (Debian, Ubuntu: apt-get install libopenblas0)."
    return f"install the package of your system that has {name}."


class Function(ctypes._CFuncPtr):  # type: ignore[name-defined, misc]
    """A function of the library.  Those that may fail may also call back into Python meanwhile."""

    _flags_ = ctypes._FUNCFLAG_CDECL  # type: ignore[attr-defined]
    _restype_ = ctypes.c_int

    def __call__(self, *arguments: Any) -> Any:
        """Call it; what a callback raises comes out of the call."""
        if self.restype is not Status:
            return _call(self, *arguments)
        thread = _thread()
        outer = running.calls.get(thread)
        if outer is not None:
            return _within(outer, self, arguments)
        running.calls[thread] = [arguments]  # before the look at whether the interpreter ends
        try:
            if running.must_stop():
                raise SystemExit
            raised.exception = None  # of two signals in a row, an earlier call may have left the first
            return _call(self, *arguments)
        finally:
            del running.calls[thread]


_call = ctypes._CFuncPtr.__call__  # type: ignore[attr-defined]
_thread = threading.get_ident


def _within(outer: list[Arguments], function: Any, arguments: Arguments) -> Any:
    """Make a call that Python asks for while this thread is within other ones, which go on afterwards."""
    _require_free(outer, function.__name__, arguments)
    depth, kept = len(outer), raised.kept()
    try:
        outer.append(arguments)
        raised.begin()
        return _call(function, *arguments)
    finally:
        del outer[depth:]
        raised.put_back(kept)


# What reads an object that an interrupted call uses too, as another thread may do at the same time.
_READING = re.compile(
    "moe_(layer|model)_(forward|read|read_with|plan|plan_memory|parameter|parameter_count|find_parameter|layer|save|"
    "save_sharded)|moe_optimizer_state_size|moe_checkpoint_.*|moe_context_memory"
)


def _require_free(outer: list[Arguments], name: str, arguments: Arguments) -> None:
    """Refuse objects that the interrupted calls change or have locked: waiting for them would not end."""
    used = {id(handle.owner) for call in outer for handle in _handles(call)}
    for place, handle in enumerate(_handles(arguments)):
        if id(handle.owner) not in used or isinstance(handle, ContextHandle):
            continue
        if place > 0 or handle.owner.keep.get("offloaded") or not _READING.fullmatch(name):
            raise BadStateError(
                f"{name[4:]}: a call that uses the same object is running, and this signal handler or "
                "callback interrupts it; note what is wanted and do it when that call has returned"
            )


def _handles(arguments: Arguments) -> list[Handle]:
    """Return the native objects of a call, those within its options last."""
    listed = [argument for argument in arguments if isinstance(argument, Handle)]
    for argument in arguments:
        listed += [handle for handle in getattr(argument, "handles", ()) if handle is not None]
    return listed


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give every function its types, and every status its exception."""
    library._FuncPtr = Function
    for name, (result, arguments) in abi.FUNCTIONS.items():
        vars(library).pop(name, None)  # one that has been used before
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
        if result is Status:
            function.errcheck = _raise_failure
    return library


_FILES = abi.STATUS["error_io"]  # of paths, which are quoted as they are


def _raise_failure(status: Status, function: Any, arguments: Any) -> None:
    """Raise what a callback raised during the call, else what the status says."""
    exception = raised.take()
    if exception is not None:
        raise exception
    if status.value == abi.STATUS["error_cancelled"] and running.must_stop():
        raise SystemExit  # which ends a thread without a word
    if status.value != 0:
        # Names in it may be cut off within a character, or be no UTF-8.
        text = lib.moe_last_error_message().decode(errors="replace")
        raise error_for(status.value, text if status.value == _FILES else in_python(text))


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

    @property
    def owner(self) -> Handle:
        """The object that this one is part of, or itself."""
        return self


class ContextHandle(Handle):
    """Of a context, which any number of calls may use at once."""

    def __init__(self, *arguments: Any, log: Any) -> None:
        # The callbacks live as long as somebody may call them.
        keep = {"log": log, "cancel": cancel, "raised": raised}
        super().__init__(lib.moe_context_create, lib.moe_context_free, *arguments, keep=keep)


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

    @property
    def owner(self) -> Handle:
        """The object that this one is part of."""
        return self._owner.owner


class Native:
    """Base of the classes that stand for a native object; ``with`` or :meth:`close` lets go of it early."""

    _open_handle: Handle | None
    _instead: ClassVar[str] = ""  # of pickling: what keeps or makes such an object

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to pickle or copy memory of the library's, and say what to do."""
        raise ArgumentTypeError(
            f"a libmoe.{type(self).__name__} cannot be pickled or copied: it is memory and threads of this "
            f"process; {self._instead}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a public name that the class has not: it would be kept, and change nothing.

        Classes that users derive may have names of their own.
        """
        ours = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]
        if ours and name[0] != "_" and "_open_handle" in vars(self) and not hasattr(type(self), name):
            known = [each for each in dir(type(self)) if each[0] != "_"]
            raise AttributeError(unknown(type(self).__name__, [name], known))
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        return described(self, "closed" if self._open_handle is None else self._told())

    def _told(self) -> str:
        return ""

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

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
