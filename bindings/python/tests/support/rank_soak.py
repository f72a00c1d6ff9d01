"""Many steps of a layer over ranks, some of which fail on purpose, beside the same steps in one process."""

from __future__ import annotations

import ctypes
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from libmoe._native import abi, fields
from libmoe._native.library import ContextHandle
from ranked_layers import plain, tokens
from thread_ranks import ThreadRanks

SIZE, MOST = 3, 40
CONFIG = plain(n_shared_experts=1, dropout=0.1, capacity_formula="megatron", selection_bias=True)
FAULTS = ("nan", "index", "another call", "limit", "cancelled forward", "cancelled backward")
POLLS = 4  # a call looks for a cancel at least so often


@dataclass(frozen=True)
class Plan:
    """One step: how many tokens each rank has, and what goes wrong before it, on which rank."""

    number: int
    parts: tuple[int, ...]
    fault: str
    rank: int
    poll: int

    @classmethod
    def of(cls, number: int, seed: int) -> Plan:
        """Return the step of a number; a third of all has a fault, and ranks often have no tokens."""
        draw = random.Random(f"{seed} {number}")
        parts = tuple(draw.choice((0, draw.randint(1, MOST // SIZE))) for _ in range(SIZE))
        fault = draw.choice(FAULTS) if draw.random() < 1 / 3 else ""
        having = [rank for rank, count in enumerate(parts) if count] or [0]
        return cls(number, parts, fault if any(parts) else "", draw.choice(having), draw.randint(1, POLLS))


class Cancellable(libmoe.Context):
    """A context of one thread, whose calls end at a given poll."""

    def __init__(self) -> None:
        self.left = 0  # polls until a call is cancelled; 0: never
        self._cancel = abi.moe_context_config_cancel(lambda _: self._asked())
        config = fields.filled(abi.moe_context_config, n_threads=1, cancel=self._cancel)
        self._told_by = "n_threads=1"
        self._open_handle = ContextHandle(ctypes.byref(config), log=None)

    def _asked(self) -> int:
        self.left -= self.left > 0
        return int(self.left == 0 and self._cancels)

    _cancels = False

    def cancel_at(self, poll: int) -> None:
        """Cancel a call at its n-th poll; 0: no more."""
        self.left, self._cancels = poll, poll > 0


class Run:
    """A layer, whole or one rank's part, that takes the steps of a plan."""

    def __init__(self, context: Cancellable, communicator: libmoe.Communicator | None = None) -> None:
        self.context, self.rank = context, communicator.rank if communicator else None
        self.layer = libmoe.Layer(**CONFIG, context=context, communicator=communicator)
        self.optimizer = libmoe.AdamW(self.layer.parameters, learning_rate=1e-3, context=context)
        self.tape = self.layer.tape()
        self.said, self.faults = hashlib.sha256(), 0  # of all faults, in order

    def step(self, plan: Plan) -> None:
        """Take a step; first, over ranks, what goes wrong."""
        first = 0 if self.rank is None else sum(plan.parts[: self.rank])
        count = sum(plan.parts) if self.rank is None else plan.parts[self.rank]
        x, dy = (array[first : first + count] for array in tokens(sum(plan.parts), seed=plan.number))
        if plan.fault and self.rank is not None:
            self.said.update(self._fails(plan, x, dy).encode())
            self.faults += 1
        self.layer.zero_grad()
        report = self._forward(plan, x).report
        self.layer.backward(self.tape, dy)
        self.layer.clip_grad_norm(1.0)
        self.optimizer.step()
        self.layer.update_selection_bias(report.tokens_per_expert)

    def _forward(self, plan: Plan, x: NDArray[np.float32], **options: Any) -> libmoe.Output:
        given: dict[str, Any] = {"training": True, "step": plan.number, **options}
        return self.layer.forward(x, tape=self.tape, **given)

    def _fails(self, plan: Plan, x: NDArray[np.float32], dy: NDArray[np.float32]) -> str:
        """Return what is said of the fault, which one rank makes."""
        mine = plan.rank == self.rank
        try:
            if plan.fault == "nan":
                self._forward(plan, np.where(mine, np.float32("nan"), x))
            elif plan.fault == "index":
                chosen = np.full((len(x), 2), 99 if mine else 1, np.int32)
                self._forward(plan, x, expert_indices=chosen)
            elif plan.fault == "another call":
                self._forward(plan, x, step=plan.number + 1 + mine)
            elif plan.fault == "limit":
                self._forward(plan, x, memory_limit=1000 if mine else 0)
            elif plan.fault == "cancelled forward":
                self.context.cancel_at(plan.poll if mine else 0)
                self._forward(plan, x)
            else:
                self._forward(plan, x)
                self.context.cancel_at(plan.poll if mine else 0)
                self.layer.backward(self.tape, dy)
        except libmoe.MoeError as error:
            return f"{plan.number}: {type(error).__name__}: {error}"
        finally:
            self.context.cancel_at(0)
        raise AssertionError(f"step {plan.number}: nobody says anything, though there was {plan.fault}")


@dataclass
class Soaked:
    """What became of the steps."""

    faults: int
    parameters: dict[str, NDArray[Any]]
    memory: list[list[int]]
    """Bytes that each rank's context held after each tenth of the steps."""


def soak(steps: int, seed: int = 0, tenth: Callable[[int], None] = lambda _: None) -> Soaked:
    """Take the steps over three ranks, and require that all of them hear of each fault in the same words.

    `tenth` is called on rank 0 after each tenth of the steps.
    """
    marks = {steps * part // 10 for part in range(1, 11)}

    def one(communicator: libmoe.Communicator) -> tuple[str, int, list[int], dict[str, NDArray[Any]]]:
        with Cancellable() as context:
            run, held = Run(context, communicator), []
            for number in range(steps):
                run.step(Plan.of(number, seed))
                if number + 1 in marks:
                    held.append(context.memory()[0])
                    if communicator.rank == 0:
                        tenth(number + 1)
            return run.said.hexdigest(), run.faults, held, values(run)

    said, faults, held, parameters = zip(*ThreadRanks(SIZE, patience=120).run(one))
    assert len(set(said)) == 1, "the ranks have heard different things of a fault"
    joined = {
        name: np.concatenate([own[name] for own in parameters]) if name.startswith("experts.") else array
        for name, array in parameters[0].items()
    }
    return Soaked(faults[0], joined, list(held))


def values(run: Run) -> dict[str, NDArray[Any]]:
    """Return copies of the parameters and the buffers."""
    arrays = {**{name: p.data for name, p in run.layer.parameters.items()}, **run.layer.buffers}
    return {name: np.array(array) for name, array in arrays.items()}


def require_the_bits_of_one_process(soaked: Soaked, steps: int, seed: int = 0) -> None:
    """Take the steps once more in one process, without faults."""
    with Cancellable() as context:
        run = Run(context)
        for number in range(steps):
            run.step(Plan.of(number, seed))
        for name, array in values(run).items():
            assert_same_bits(soaked.parameters[name], array, name)
