"""A layer over two ranks on a slow link: the bytes that they send, and how much of their time is hidden.

    python slow_link.py TOKENS

The ranks are threads, each with TOKENS tokens and one thread of its own.  Prints a line of JSON for each
shape; README.md has what they mean.
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapes import Q, S, Shape

import libmoe
from thread_ranks import ThreadRanks

LINK = 1e9  # bytes per second out of a rank
TURNS = 3  # whose median counts, after one that does not
SIZE = 2
SHAPES = (S, replace(Q, name="Q, E 16, K 2", experts=16, top_k=2))  # bytes and work of Q are 4 times as many


@dataclass
class Step:
    """What a forward and a backward took."""

    seconds: float
    slept: float  # for bytes on their way, a rank
    sent: NDArray[np.int64]  # [SIZE,SIZE] bytes from rank to rank


def step(shape: Shape, choices: NDArray[np.int32], rate: float) -> Step:
    """Go forwards and backwards with these choices, several times."""
    ranks = ThreadRanks(SIZE, patience=600)
    ranks.slow_down(rate)
    barrier = threading.Barrier(SIZE)
    marks: list[tuple[float, float]] = []  # the time, and for how long ranks have slept, between the turns
    everyone = range(SIZE)

    def one(communicator: libmoe.Communicator) -> None:
        tokens = len(choices) // SIZE
        own = choices[communicator.rank * tokens : (communicator.rank + 1) * tokens]
        draw = np.random.default_rng(communicator.rank).standard_normal
        x, dy = (draw((tokens, shape.hidden), np.float32) for _ in range(2))
        y, dx = np.empty_like(x), np.empty_like(x)
        with libmoe.Context(1) as context:
            layer = shape.layer(context, backward=True, communicator=communicator)
            tape = layer.tape()
            for _ in range(1 + TURNS):
                layer.forward(x, tape=tape, out=y, expert_indices=own)
                layer.backward(tape, dy, out=dx)
                barrier.wait()
                if communicator.rank == 0:
                    marks.append((time.perf_counter(), sum(map(ranks.slept, everyone)) / SIZE))
                barrier.wait()

    ranks.run(one)
    seconds, slept = np.median(np.diff(np.array(marks), axis=0), axis=0)
    sent = np.array([[ranks.bytes(a, b) if a != b else 0 for b in everyone] for a in everyone])
    return Step(float(seconds), float(slept), sent // (1 + TURNS))


def rows_between(shape: Shape, choices: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return [SIZE,SIZE] rows that go from the tokens of a rank to the experts of another."""
    owners = choices.reshape(SIZE, -1) // (shape.experts // SIZE)
    return np.array([[0 if a == b else np.sum(owners[a] == b) for b in range(SIZE)] for a in range(SIZE)])


def measured(shape: Shape) -> dict[str, Any]:
    """Return the line of a shape."""
    chosen = np.random.default_rng(0).random((SIZE * shape.tokens, shape.experts)).argsort(axis=1)
    choices = np.ascontiguousarray(chosen[:, : shape.top_k].astype(np.int32))
    slow = step(shape, choices, LINK)
    half = step(replace(shape, hidden=shape.hidden // 2), choices, 0)
    # x and dy go there, outputs and gradients come back, each H float32; the rest of the features' bytes are
    # the gate's gradient, from the first rank to the last, which sends all of it back.
    rows = rows_between(shape, choices)
    arithmetic = shape.hidden // 2 * 4 * (2 * rows + 2 * rows.T)
    arithmetic[0, 1] += shape.hidden // 2 * 4 * shape.experts
    arithmetic[1, 0] += shape.hidden // 2 * 4 * shape.experts
    on_link = float(slow.sent.sum() / SIZE / LINK)
    return {
        "work": shape.name,
        "tokens_per_rank": shape.tokens,
        "rows": int(rows.sum()),
        "bytes_sent": int(slow.sent.sum()),
        "bytes_of_features": int(2 * (slow.sent - half.sent).sum()),
        "bytes_by_arithmetic": int(2 * arithmetic.sum()),
        "as_arithmetic": bool(np.array_equal(slow.sent - half.sent, arithmetic)),
        "seconds": slow.seconds,
        "seconds_on_link": on_link,
        "seconds_waited": slow.slept,
        "hidden": 1 - slow.slept / on_link,
    }


for shape in SHAPES:
    print(json.dumps(measured(replace(shape, tokens=int(sys.argv[1])))), flush=True)
