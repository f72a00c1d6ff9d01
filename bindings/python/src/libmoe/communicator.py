"""Communicators: what moves bytes between the processes that a layer's experts are spread over."""

from __future__ import annotations

import ctypes
from typing import Any

from ._keywords import keywords
from ._native import abi, check
from ._native.transport import End
from ._repr import described
from .errors import ArgumentTypeError, InvalidArgumentError


@keywords
class Communicator:
    """One rank's end of a group of ranks.

    :func:`libmoe.mpi.communicator` makes one of a communicator of mpi4py, ``libmoe.torch.communicator`` one
    of a process group of PyTorch.  This constructor takes one that C code has filled, that of
    ``libmoe_mpi.so`` for example.

    Parameters
    ----------
    address : int
        Of a ``moe_communicator``, which is copied.
    keep : object, optional
        What has to live as long as this object: whatever its functions use.

    Raises
    ------
    InvalidArgumentError
        There is no communicator at the address, or one with other fields than this version knows.
    """

    def __init__(self, address: int, *, keep: Any = None) -> None:
        address = check.integer("address", address, ctypes.c_size_t)
        size = ctypes.c_size_t.from_address(address).value if address else 0
        if size != ctypes.sizeof(abi.moe_communicator):
            raise InvalidArgumentError(
                f"address: there is no moe_communicator of {ctypes.sizeof(abi.moe_communicator)} bytes there"
            )
        self._struct = abi.moe_communicator.from_buffer_copy(ctypes.string_at(address, size))
        self._keep = keep

    @classmethod
    def of(cls, end: End) -> Communicator:
        """Return one whose bytes Python moves."""
        return cls(ctypes.addressof(end.struct), keep=end)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self._struct.rank)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return int(self._struct.size)

    def close(self) -> None:
        """Let go of what moves the bytes; every later call with this communicator fails.

        All ranks call it, when they have ended what they do with it.  One that is not closed lasts as long as
        MPI or the process.  Of a communicator that C code has filled, that code is to let go.
        """
        if isinstance(self._keep, End):
            self._keep.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to pickle or copy a rank's end, and say what to do."""
        raise ArgumentTypeError(
            "a libmoe.Communicator cannot be pickled or copied: it is this process's end of its group of "
            "ranks; make one in each process, as libmoe.mpi.communicator() does, and in place of a layer or "
            "model over ranks pickle its state_dict() on each of them, or use libmoe.save_training"
        )

    def __enter__(self) -> Communicator:
        """Return the communicator itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close, unless an exception comes: other ranks may not be here."""
        if kind is None:
            self.close()

    def __repr__(self) -> str:
        """Say which rank it is."""
        return described(self, f"rank {self.rank} of {self.size}")
