"""MPI for libmoe: a communicator over one of mpi4py's.

Nothing else of libmoe imports mpi4py, and libmoe itself knows no MPI: mpi4py moves the bytes, with the MPI
that it has found.  A program ends all ranks when one of them fails if it is started as
``mpiexec -n 4 python -m mpi4py program.py``.
"""

from __future__ import annotations

from typing import Any

try:
    from mpi4py import MPI
except ImportError as error:
    raise ImportError("libmoe.mpi needs mpi4py, and an MPI: pip install 'libmoe[mpi]' mpich") from error

from ._native.transport import End, Message, Transport
from .communicator import Communicator
from .errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["communicator"]


def communicator(comm: Any = None) -> Communicator:
    """Return a communicator over the ranks of an ``mpi4py.MPI.Intracomm``; all of its ranks call this.

    The communicator is duplicated, so that messages do not mix with those of the program.  Where MPI has been
    initialised with less than ``MPI.THREAD_SERIALIZED``, libmoe is called in the main thread.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        Whose ranks they are; ``MPI.COMM_WORLD`` if it is left out.

    Raises
    ------
    InvalidArgumentError
        It is another kind of communicator.
    """
    given = MPI.COMM_WORLD if comm is None else comm
    if not isinstance(given, MPI.Comm):
        raise ArgumentTypeError(f"comm: expected an mpi4py.MPI.Comm, got {type(given).__name__}")
    if given == MPI.COMM_NULL or given.Is_inter():
        raise InvalidArgumentError("comm: expected an intracommunicator, such as MPI.COMM_WORLD")
    return Communicator.of(End(_MPITransport(given.Dup())))


class _MPITransport(Transport):
    """Messages of MPI, over a communicator of its own."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        comm.Set_errhandler(MPI.ERRORS_RETURN)  # which mpi4py makes exceptions of
        self.rank, self.size = comm.rank, comm.size
        self._main_thread_only = MPI.Query_thread() < MPI.THREAD_SERIALIZED

    def begin(self, messages: list[Message]) -> Any:
        self._require_thread()
        return [(each, self._begin(each)) for each in messages]

    def _begin(self, message: Message) -> Any:
        begin = self._comm.Isend if message.sends else self._comm.Irecv
        return begin([message.data, len(message.data), MPI.BYTE], message.other, message.tag)

    def is_done(self, begun: Any) -> bool:
        self._require_thread()
        status = MPI.Status()
        while begun:
            message, request = begun[0]
            if not request.Test(status):
                return False
            if not message.sends and status.Get_count(MPI.BYTE) != len(message.data):
                raise ValueError(
                    f"rank {message.other} sends {status.Get_count(MPI.BYTE)} bytes to rank {self.rank}, "
                    f"which expects {len(message.data)}"
                )
            begun.pop(0)
        return True

    def give_up(self, begun: Any) -> None:
        if MPI.Is_finalized():
            return
        for message, request in begun:
            if request != MPI.REQUEST_NULL:
                if not message.sends:
                    request.Cancel()
                request.Free()

    def close(self) -> None:
        if not MPI.Is_finalized():
            self._comm.Free()

    def _require_thread(self) -> None:
        if MPI.Is_finalized():
            raise RuntimeError("MPI has been finalized, and the communicator is still used")
        if self._main_thread_only and not MPI.Is_thread_main():
            raise RuntimeError(
                "MPI was initialized for its main thread alone (MPI_THREAD_FUNNELED), and this is another "
                "thread: before mpi4py.MPI is imported, set mpi4py.rc.thread_level = 'multiple'"
            )
