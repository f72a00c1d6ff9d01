"""A model over several ranks beside the same model in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from ranked_layers import Part, divided
from thread_ranks import ThreadRanks

NUMBERS = ("loss", "objective", "aux_loss", "pooled_balance_loss", "n_targets")

Result = TypeVar("Result")


def batch(config: dict[str, Any], count: int, length: int = 8) -> tuple[NDArray[Any], Any]:
    """Return sequences and their targets, of which some do not count; an encoder has no targets."""
    random = np.random.default_rng(3)
    size = config.get("vocabulary_size", 0)
    if not size:
        return random.standard_normal((count, length, config["hidden_size"]), np.float32), None
    tokens, targets = random.integers(size, size=(2, count, length), dtype=np.int32)
    targets[random.random((count, length)) < 0.3] = -100
    return tokens, targets


@dataclass
class Made:
    """What some steps came to."""

    numbers: list[float]  # the same on all ranks
    rows: dict[str, NDArray[Any]]  # by sequence
    gradients: dict[str, NDArray[np.float32]]  # of the first step, before they are clipped
    parameters: dict[str, NDArray[Any]]  # after the last


def alone(config: dict[str, Any], count: int, use: Callable[[libmoe.Model, Part], Result]) -> Result:
    """Do it in one process."""
    with libmoe.Context(1) as context:
        return use(libmoe.Model(**config, context=context), Part(0, count))


def together(
    config: dict[str, Any], parts: Sequence[int], use: Callable[[libmoe.Model, Part], Result], **placed: Any
) -> list[Result]:
    """Do it on as many ranks as there are parts."""
    divisions = divided(parts)

    def one(communicator: libmoe.Communicator) -> Result:
        with libmoe.Context(1) as context:
            model = libmoe.Model(**config, context=context, communicator=communicator, **placed)
            return use(model, divisions[communicator.rank])

    return ThreadRanks(len(parts), patience=20).run(one)


def steps(
    model: libmoe.Model, part: Part, config: dict[str, Any], count: int, length: int = 8, **options: Any
) -> Made:
    """Three steps of AdamW with clipped gradients, the first of two batches."""
    given = sequences, _ = batch(config, count, length)
    optimizer = libmoe.AdamW(model.parameters, 0.02, context=model._context)
    numbers: list[float] = []
    rows: dict[str, NDArray[Any]] = {}
    gradients: dict[str, NDArray[np.float32]] = {}
    for step in range(3):
        model.zero_grad()
        for number in range(2 if step == 0 else 1):
            own: list[Any] = [None if a is None else part.of(np.roll(a, number, 0)).copy() for a in given]
            output = model.forward(
                own[0], own[1], tape=True, step=2 * step + number, hidden=True, training=True, **options
            )
            dhidden = None if own[1] is not None else np.cos(part.of(sequences)).astype(np.float32)
            dinput = model.backward(output, 0.7, dhidden)
            numbers += [getattr(output, name) for name in NUMBERS]
            for report in output.layers:
                if report is not None:
                    numbers += [report.aux_loss, *report.tokens_per_expert.tolist()]
            for name, array in (("hidden", output.hidden), ("dinput", dinput)):
                if array is not None:
                    rows[f"{name} {step} {number}"] = array
        if not gradients:
            gradients = {name: p.grad.copy() for name, p in model.parameters.items()}
        numbers.append(model.clip_grad_norm(0.5))
        optimizer.step()
    values = {name: np.array(p.data) for name, p in model.parameters.items()}
    return Made(numbers, rows, gradients, values)


def require_same(
    parts: Sequence[Made], wanted: Made, config: dict[str, Any], *, replicated: bool = False
) -> None:
    """Fail where a bit differs from one process, or one rank's from another's."""
    every = config.get("moe_every", 1)
    layers = config.get("layers") or [{"dense": (n + 1) % every != 0} for n in range(config["n_layers"])]

    for part in parts:
        assert_same_bits(part.numbers, wanted.numbers, "numbers")
    for name, array in wanted.rows.items():
        assert_same_bits(np.concatenate([part.rows[name] for part in parts]), array, name)
    for kind in ("gradients", "parameters"):
        for name, array in getattr(wanted, kind).items():
            own = [getattr(part, kind)[name] for part in parts if name in getattr(part, kind)]
            if (
                ".ffn.experts." in name
                and not replicated
                and not layers[int(name.split(".")[1])].get("dense")
            ):
                own = [np.concatenate(own)]
            for each in own:
                assert_same_bits(each, array, f"{kind}: {name}")
