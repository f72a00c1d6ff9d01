"""A layer over several ranks beside the same layer in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from thread_ranks import ThreadRanks

REPORTED = ("balance_loss", "z_loss", "aux_loss", "entropy", "n_dropped", "n_valid", "tokens_per_expert")
GROUPS: dict[str, Any] = {
    "intermediate_size": 0,
    "expert_groups": [
        {"n_experts": 3, "intermediate_size": 40, "expert_kind": "gated", "activation": "silu"},
        {"n_experts": 1, "expert_kind": "identity"},
        {"n_experts": 1, "expert_kind": "constant"},
        {"n_experts": 2, "intermediate_size": 16},
    ],
}
"""Seven experts of several kinds."""
PLACED = ("experts_per_rank", "strategy", "hot_experts")
ARRAYS = ("dropped_per_expert", "mean_probability", "max_over_mean", "variation", "dead_share")


def plain(**changes: Any) -> dict[str, Any]:
    """Return a small layer's arguments."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "n_experts": 7, "top_k": 2, "seed": 3}
    return {**sizes, **changes}


def tokens(count: int, hidden: int = 24, seed: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return x and dy, float32."""
    numbers = np.random.default_rng(seed)
    x, dy = (numbers.standard_normal((count, hidden), np.float32) for _ in range(2))
    return x, dy


@dataclass
class Made:
    """What a forward and a backward came to, of all tokens."""

    y: NDArray[Any]
    dx: NDArray[Any] | None
    report: Any
    gradients: dict[str, NDArray[np.float32]]
    parameters: dict[str, NDArray[Any]]


Result = TypeVar("Result")


@dataclass
class Part:
    """One rank's tokens, and which of the layer's experts it has."""

    first: int
    count: int
    rank: int = 0

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return this rank's part of an array of all tokens."""
        return array[self.first : self.first + self.count]


def divided(parts: Sequence[int]) -> list[Part]:
    """Return where each rank's tokens are."""
    ends = np.cumsum([0, *parts])
    return [Part(int(ends[rank]), count, rank) for rank, count in enumerate(parts)]


def alone(config: dict[str, Any], count: int, use: Callable[[libmoe.Layer, Part], Result]) -> Result:
    """Do it in one process."""
    with libmoe.Context(1) as context:
        return use(libmoe.Layer(**config, context=context), Part(0, count))


def together(
    config: dict[str, Any],
    parts: Sequence[int],
    use: Callable[[libmoe.Layer, Part], Result],
    ranks: ThreadRanks | None = None,
) -> list[Result]:
    """Do it on as many ranks as there are parts."""
    divisions = divided(parts)

    def one(communicator: libmoe.Communicator) -> Result:
        with libmoe.Context(1) as context:
            layer = libmoe.Layer(**config, context=context, communicator=communicator)
            return use(layer, divisions[communicator.rank])

    return (ranks or ThreadRanks(len(parts), patience=20)).run(one)


def joined(made: Sequence[Made], strategy: str = "exclusive") -> Made:
    """Return what all ranks have made as if one had; what all have whole must be the same on all."""
    first = made[0]

    def whole(name: str, arrays: Sequence[dict[str, NDArray[Any]]]) -> NDArray[Any]:
        if name.startswith("experts.") and strategy == "sliced":
            parts = [own[name] for own in arrays if name in own]  # the bias of outputs is on one rank alone
            return np.concatenate(parts, axis=2 if name.endswith("down.weight") else 1)
        if name.startswith("experts.") and strategy == "exclusive":
            return np.concatenate([own[name] for own in arrays if name in own])
        for own in arrays[1:]:
            assert_same_bits(own[name], arrays[0][name], name)
        return arrays[0][name]

    names = {name for own in made for name in own.parameters}
    for own in made[1:]:
        for field in (*REPORTED, *ARRAYS):
            np.testing.assert_array_equal(
                getattr(own.report, field), getattr(first.report, field), err_msg=field
            )
    return Made(
        np.concatenate([own.y for own in made]),
        None if first.dx is None else np.concatenate([own.dx for own in made if own.dx is not None]),
        first.report,
        {name: whole(name, [own.gradients for own in made]) for name in names},
        {name: whole(name, [own.parameters for own in made]) for name in names},
    )


def require_same(found: Made, wanted: Made) -> None:
    """Fail where a bit differs."""
    pairs: dict[str, tuple[Any, Any]] = {"y": (found.y, wanted.y)}
    if wanted.dx is not None:
        pairs["dx"] = (found.dx, wanted.dx)
    for field in (*REPORTED, *ARRAYS):
        pairs[field] = (getattr(found.report, field), getattr(wanted.report, field))
    assert found.parameters.keys() == wanted.parameters.keys()
    for name in wanted.parameters:
        pairs[f"d {name}"] = (found.gradients[name], wanted.gradients[name])
        pairs[name] = (found.parameters[name], wanted.parameters[name])
    pairs |= {f"loss {k}": (found.report.losses[k], v) for k, v in wanted.report.losses.items()}
    for name, (one, other) in pairs.items():
        assert_same_bits(one, other, name)


def step(
    layer: libmoe.Layer,
    part: Part,
    x: NDArray[Any],
    dy: NDArray[Any],
    *,
    backward: bool = True,
    **options: Any,
) -> Made:
    """One forward and one backward; arrays among the options are of all tokens, or counts of experts."""
    tape = layer.tape() if backward else None
    arrays: dict[str, Any] = {
        k: part.of(v) if isinstance(v, np.ndarray) and k != "global_counts" else v for k, v in options.items()
    }
    d_aux_loss = arrays.pop("d_aux_loss", 1.0)
    output = layer.forward(part.of(x), tape=tape, **arrays)
    dx = layer.backward(tape, part.of(dy), d_aux_loss=d_aux_loss) if tape else None
    parameters = layer.parameters
    return Made(
        output.y,
        dx,
        output.report,
        {name: p.grad.copy() for name, p in parameters.items()},
        {name: np.array(p.data) for name, p in parameters.items()},
    )


def same(
    config: dict[str, Any], parts: Sequence[int], ranks: ThreadRanks | None = None, **options: Any
) -> None:
    """Compare a step over ranks with the same step in one process."""
    count = sum(parts)
    x, dy = tokens(count, config["hidden_size"])
    if config.get("io_dtype") == "bf16":
        x, dy = (libmoe.to_bfloat16(array) for array in (x, dy))
    use = partial(step, x=x, dy=dy, **options)
    found = joined(together(config, parts, use, ranks), config.get("strategy", "exclusive"))
    require_same(found, alone(whole(config), count, use))


def whole(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the same layer in one process."""
    return {key: value for key, value in config.items() if key not in PLACED}
