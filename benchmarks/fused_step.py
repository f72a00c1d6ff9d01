"""One training step with the optimiser's step apart or within backward: print the figures as JSON.

    python fused_step.py apart|fused

Run as a program of its own by memory.py, so that nothing else is resident.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import numpy as np
from resident import status

import libmoe

TOKENS, HIDDEN, INNER, EXPERTS, TOP_K = 16384, 1024, 1024, 16, 4
STEPS = 3
CLIP = 0.5


def main() -> None:
    """Run some steps; the parameters afterwards tell whether both ways compute the same."""
    fused = sys.argv[1] == "fused"
    context = libmoe.Context()
    layer = libmoe.Layer(
        HIDDEN,
        INNER,
        EXPERTS,
        TOP_K,
        expert_kind="gated",
        activation="silu",
        unallocated="expert_gradients" if fused else (),
        context=context,
    )
    optimizer = libmoe.AdamW(layer.parameters, context=context)
    generator = np.random.default_rng(0)
    x, dy = (generator.standard_normal((TOKENS, HIDDEN), np.float32) for _ in range(2))
    y, dx = np.zeros_like(x), np.zeros_like(x)
    tape = layer.tape()

    def step() -> float:
        start = time.perf_counter()
        layer.zero_grad()
        layer.forward(x, tape=tape, out=y)
        if fused:
            layer.backward(tape, dy, out=dx, optimizer=optimizer, clip_factor=CLIP)
        else:
            layer.backward(tape, dy, out=dx)
            for parameter in layer.parameters.values():
                np.multiply(parameter.grad, np.float32(CLIP), out=parameter.grad)
            optimizer.step()
        return time.perf_counter() - start

    seconds = sorted(step() for _ in range(STEPS))[STEPS // 2]
    digest = hashlib.sha256(b"".join(p.data.tobytes() for p in layer.parameters.values())).hexdigest()
    figures = {"asked_for": context.memory()[1], "resident": status("VmHWM"), "seconds": seconds}
    print(json.dumps({"way": sys.argv[1], "parameters": digest, **figures}))


main()
