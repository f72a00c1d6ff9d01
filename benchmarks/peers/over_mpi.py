"""A communicator of libmoe_mpi.so over mpi4py's world."""
# Types are checked where mpi4py need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import ctypes
from typing import Any

from mpi4py import MPI

import libmoe
from libmoe._native import abi


def over_mpi(library: str) -> libmoe.Communicator:
    """Return a communicator whose bytes MPI moves, without Python in between."""
    native: Any = ctypes.CDLL(library)
    struct = abi.moe_communicator()
    native.moe_mpi_communicator.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    if native.moe_mpi_communicator(MPI._addressof(MPI.COMM_WORLD), ctypes.addressof(struct)) != 0:
        raise RuntimeError(f"{library} makes no communicator")
    return libmoe.Communicator(ctypes.addressof(struct), keep=native)
