"""What each process of test_communicator.py does, by the name of the test: communicator_ranks.py TEST."""

from __future__ import annotations

import ctypes
import os
import sys
import time

import torch
import torch.distributed as dist

import libmoe.torch
from over_ranks import MANY, require_the_bits_of_one_process
from thread_ranks import lib, unkept


def words_of_a_wait(communicator: libmoe.Communicator) -> str:
    """Wait for what nobody sends, and return the words of the error."""
    struct, request = communicator._struct, ctypes.c_void_p()
    memory = ctypes.create_string_buffer(8)
    sender = (struct.rank + 1) % struct.size
    code = struct.receive(struct.user, memory, 8, sender, 3, ctypes.addressof(request))
    if code == 0:
        code = struct.wait(struct.user, request.value)
    assert code != 0
    return ctypes.string_at(struct.error(struct.user, code)).decode()


def contract(world: libmoe.Communicator) -> None:
    """All processes, another communicator of theirs, and a group that counts them the other way round."""
    rank, size = world.rank, world.size
    assert unkept(world) is None
    require_the_bits_of_one_process(world)
    require_the_bits_of_one_process(world, **MANY)
    with libmoe.torch.communicator() as beside:
        assert not lib.contract_beside(world._struct, beside._struct)
    if size == 1:
        return
    backwards = list(range(size))[::-1]
    group = dist.new_group(backwards, backend="gloo", use_local_synchronization=True, sort_ranks=False)
    # The program's own messages are its own, with any tag.
    own, theirs = torch.full((4,), float(rank)), torch.empty(4)
    works = [dist.isend(own, (rank + 1) % size, tag=3), dist.irecv(theirs, (rank - 1) % size, tag=3)]
    part = libmoe.torch.communicator(group)
    assert part.rank == size - 1 - rank
    assert unkept(part, 1000) is None
    for work in works:
        assert work is not None
        work.wait()
    assert theirs[0] == (rank - 1) % size
    part.close()
    assert "closed" in words_of_a_wait(part)

    # The first ranks alone; the last is refused, and nobody waits for it.
    group = dist.new_group(list(range(size - 1)), backend="gloo")
    if rank < size - 1:
        assert unkept(libmoe.torch.communicator(group), 1000) is None
        return
    try:
        libmoe.torch.communicator(group)
    except libmoe.InvalidArgumentError as error:
        assert "not one of the group" in str(error)
    else:
        raise AssertionError


def death(world: libmoe.Communicator) -> None:
    """The last rank ends without a word; who waits for it gets an error soon."""
    assert unkept(world, 1000) is None
    if world.rank == world.size - 1:
        os._exit(9)
    if world.rank == world.size - 2:
        begun = time.monotonic()
        assert "RuntimeError" in words_of_a_wait(world)
        assert time.monotonic() - begun < 60
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    globals()[sys.argv[1]](libmoe.torch.communicator())
    dist.barrier()
    dist.destroy_process_group()
