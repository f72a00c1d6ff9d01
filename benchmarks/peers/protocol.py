"""What the peers in Python share: reading the work, writing the answer, running when asked.

A peer is a program

    PEER FOLDER T H I E K KIND PASS DTYPE THREADS

KIND is gelu (two matrices with biases) or swiglu (three matrices without), PASS forward or train, DTYPE f32
or bf16.  FOLDER holds x, dy and the parameters under libmoe's names, raw float32 without a header.  The peer
runs once, writes y (and for train dx) to FOLDER/peer.y and FOLDER/peer.dx, and prints {"version": ...}.
Then, for each line it reads, it runs for a while and prints {"seconds": the median of a run}, until its input
ends.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import turn
from shapes import Shape

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Work:
    """What is to be run, and with what."""

    folder: Path
    shape: Shape
    backward: bool
    dtype: str
    threads: int

    def arguments(self) -> list[str]:
        """Return the command line of a peer."""
        shape = self.shape
        sizes = (shape.tokens, shape.hidden, shape.inner, shape.experts, shape.top_k)
        kind = "train" if self.backward else "forward"
        return [str(self.folder), *map(str, sizes), shape.kind, kind, self.dtype, str(self.threads)]

    @classmethod
    def of(cls, arguments: list[str]) -> Work:
        """Return the work that a peer's command line names."""
        folder, *numbers = arguments[:6]
        kind, direction, dtype, threads = arguments[6:]
        tokens, hidden, inner, experts, top_k = map(int, numbers)
        shape = Shape("", tokens, hidden, inner, experts, top_k, kind)
        return cls(Path(folder), shape, direction == "train", dtype, int(threads))

    def load(self, name: str) -> Array:
        """Return a parameter, x [T,H] or dy [T,H]."""
        shape = self.shape
        experts, hidden, inner = shape.experts, shape.hidden, shape.inner
        sizes = {
            "x": (shape.tokens, hidden),
            "dy": (shape.tokens, hidden),
            "router.weight": (experts, hidden),
            "router.bias": (experts,),
            "experts.gate.weight": (experts, inner, hidden),
            "experts.up.weight": (experts, inner, hidden),
            "experts.up.bias": (experts, inner),
            "experts.down.weight": (experts, hidden, inner),
            "experts.down.bias": (experts, hidden),
        }
        return np.fromfile(self.folder / name, np.float32).reshape(sizes[name])


def serve(work: Work, version: str, run: Callable[[], tuple[Array, Array | None]]) -> None:
    """Answer once, then run when asked.  `run` returns y and, for train, dx."""
    for name, array in zip(("peer.y", "peer.dx"), run()):
        if array is not None:
            array.astype(np.float32).tofile(work.folder / name)
    print(json.dumps({"version": version}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": statistics.median(turn(run))}), flush=True)
