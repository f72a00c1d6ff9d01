"""Memory over the time of one training step, sampled from what the allocator has handed out."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from shapes import Shape

import libmoe

EVERY = 0.001  # seconds between samples


@dataclass(frozen=True)
class Timeline:
    """Bytes above the layer's own, at seconds since forward began; when backward began and ended."""

    seconds: list[float]
    bytes: list[int]
    backward: float
    end: float


def record(shape: Shape, threads: int, policy: str, limit: int) -> Timeline:
    """Run one step, forward and backward."""
    context = libmoe.Context(threads)
    layer = shape.layer(context, backward=True)
    x = np.random.default_rng(0).standard_normal((shape.tokens, shape.hidden), np.float32)
    y, dx, tape = np.zeros_like(x), np.zeros_like(x), layer.tape()
    own, _ = context.memory()
    seconds: list[float] = [0.0]
    taken: list[int] = [0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(EVERY):
            seconds.append(time.perf_counter() - start)
            taken.append(context.memory()[0] - own)

    sampler = threading.Thread(target=sample)
    start = time.perf_counter()
    sampler.start()
    word = cast(Literal["full", "lean"], policy)
    layer.forward(x, tape=tape, out=y, tape_policy=word, memory_limit=limit)
    backward = time.perf_counter() - start
    layer.backward(tape, x, out=dx)
    end = time.perf_counter() - start
    done.set()
    sampler.join()
    return Timeline(seconds, taken, backward, end)


def draw(timelines: dict[str, Timeline], path: Path) -> None:
    """Draw a line for each policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for colour, (name, line) in zip(("tab:blue", "tab:orange", "tab:green"), timelines.items()):
        mib = np.array(line.bytes) / 2**20
        axes.step(line.seconds, mib, where="post", color=colour, label=f"{name}: at most {mib.max():.0f} MiB")
        axes.axvline(line.backward, color=colour, linestyle=":", linewidth=1)
        axes.plot(line.end, mib[-1], "o", color=colour, markersize=4)
    axes.set(
        xlabel="seconds (dotted: backward begins; dot: it ends)",
        ylabel="MiB of scratch and tape",
        title="one training step",
    )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
