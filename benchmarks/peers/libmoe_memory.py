"""libmoe by the rules of the peers, with the memory that a step takes.

    libmoe_memory.py POLICY LIMIT FOLDER ...

POLICY is a tape policy, LIMIT bytes of scratch and tape, 0 for none.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from protocol import Array, Work, listen
from resident import growth

import libmoe


def main() -> None:
    """Measure the first step, then run when asked."""
    policy, limit = sys.argv[1], int(sys.argv[2])
    work = Work.of(sys.argv[3:])
    warm_up(work.threads)
    context = libmoe.Context(work.threads)
    layer = work.shape.layer(context, backward=True)
    for name, parameter in layer.parameters.items():
        parameter.data[...] = work.load(name)
    layer.zero_grad()
    x, dy = work.load("x"), work.load("dy")
    y, dx = np.zeros_like(x), np.zeros_like(x)
    tape = layer.tape()
    options: dict[str, Any] = {"tape_policy": policy, "memory_limit": limit}
    plan = layer.plan(len(x), **options)

    def run() -> tuple[Array, Array | None]:
        layer.forward(x, tape=tape, out=y, **options)
        return y, layer.backward(tape, dy, out=dx)

    before, _ = context.memory()
    grown, answer = growth(run)
    facts = {
        "version": libmoe.__version__,
        "resident": grown,
        "asked_for": context.memory()[1] - before,
        "promised": plan.total_bytes,
        "plan": str(plan),
    }
    listen(work, facts, answer, run)


def warm_up(threads: int) -> None:
    """Load the code that a step runs; the memory goes with the context."""
    with libmoe.Context(threads) as context:
        layer = libmoe.Layer(32, 32, 2, 1, context=context)
        tape, x = layer.tape(), np.zeros((64, 32), np.float32)
        layer.forward(x, tape=tape)
        layer.backward(tape, x)


main()
