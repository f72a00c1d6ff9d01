"""What the peers in Python share: reading the work, writing the answer, running when asked.

A peer is a program

    PEER FOLDER T H I E K KIND PASS DTYPE THREADS    a layer's
    PEER FOLDER COUNT THREADS                        an optimiser's

KIND is gelu (two matrices with biases) or swiglu (three matrices without), PASS forward or train, DTYPE f32,
bf16, or a form of few bits that weights are packed in.  FOLDER holds x, dy and the parameters under libmoe's
names; for an optimiser p and g, the parameters and their gradients, TENSORS of one size behind each other.
All are raw float32 without a header.  The peer works once and writes its answer: a layer's is y (and for
train dx), in FOLDER/peer.y and FOLDER/peer.dx; an optimiser's is how far p has moved after CHECKED steps of
AdamW, in FOLDER/peer.p.  It prints {"version": ...}, with what else it has found out.  Then, for each line it
reads, it runs for a while and prints {"seconds": the median of a run}, until its input ends.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from measure import turn
from shapes import ADAMW_BYTES, Dtype, Shape

Array = np.ndarray[Any, np.dtype[np.float32]]
AnyJob = TypeVar("AnyJob", bound="ModelJob")
CHECKED = 3  # steps of an optimiser before its answer
TENSORS = 32  # that an optimiser's parameters are divided into, each about a matrix of an expert of Q
# Of |theirs - ours| / |ours|, for a layer; weights of few bits leave about twice their own error.
LIMITS = {"f32": 1e-3, "bf16": 3e-2, "int8": 4e-2, "int8_row": 4e-2, "q6_k": 6e-2, "fp8": 8e-2}
FOUR_BITS_LIMIT = 0.25
FEW_TOKENS = (
    16  # so many and fewer find their experts' weights in memory, and not in the cache: inputs take turns
)


@dataclass(frozen=True)
class ModelJob:
    """A job of a whole model, in one number type."""

    folder: Path
    model: str
    job: str
    dtype: Dtype
    threads: int
    unit = "tokens/s"

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.model}, {self.job} {self.dtype}"

    def arguments(self) -> list[str]:
        """Return the command line of a worker, but for what comes before the folder."""
        return [str(self.folder), self.model, self.job, self.dtype, str(self.threads)]

    @classmethod
    def of(cls: type[AnyJob], arguments: list[str]) -> AnyJob:
        """Return the work that a worker's command line names."""
        folder, model, job, dtype, threads = arguments
        return cls(Path(folder), model, job, "bf16" if dtype == "bf16" else "f32", int(threads))


@dataclass(frozen=True)
class Work:
    """A layer's call, and with what it runs."""

    folder: Path
    shape: Shape
    backward: bool
    dtype: str  # a Dtype, or a form of few bits
    threads: int
    unit = "GFLOP/s"

    @property
    def name(self) -> str:
        """What the table calls it."""
        kind = "forward + backward" if self.backward else "forward"
        return f"{self.shape.name} {kind} {self.dtype}"

    @property
    def amount(self) -> float:
        """Operations."""
        return self.shape.operations(self.backward)

    @property
    def outputs(self) -> list[str]:
        """What the answer consists of."""
        return ["y", "dx"] if self.backward else ["y"]

    @property
    def limit(self) -> float:
        """How far a peer's answer may be from ours."""
        return LIMITS.get(self.dtype.removesuffix("_a8").removesuffix("_a16"), FOUR_BITS_LIMIT)

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

    def inputs(self) -> list[Array]:
        """Return x [T,H] and, of few tokens, others that take turns with it."""
        x = self.load("x")
        count = 8 if self.shape.tokens <= FEW_TOKENS else 1
        return [np.ascontiguousarray(np.roll(x, 13 * turn, axis=1)) for turn in range(count)]

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


@dataclass(frozen=True)
class Step:
    """A step of AdamW over `count` parameters, with the settings that PyTorch has by default."""

    folder: Path
    count: int
    threads: int
    unit = "GB/s"
    outputs = ("p",)
    limit = 1e-5  # a beta or a decay off by a hundredth shows as 1e-4

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"AdamW, {self.count // 1_000_000} M parameters"

    @property
    def amount(self) -> float:
        """Bytes that move at least."""
        return ADAMW_BYTES["f32"] * self.count

    def arguments(self) -> list[str]:
        """Return the command line of a peer."""
        return [str(self.folder), str(self.count), str(self.threads)]

    @classmethod
    def of(cls, arguments: list[str]) -> Step:
        """Return the work that a peer's command line names."""
        folder, count, threads = arguments
        return cls(Path(folder), int(count), int(threads))

    def load(self, name: str) -> Array:
        """Return p or g [count]."""
        return np.fromfile(self.folder / name, np.float32, self.count)


class Task(Protocol):
    """What is run: Work, Step, and those of model_work.py."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def folder(self) -> Path:
        """Where the inputs and the answers are."""

    @property
    def threads(self) -> int:
        """With how many."""

    @property
    def amount(self) -> float:
        """How much of it there is."""

    @property
    def unit(self) -> str:
        """What a billion of the amount in a second is called."""

    @property
    def outputs(self) -> Sequence[str]:
        """What the answer consists of."""

    @property
    def limit(self) -> float:
        """How far a peer's answer may be from ours."""

    def arguments(self) -> list[str]:
        """Return the command line of a peer."""


def serve(work: Work, version: str, run: Callable[[], tuple[Array, Array | None]]) -> None:
    """Answer with one run, then run when asked.  `run` returns y and, for train, dx."""
    listen(work, {"version": version}, run(), run)


def tensors(array: Array) -> list[Array]:
    """Return the parts of p or g, which are its memory."""
    return np.split(array, TENSORS)


def serve_steps(work: Step, version: str, step: Callable[[], object], p: Array, g: Array) -> None:
    """Answer with how far `step` moves p, which it changes in place, then run it when asked.

    The gradient changes between the checked steps: with a constant one the moments' decay would cancel out.
    """
    start = p.copy()
    for _ in range(CHECKED):
        step()
        g *= -0.5
    listen(work, {"version": version}, [p - start], step)


def listen(
    task: Task, facts: dict[str, Any], answer: Iterable[Array | None], run: Callable[[], object]
) -> None:
    """Write the answer, then run when asked."""
    for name, array in zip(task.outputs, answer):
        if array is not None:
            array.astype(np.float32, copy=False).tofile(task.folder / f"peer.{name}")
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": statistics.median(turn(run))}), flush=True)
