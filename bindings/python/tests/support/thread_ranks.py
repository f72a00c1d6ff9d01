"""Threads as ranks: Tests/ranks/thread_ranks.c from Python."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import compiler
import libmoe
from libmoe._native import abi

Result = TypeVar("Result")

NOT_BEGUN, NOT_ENDED, LOST = 1, 2, 3
"""Faults: the call that begins an exchange fails; test and wait for it; nothing of it ever arrives."""

_ROOT = Path(__file__).resolve().parents[4]
_SOURCES = [_ROOT / "Tests" / "ranks" / name for name in ("thread_ranks.c", "contract.c")]


def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/thread_ranks.so"
        flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-pthread", f"-I{_ROOT / 'include'}"]
        subprocess.run([compiler.PATH, *flags, *map(str, _SOURCES), "-o", path], check=True)
        library = ctypes.CDLL(path)
    group, rank, number = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    types: dict[str, tuple[Any, list[Any]]] = {
        "thread_ranks_create": (group, [rank, ctypes.POINTER(abi.moe_communicator)]),
        "thread_ranks_free": (None, [group]),
        "thread_ranks_set_patience": (None, [group, ctypes.c_double]),
        "thread_ranks_set_link": (None, [group, ctypes.c_double, ctypes.c_double]),
        "thread_ranks_bytes": (number, [group, rank, rank]),
        "thread_ranks_exchanges": (number, [group, rank]),
        "thread_ranks_slept": (ctypes.c_double, [group, rank]),
        "thread_ranks_set_fault": (None, [group, rank, number, ctypes.c_int32]),
        "thread_ranks_break": (None, [group]),
        "contract": (ctypes.c_char_p, [ctypes.POINTER(abi.moe_communicator), number]),
        "contract_beside": (ctypes.c_char_p, [ctypes.POINTER(abi.moe_communicator)] * 2),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


lib = _library()
"""The group's functions, and the contract that every communicator has to keep."""


def unkept(communicator: libmoe.Communicator, large: int = 1 << 20) -> str | None:
    """Return what a communicator does against the contract; all ranks call it."""
    said: bytes | None = lib.contract(communicator._struct, large)
    return said.decode() if said else None


def on_threads(
    communicators: Sequence[libmoe.Communicator],
    one: Callable[[libmoe.Communicator], Result],
    died: Callable[[], Any] = lambda: None,
) -> list[Result]:
    """Call a function in a thread for each rank; return what each returned, or raise what one raised."""
    results: list[Any] = [None] * len(communicators)
    raised: list[BaseException] = []

    def on(rank: int) -> None:
        try:
            results[rank] = one(communicators[rank])
        except BaseException as exception:
            raised.append(exception)
            died()

    threads = [threading.Thread(target=on, args=(rank,)) for rank in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return results


class ThreadRanks:
    """A group of ranks in one process; freed with the last of its communicators.

    Parameters
    ----------
    size
        How many.
    patience
        Seconds after which a wait for a rank that does not come is an error.
    """

    def __init__(self, size: int, patience: float = 60) -> None:
        ends = (abi.moe_communicator * size)()
        self._group = lib.thread_ranks_create(size, ends)
        assert self._group
        lib.thread_ranks_set_patience(self._group, patience)
        self.communicators = [libmoe.Communicator(ctypes.addressof(end), keep=self) for end in ends]

    def __del__(self) -> None:
        lib.thread_ranks_free(self._group)

    def run(self, one: Callable[[libmoe.Communicator], Result]) -> list[Result]:
        """Call a function in a thread for each rank, as :func:`on_threads` does; one that raises is dead."""
        return on_threads(self.communicators, one, lambda: lib.thread_ranks_break(self._group))

    def bytes(self, sender: int, receiver: int) -> int:
        """Return how many bytes one rank has sent to another."""
        return int(lib.thread_ranks_bytes(self._group, sender, receiver))

    def exchanges(self, rank: int) -> int:
        """Return how many exchanges a rank has begun."""
        return int(lib.thread_ranks_exchanges(self._group, rank))

    def slept(self, rank: int) -> float:
        """Return for how many seconds a rank's waits have been for bytes on their way."""
        return float(lib.thread_ranks_slept(self._group, rank))

    def slow_down(self, bytes_per_second: float = 0, latency: float = 0) -> None:
        """Have messages between ranks take their time; 0 bytes per second: no limit."""
        lib.thread_ranks_set_link(self._group, bytes_per_second, latency)

    def fail(self, rank: int, exchange: int, fault: int) -> None:
        """Have a rank's n-th exchange fail; they count from 1."""
        lib.thread_ranks_set_fault(self._group, rank, exchange, fault)
