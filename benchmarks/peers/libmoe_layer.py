"""libmoe itself, by the rules of the peers."""

from __future__ import annotations

import sys

import numpy as np
from protocol import Array, Work, serve

import libmoe


def main() -> None:
    """Run forward with prepared weights, and training."""
    work = Work.of(sys.argv[1:])
    layer = work.shape.layer(libmoe.Context(work.threads), backward=work.backward, dtype=work.dtype)
    for name, parameter in layer.parameters.items():
        values = work.load(name)
        parameter.data[...] = values if parameter.data.dtype == np.float32 else libmoe.to_bfloat16(values)
    if not work.backward:
        layer.prepare(work.dtype)
    x, dy = work.load("x"), work.load("dy")
    y, dx = np.empty_like(x), np.empty_like(x)
    tape = layer.tape() if work.backward else None

    def run() -> tuple[Array, Array | None]:
        layer.forward(x, tape=tape, out=y)
        if tape is None:
            return y, None
        return y, layer.backward(tape, dy, out=dx)

    serve(work, libmoe.__version__, run)


main()
