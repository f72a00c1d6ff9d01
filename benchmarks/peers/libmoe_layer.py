"""libmoe itself, by the rules of the peers."""

from __future__ import annotations

import sys
from itertools import cycle
from typing import Any

import numpy as np
from protocol import Array, Work, serve

import libmoe


def main() -> None:
    """Run forward with prepared weights, and training."""
    work = Work.of(sys.argv[1:])
    layer = work.shape.layer(
        libmoe.Context(work.threads), backward=work.backward, dtype="bf16" if work.dtype == "bf16" else "f32"
    )
    for name, parameter in layer.parameters.items():
        values = work.load(name)
        parameter.data[...] = values if parameter.data.dtype == np.float32 else libmoe.to_bfloat16(values)
    if not work.backward:
        form: Any = work.dtype
        layer.prepare(form)
    inputs, dy = cycle(work.inputs()), work.load("dy")
    y, dx = np.empty_like(dy), np.empty_like(dy)
    tape = layer.tape() if work.backward else None

    def run() -> tuple[Array, Array | None]:
        if tape is None:
            return layer(next(inputs)), None
        layer.forward(next(inputs), tape=tape, out=y)
        return y, layer.backward(tape, dy, out=dx)

    serve(work, libmoe.__version__, run)


main()
