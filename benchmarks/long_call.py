"""A million tokens in one call, in the least memory that will do: print the figures as JSON.

Run as a program of its own by memory.py, so that nothing else is resident.
"""

from __future__ import annotations

import json
import time

import numpy as np
from resident import growth

import libmoe

TOKENS, HIDDEN, INNER, EXPERTS, TOP_K = 1_000_000, 256, 256, 16, 4


def main() -> None:
    """Run forward and backward once."""
    context = libmoe.Context()
    layer = libmoe.Layer(
        HIDDEN, INNER, EXPERTS, TOP_K, expert_kind="gated", activation="silu", balance_coef=0, context=context
    )
    limit = least_limit(layer)
    plan = layer.plan(TOKENS, memory_limit=limit)
    generator = np.random.default_rng(0)
    x, dy = (generator.standard_normal((TOKENS, HIDDEN), np.float32) for _ in range(2))
    y, dx = np.zeros_like(x), np.zeros_like(x)
    layer.zero_grad()
    tape = layer.tape()

    def step() -> float:
        start = time.perf_counter()
        layer.forward(x, tape=tape, out=y, memory_limit=limit)
        layer.backward(tape, dy, out=dx)
        return time.perf_counter() - start

    before, _ = context.memory()
    grown, seconds = growth(step)
    print(
        json.dumps(
            {
                "tokens": TOKENS,
                "promised": plan.total_bytes,
                "asked_for": context.memory()[1] - before,
                "resident": grown,
                "chunk_tokens": plan.chunk_tokens,
                "seconds": seconds,
                "x_bytes": x.nbytes,
                "finite": bool(np.isfinite(y).all() and np.isfinite(dx).all()),
            }
        )
    )


def least_limit(layer: libmoe.Layer) -> int:
    """Return the smallest workable limit, which the refusal of a smaller one names."""
    try:
        layer.plan(TOKENS, memory_limit=1)
    except libmoe.InvalidArgumentError as refusal:
        return int(str(refusal).split()[-1])
    raise RuntimeError("a limit of one byte was accepted")


main()
