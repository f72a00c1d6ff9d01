"""libmoe with its experts over the ranks of mpiexec, by the rules of the peers.

    mpiexec -n R python libmoe_ranks.py LIBRARY WORK...

LIBRARY is libmoe_mpi.so; the work's threads are shared out to the ranks, at least one each.  Rank 0 hears of
the turns and tells the others, who sleep meanwhile.
"""
# Types are checked where mpi4py need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI
from over_mpi import over_mpi
from protocol import Array, Work, serve

import libmoe

LOOK = 1e-4  # seconds between the looks of a rank that waits for its turn


def step(work: Work, communicator: libmoe.Communicator) -> Callable[[], tuple[Array, Array]]:
    """Return a forward and a backward of this rank's part of the tokens."""
    rank, size = communicator.rank, communicator.size
    context = libmoe.Context(max(1, work.threads // size))
    dtype: Any = work.dtype
    layer = work.shape.layer(context, backward=True, dtype=dtype, communicator=communicator)
    tokens = np.array_split(np.arange(work.shape.tokens), size)[rank]
    experts = np.array_split(np.arange(work.shape.experts), size)[rank]
    for name, parameter in layer.parameters.items():
        values = work.load(name)[experts] if name.startswith("experts.") else work.load(name)
        parameter.data[...] = values if parameter.data.dtype == np.float32 else libmoe.to_bfloat16(values)
        parameter.grad[...] = 0  # its memory has been written to
    x, dy = work.load("x")[tokens], work.load("dy")[tokens]
    y, dx, tape = np.empty_like(x), np.empty_like(x), layer.tape()

    def run() -> tuple[Array, Array]:
        layer.forward(x, tape=tape, out=y)
        layer.backward(tape, dy, out=dx)
        return y, dx

    return run


def main() -> None:
    """Serve on rank 0; follow on the others."""
    work, comm = Work.of(sys.argv[2:]), MPI.COMM_WORLD
    run = step(work, over_mpi(sys.argv[1]))

    def together() -> tuple[Array, Array]:
        for other in range(1, comm.size):
            comm.send(True, other)
        return run()

    def all_of(made: tuple[Array, Array]) -> list[Any]:
        return [comm.gather(part) for part in made]

    if comm.rank > 0:
        all_of(run())
        while True:
            while not comm.Iprobe(source=0):
                time.sleep(LOOK)
            if not comm.recv(source=0):
                return
            run()
    answers = [np.concatenate(parts) for parts in all_of(run())]
    first = (answers[0], answers[1])
    unanswered = [first]
    version = f"{libmoe.__version__}, {MPI.Get_library_version().split(',')[0].split(chr(10))[0]}"
    serve(work, version, lambda: unanswered.pop() if unanswered else together())
    for other in range(1, comm.size):
        comm.send(False, other)


main()
