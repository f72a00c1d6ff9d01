"""What each rank of mpiexec does in Python, by the name of the test: in_python.py TEST SIZE LIBRARY."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from typing import Any

import mpi4py

if sys.argv[1] == "funneled":
    mpi4py.rc.thread_level = "funneled"

from mpi4py import MPI  # noqa: E402  (after the level is chosen)

import libmoe.mpi  # noqa: E402
from over_ranks import MANY, require_a_model_of_one_process, require_the_bits_of_one_process  # noqa: E402
from thread_ranks import lib, unkept  # noqa: E402

RANK, SIZE = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def words_of(communicator: libmoe.Communicator, name: str, count: int) -> str | None:
    """Send to the next rank, or receive from the one before; the words of an error, or None."""
    struct, request = communicator._struct, ctypes.c_void_p()
    memory = ctypes.create_string_buffer(count)
    other = (struct.rank + (1 if name == "send" else -1)) % struct.size
    code = getattr(struct, name)(struct.user, memory, count, other, 3, ctypes.addressof(request))
    if code == 0:
        code = struct.wait(struct.user, request.value)
    return ctypes.string_at(struct.error(struct.user, code)).decode() if code else None


def contract() -> None:
    """World, a duplicate beside it, and halves that count their ranks backwards."""
    world = libmoe.mpi.communicator()
    assert (world.rank, world.size) == (RANK, SIZE)
    assert unkept(world, 5 << 20) is None
    with libmoe.mpi.communicator(MPI.COMM_WORLD) as beside:
        assert not lib.contract_beside(world._struct, beside._struct)
    half = MPI.COMM_WORLD.Split(RANK % 2, -RANK)
    part = libmoe.mpi.communicator(half)
    half.Free()
    assert part.rank == (SIZE - 1 - RANK) // 2
    assert unkept(part) is None
    part.close()
    part.close()
    if part.size > 1:
        assert words_of(part, "send", 8) == "the communicator is closed"


def refusals() -> None:
    """What is no communicator, and lengths that differ."""
    for wrong, words in [(MPI.COMM_NULL, "intracommunicator"), (3, "got int")]:
        try:
            libmoe.mpi.communicator(wrong)
        except libmoe.InvalidArgumentError as error:
            assert words in str(error), error
        else:
            raise AssertionError(wrong)
    for sent, words in [(48, "rank 0 sends 48 bytes to rank 1, which expects 64"), (128, "")]:
        world = libmoe.mpi.communicator()
        said = words_of(world, "send", sent) if RANK == 0 else words_of(world, "receive", 64)
        assert (said is None) if RANK == 0 else (said and words in said), said
        assert RANK == 0 or words_of(world, "send", 8) == said


def funneled() -> None:
    """Another thread than the one that MPI was initialised for is refused with words."""
    assert MPI.Query_thread() == MPI.THREAD_FUNNELED
    world, said = libmoe.mpi.communicator(), []
    thread = threading.Thread(target=lambda: said.append(words_of(world, "send", 8)))
    thread.start()
    thread.join()
    assert said[0] and "MPI_THREAD_FUNNELED" in said[0]
    assert unkept(libmoe.mpi.communicator()) is None


def finalize() -> None:
    """Neither a call after the end of MPI nor the close crashes."""
    world = libmoe.mpi.communicator()
    MPI.Finalize()
    said = words_of(world, "send", 8)
    assert said and "finalized" in said, said
    world.close()


def layer() -> None:
    """A layer over mpi4py's messages."""
    world = libmoe.mpi.communicator()
    require_the_bits_of_one_process(world)
    require_the_bits_of_one_process(world, **MANY)


def model() -> None:
    """A model over mpi4py's messages."""
    require_a_model_of_one_process(libmoe.mpi.communicator())


def wait() -> None:
    """Wait for what nobody sends."""
    world = libmoe.mpi.communicator()
    print(f"waiting: {os.getpid()}", flush=True)
    raise RuntimeError(words_of(world, "receive", 8))


def exception() -> None:
    """Likewise, until the last rank raises something."""
    if RANK < SIZE - 1:
        wait()
    print(f"waiting: {os.getpid()}", flush=True)
    libmoe.mpi.communicator()
    time.sleep(1)  # what the others have printed has arrived
    raise LookupError


def library() -> None:
    """libmoe_mpi.so over mpi4py's communicator: no bytes go through Python."""
    native: Any = ctypes.CDLL(sys.argv[3])
    native.moe_mpi_communicator.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    struct = libmoe._native.abi.moe_communicator()
    assert native.moe_mpi_communicator(MPI._addressof(MPI.COMM_WORLD), ctypes.addressof(struct)) == 0
    world = libmoe.Communicator(ctypes.addressof(struct))
    assert (world.rank, world.size) == (RANK, SIZE)
    assert unkept(world) is None
    require_the_bits_of_one_process(world)
    require_the_bits_of_one_process(world, **MANY)
    native.moe_mpi_communicator_free(ctypes.byref(struct))


assert int(sys.argv[2]) == SIZE, MPI.Get_library_version()
globals()[sys.argv[1]]()
