"""Contexts: how many threads compute, and with what."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings

from . import words
from ._keywords import keywords
from ._native import abi, callbacks, fields
from ._native.library import ContextHandle, Native, lib
from ._native.numbers import instance
from .profile import Profile

ALL_THREADS = abi.THREADS_ALL
"""``n_threads``: as many as the affinity mask and the cgroup's processor quota allow."""


@keywords
class Context(Native):
    """Owns the threads and the log of the layers and optimisers created in it.

    The same inputs give the same bits for every ``n_threads``.  Ctrl-C, and any other exception of a signal
    handler, ends a long forward or backward and comes out of that call.

    Parameters
    ----------
    n_threads : int
        Threads that a call may use, the caller's included; more than :func:`processors` are warned of, and
        more than four times as many are not started.
    matmul : {"auto", "native", "openblas", "reference"}
        Who computes the matrix products.  ``"native"`` is this library's own kernels, fast and with the same
        bits on every processor that has fused multiply-add; ``"reference"`` gives these bits with plain
        loops, slowly.  ``"auto"``: native, or OpenBLAS on a processor without fused multiply-add.  OpenBLAS
        is loaded when it is asked for.
    instructions : {"all", "base", "avx2", "avx512", "avx512_bf16"}
        The most that may be used of the processor's instruction sets, for tests and comparisons.
    memory_limit : int or str
        Bytes of scratch and tape that a call may take, also as ``"512 MiB"`` or ``"1GB"``, see
        :meth:`Layer.plan`; 0 means no limit.
    log : callable, optional
        Called as ``log(level, line)`` with what the library decides.
    host_threads : int
        Address of a C function that lends threads in place of the context's own, as GNU OpenMP's
        ``GOMP_parallel`` does (``moe_context_config.host_threads``); 0: none.

    Raises
    ------
    InvalidArgumentError
        ``n_threads`` is beyond 1024 or below -1, ``matmul`` or ``instructions`` is not one of the words, or
        ``"native"`` is asked of a processor without fused multiply-add.
    OutOfMemoryError
        There is no memory, or none for OpenBLAS.
    FileError
        OpenBLAS is asked for and not installed.

    Notes
    -----
    Any number of Python threads may use one context.  A call that finds its threads busy runs alone.  Layers,
    tapes and optimisers keep their context alive, also when it is closed.
    """

    def __init__(
        self,
        n_threads: int = ALL_THREADS,
        matmul: words.Matmul = "auto",
        *,
        instructions: words.Instructions = "all",
        memory_limit: int | str = 0,
        log: callbacks.Log | None = None,
        host_threads: int = 0,
    ) -> None:
        log_function, told = callbacks.log_function(log)
        config = fields.filled(
            abi.moe_context_config,
            n_threads=n_threads,
            matmul=matmul,
            instructions=instructions,
            memory_limit=memory_limit,
            log=log_function,
            log_user=None if told is None else told.address,
            host_threads=callbacks.host_threads(host_threads),
            cancel=callbacks.cancel,
            cancel_user=id(callbacks.raised),
        )
        self._told_by = f"n_threads={n_threads}, matmul={matmul!r}"
        self._open_handle = ContextHandle(ctypes.byref(config), log=told)
        if n_threads > processors():
            warnings.warn(
                f"n_threads = {n_threads}, but this process may use {processors()} processors; "
                f"{self.threads} threads compute, and not faster: leave n_threads out to take what there is",
                RuntimeWarning,
                stacklevel=3,
            )

    _instead = "make one in each process: libmoe.Context(n_threads=...)"

    def _told(self) -> str:
        return self._told_by

    @property
    def threads(self) -> int:
        """Threads that a call uses at most, the caller's included."""
        return int(lib.moe_context_threads(self._handle))

    def memory(self) -> tuple[int, int]:
        """Return the bytes that everything made in this context holds now, and the most it has held."""
        current, peak = ctypes.c_size_t(), ctypes.c_size_t()
        lib.moe_context_memory(self._handle, ctypes.byref(current), ctypes.byref(peak))
        return current.value, peak.value

    def profile(self, max_events: int = 0) -> Profile:
        """Measure where the time of this context's calls goes, see :class:`Profile`.

        Parameters
        ----------
        max_events : int
            Events kept for a time line; the sums need none.
        """
        return Profile(self._handle, max_events)

    def build_info(self) -> str:
        """One line about the library and what this context runs with: kernels, matrix products, threads."""
        return str(lib.moe_build_info(self._handle).decode())


_default: Context | None = None
_default_lock = threading.Lock()


def _forked() -> None:
    """Have a lock that no thread holds: a forked child does not have the one that may have held it."""
    global _default_lock
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def default_context() -> Context:
    """Return the context of everything that is given none: all threads, made on first use."""
    global _default
    with _default_lock:
        if _default is None or _default._open_handle is None:
            _default = Context()
        return _default


def handle_of(context: Context | None) -> ContextHandle:
    """Return the native context of an argument ``context``, whose default is the shared one."""
    if context is None:
        context = default_context()
    handle: ContextHandle = instance("context", context, Context, "libmoe.Context()")._handle
    return handle


def processors() -> int:
    """Return how many processors this process may use: by its affinity mask and its cgroup's quotas."""
    return int(lib.moe_processors())


def build_info() -> str:
    """One line about the library: version, how it was built, instruction sets."""
    return str(lib.moe_build_info(None).decode())
