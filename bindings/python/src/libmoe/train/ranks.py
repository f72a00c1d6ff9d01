"""The processes that train one model together, started by mpiexec; one alone is the usual case."""

from __future__ import annotations

import ctypes
import hashlib
import os
import time

import numpy as np
from numpy.typing import NDArray

import libmoe

from .._native.callbacks import raised
from .errors import UserError

# How many processes there are in all, and on this machine, as Open MPI, MPICH and Slurm say it.
_ALL = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_HERE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def _told(names: tuple[str, ...]) -> int:
    found = (os.environ.get(name, "") for name in names)
    return next((int(each) for each in found if each.isdigit()), 1)


def started() -> bool:
    """Return whether mpiexec has started several of this process."""
    return _told(_ALL) > 1


class Ranks:
    """What the ranks of a run do together beside the calls of its model.

    Parameters
    ----------
    communicator : Communicator, optional
        Of the ranks; without it this process is alone.
    """

    def __init__(self, communicator: libmoe.Communicator | None = None) -> None:
        self.communicator = communicator
        self.rank = 0 if communicator is None else communicator.rank
        self.size = 1 if communicator is None else communicator.size

    @classmethod
    def of_mpi(cls) -> Ranks:
        """Return those that mpiexec has started.

        Raises
        ------
        UserError
            There are several, and mpi4py is missing.
        """
        if not started():
            return cls()
        try:
            from .. import mpi
        except ImportError as error:
            raise UserError(str(error)) from None
        return cls(mpi.communicator())

    def end(self, status: int) -> int:
        """End the other ranks too, which would wait; return the exit status where it is alone."""
        if self.communicator is not None:
            from mpi4py import MPI

            MPI.COMM_WORLD.Abort(status)
        return status

    def named(self, said: object) -> str:
        """Return what this rank has to say, behind its number where there are several and it is not there."""
        text = str(said)
        return text if self.size == 1 or text.startswith("rank ") else f"rank {self.rank}: {text}"

    def wait_for_first(self) -> None:
        """Leave it to the first rank to say what all have found; return where it has not within 2 seconds."""
        if not self.is_first:
            time.sleep(2)

    @property
    def is_first(self) -> bool:
        """Whether it is this one that prints and writes."""
        return self.rank == 0

    @property
    def processors(self) -> int:
        """How many threads a rank has by default: those of a machine are shared among its ranks."""
        return max(1, libmoe.processors() // min(_told(_HERE), self.size))

    def part(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return this rank's rows of a batch: as even as they can be, the larger parts first."""
        even, more = divmod(len(rows), self.size)
        first = self.rank * even + min(self.rank, more)
        return rows[first : first + even + (self.rank < more)]

    def require_same(self, name: str, value: object) -> None:
        """Refuse to go on where the ranks come with different values, whose `repr` tells all of them.

        Raises
        ------
        UserError
            On every rank.
        """
        number = int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:7], "little")
        if self.largest(number) != -self.largest(-number):
            raise UserError(f"{name}: the ranks of a run have different ones")

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the ranks come with, and wait until all have come."""
        if self.communicator is None:
            return number
        struct, size = self.communicator._struct, self.size
        mine, all_numbers = np.array([number], np.int64), np.zeros(size, np.int64)
        lengths, places = np.full(size, 8, np.int64), 8 * np.arange(size, dtype=np.int64)
        nowhere, request = np.zeros(size, np.int64), ctypes.c_void_p()
        sent = (mine.ctypes.data, lengths.ctypes.data, nowhere.ctypes.data)
        received = (all_numbers.ctypes.data, lengths.ctypes.data, places.ctypes.data)
        raised.take()  # that of an earlier call, which has ended
        code = struct.all_to_all(struct.user, *sent, *received, ctypes.addressof(request))
        if code == 0:
            code = struct.wait(struct.user, request.value)
        if code != 0:
            exception = raised.take()  # such as Ctrl-C, which cannot cross the native function
            if exception is not None:
                raise exception
            words = ctypes.string_at(struct.error(struct.user, code)).decode(errors="replace")
            raise UserError(f"rank {self.rank}: {words}")
        return int(all_numbers.max())
