"""Parameters in bfloat16 without a copy in float32: stepped where they are, and rounded by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_optimizer_state import DECAY, RATE, SEED, Oracle, by_chance, chances, make

import libmoe
from arrays import normal

WEIGHTS = 26  # stream of the random numbers
SHAPES = [(7,), (65, 1031), (3, 5)]  # tails, more than one thread's share and one pair of keys, other places


def halves(*shape: int, seed: int = 0) -> Any:
    return libmoe.to_bfloat16(normal(*shape, seed=seed))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_steps_follow_the_definitions(kind: str) -> None:
    parameters = [libmoe.Parameter(halves(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    optimizer = make(kind, parameters, stochastic_rounding=True)
    oracles = [Oracle(libmoe.from_bfloat16(p.data).ravel(), i) for i, p in enumerate(parameters)]
    for t in range(1, 5):
        for i, (parameter, oracle) in enumerate(zip(parameters, oracles)):  # noqa: B905
            parameter.grad[...] = normal(*parameter.data.shape, seed=100 * t + i)
            getattr(oracle, kind)(parameter.grad.ravel(), t)
            oracle.p = by_chance(oracle.p, chances(t, oracle.p.size, i, WEIGHTS)[0])
        optimizer.step()
    for parameter, oracle in zip(parameters, oracles):  # noqa: B905
        np.testing.assert_array_equal(libmoe.from_bfloat16(parameter.data).ravel(), oracle.p)


def test_steps_smaller_than_the_type_resolves_add_up() -> None:
    """A thousand steps of 1e-4 from 1: bfloat16's neighbours of 1 are 2^-8 and 2^-7 away."""
    n, steps = 20_000, 1000
    parameter = libmoe.Parameter(libmoe.to_bfloat16(np.ones(n, np.float32)), np.ones(n, np.float32))
    optimizer = libmoe.SGD([parameter], 1e-4, stochastic_rounding=True, seed=SEED)
    for _ in range(steps):
        optimizer.step()
    found = libmoe.from_bfloat16(parameter.data).astype(np.float64)
    deviation = np.sqrt(steps * 1e-4 * 2.0**-8 / n)  # of the mean: each step is a throw
    assert abs(found.mean() - 0.9) < 5 * deviation
    assert found.std() < 0.05


@pytest.mark.parametrize("kind", ["adamw", "sgd", "muon"])
def test_the_same_bits_for_threads_and_instructions(kind: str) -> None:
    found = set()
    for options in ({"n_threads": 1}, {"n_threads": 3}, {"n_threads": 2, "instructions": "avx2"}):
        context = libmoe.Context(**options)
        parameter = libmoe.Parameter(halves(3, 100, 501))
        some: dict[str, Any] = dict(stochastic_rounding=True, seed=SEED, context=context)
        if kind == "muon":
            optimizer: libmoe.Optimizer = libmoe.Muon([parameter], 0.01, **some)
        else:
            optimizer = make(kind, [parameter], **some)
        for step in range(3):
            parameter.grad[...] = normal(3, 100, 501, seed=step)
            optimizer.step(max_norm=1.0)
        found.add(parameter.data.tobytes())
    assert len(found) == 1


def test_steps_within_backward_round_alike() -> None:
    """By chance that goes by an element's place in its tensor, whichever part of the tensor a step takes."""
    found = []
    for fused in (False, True):
        layer = libmoe.Layer(
            40, 24, 4, 2, weight_dtype="bf16", unallocated="expert_gradients" if fused else ()
        )
        optimizer, tape = libmoe.AdamW(layer.parameters, 0.01, stochastic_rounding=True), layer.tape()
        for step in range(3):
            x = normal(300, 40, seed=step)
            layer.forward(x, tape=tape)
            if fused:
                layer.backward(tape, x, optimizer=optimizer)
            else:
                layer.zero_grad()
                layer.backward(tape, x)
                optimizer.step()
        found.append([array.tobytes() for array in layer.state_dict().values()])
    assert found[0] == found[1]


def test_a_saved_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    def trained(steps: int, path: Path | None = None) -> Any:
        parameter = libmoe.Parameter(halves(1000))
        optimizer = make("adamw", [parameter], stochastic_rounding=True)
        done = 0
        if path is not None:
            done = libmoe.load_training(path, optimizers=[optimizer], parameters=[parameter])
        for t in range(done, steps):
            parameter.grad[...] = normal(1000, seed=t)
            optimizer.step()
        return parameter, optimizer

    parameter, optimizer = trained(2)
    libmoe.save_training(tmp_path / "state", step=2, optimizers=[optimizer], parameters=[parameter])
    np.testing.assert_array_equal(trained(5, tmp_path / "state")[0].data, trained(5)[0].data)
    other = make("adamw", [libmoe.Parameter(halves(1000))])
    with pytest.raises(libmoe.MoeError, match="master"):
        libmoe.load_training(tmp_path / "state", optimizers=[other])


def test_memory() -> None:
    """Two bytes for each moment and none for a copy; SGD without momentum has nothing at all."""
    n = 100_000
    with libmoe.Context() as context:

        def taken(kind: str, **options: Any) -> int:
            before = context.memory()[0]
            optimizer = make(kind, [libmoe.Parameter(halves(n))], context=context, **options)
            size: int = context.memory()[0] - before
            optimizer.close()
            return size

        more: dict[str, Any]
        for kind, more, each in (("adamw", {}, 4), ("sgd", {}, 2), ("sgd", {"momentum": 0.0}, 0)):
            assert abs(taken(kind, stochastic_rounding=True, **more) - each * n) < 1024
            assert abs(taken(kind, **more) - (each + 4) * n) < 1024


def test_without_momentum_there_is_none_later(tmp_path: Path) -> None:
    parameter = libmoe.Parameter(normal(1003), normal(1003, seed=1))
    before, rate, decay = parameter.data.copy(), np.float32(-RATE), np.float32(1 - RATE * DECAY)
    plain = libmoe.SGD([parameter], RATE, weight_decay=DECAY)
    plain.step()
    exact = (before * decay).astype(np.float64) + np.float64(rate) * parameter.grad.astype(np.float64)
    np.testing.assert_array_equal(parameter.data, exact.astype(np.float32))
    plain.momentum = 0.0
    with pytest.raises(libmoe.BadStateError, match="momentum = 0.5, but the optimizer was created with"):
        plain.momentum = 0.5
    libmoe.save_training(tmp_path / "state", step=1, optimizers=[plain])
    with pytest.raises(libmoe.MoeError, match="moments"):
        libmoe.load_training(tmp_path / "state", optimizers=[libmoe.SGD([parameter], momentum=0.9)])
