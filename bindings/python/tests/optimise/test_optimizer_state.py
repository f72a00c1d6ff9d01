"""Moments in bfloat16, against the definitions: a step in float32, then a rounding up or down by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from oracle.philox import HALF, blocks

STREAM = 25  # of the random numbers
SEED, STEPS, RATE, DECAY = 2**40 + 3, 6, 0.05, 0.1
BETAS, EPSILON, MOMENTUM = (0.8, 0.95), 1e-6, 0.9
SHAPES = [(7,), (65, 1031), (3, 5)]  # tails, more than one thread's share and one pair of keys, other places
Floats = NDArray[np.float32]
F, D = np.float32, np.float64


def by_chance(values: Floats, chance: NDArray[np.uint64]) -> Floats:
    """The bfloat16 towards 0, or the next one away from it: likely as far as the value is on the way."""
    near = (values.view(np.uint32) & np.uint32(0xFFFF_0000)).view(np.float32)
    far = ((near.view(np.uint32) >> np.uint32(16)) + np.uint32(1) << np.uint32(16)).view(np.float32)
    way = (values.astype(D) - near) / (far.astype(D) - near)
    return np.where(chance >= 2**16 * (1 - way), far, near)


def chances(
    t: int, count: int, tensor: int, stream: int = STREAM
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """16 bits for the first and 16 for the second moment of the elements, as include/moe.h has them."""
    i = np.arange(count, dtype=np.uint64)
    k0, k1 = blocks(SEED, stream, t, i >> np.uint64(16) | np.uint64(tensor << 32))[:, :2].T

    def times(factor: int, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return x * np.uint64(factor) & HALF

    x = times(0x9E3779B9, i & np.uint64(0xFFFF)) ^ k0
    x = times(0x7FEB352D, x ^ x >> np.uint64(16))
    x = times(0x846CA68B, x ^ x >> np.uint64(15) ^ k1)
    word = x ^ x >> np.uint64(16)
    return word & np.uint64(0xFFFF), word >> np.uint64(16)


def fused(a: Floats, b: float, c: Floats) -> Floats:
    return (a.astype(D) * D(F(b)) + c.astype(D)).astype(F)


class Oracle:
    """One tensor in float32, operation by operation as the library rounds them, and its moments."""

    def __init__(self, p: Floats, tensor: int) -> None:
        self.p, self.tensor = p.copy(), tensor
        self.moments = np.zeros((2, p.size), F)

    def adamw(self, g: Floats, t: int) -> None:
        (beta1, beta2), (m, v) = BETAS, self.moments
        m = fused(g, 1 - beta1, m * F(beta1))
        v = fused(g * g, 1 - beta2, v * F(beta2))
        denominator = fused(np.sqrt(v), 1 / np.sqrt(1 - beta2**t), np.full_like(v, EPSILON))
        self.p = self.p * F(1 - RATE * DECAY) - m / denominator * F(RATE / (1 - beta1**t))
        self.keep(m, v, t)

    def sgd(self, g: Floats, t: int) -> None:
        v = fused(self.moments[0], MOMENTUM, g)
        self.p = fused(v, -RATE, self.p * F(1 - RATE * DECAY))
        self.keep(v, v, t)

    def keep(self, first: Floats, second: Floats, t: int) -> None:
        drawn = chances(t, self.p.size, self.tensor)
        self.moments = np.stack([by_chance(first, drawn[0]), by_chance(second, drawn[1])])


def make(kind: str, parameters: list[libmoe.Parameter], **options: Any) -> libmoe.AdamW | libmoe.SGD:
    options = {"learning_rate": RATE, "weight_decay": DECAY, "state_dtype": "bf16", "seed": SEED, **options}
    if kind == "adamw":
        return libmoe.AdamW(parameters, betas=BETAS, epsilon=EPSILON, **options)
    return libmoe.SGD(parameters, **{"momentum": MOMENTUM, **options})


def moments(optimizer: libmoe.AdamW | libmoe.SGD, folder: Path) -> list[Floats]:
    """What the optimiser remembers of each tensor, out of a training state."""
    libmoe.save_training(folder / "state", step=0, optimizers=[optimizer])
    with libmoe.Checkpoint(folder / "state") as file:
        names = [f"optimizers.0.{i}.moments" for i in range(len(file))]
        stored = [np.array(file.raw(name)) for name in names if name in file]
    assert all(array.dtype == np.uint16 for array in stored)
    return [libmoe.from_bfloat16(array) for array in stored]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_steps_follow_the_definitions(kind: str, half: bool, tmp_path: Path) -> None:
    starts = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    if half:
        starts = [libmoe.from_bfloat16(libmoe.to_bfloat16(start)) for start in starts]
    parameters = [libmoe.Parameter(libmoe.to_bfloat16(start) if half else start.copy()) for start in starts]
    optimizer = make(kind, parameters)
    oracles = [Oracle(start.ravel(), i) for i, start in enumerate(starts)]
    for t in range(1, STEPS + 1):
        for i, (parameter, oracle) in enumerate(zip(parameters, oracles)):  # noqa: B905
            parameter.grad[...] = normal(*parameter.data.shape, seed=100 * t + i)
            getattr(oracle, kind)(parameter.grad.ravel(), t)
        optimizer.step()
    for parameter, oracle, stored in zip(parameters, oracles, moments(optimizer, tmp_path)):  # noqa: B905
        np.testing.assert_array_equal(stored, oracle.moments[: len(stored)])
        expected = libmoe.to_bfloat16(oracle.p) if half else oracle.p
        np.testing.assert_array_equal(parameter.data.ravel(), expected)


def test_the_mean_is_right(tmp_path: Path) -> None:
    """Velocity after one step is the gradient, rounded to its neighbours so often that the mean comes out."""
    n = 200_000
    for value in (1.001, -3.14159, 1e-20, 7e-39):
        parameter = libmoe.Parameter(np.zeros(n, F), np.full(n, value, F))
        optimizer = libmoe.SGD([parameter], momentum=MOMENTUM, state_dtype="bf16", seed=SEED)
        optimizer.step()
        (stored,) = moments(optimizer, tmp_path)
        found = np.unique(stored).astype(D)
        assert len(found) == 2 and found[0] < F(value) < found[1]
        step = found[1] - found[0]
        deviation = 0.5 * step / np.sqrt(n)  # at most
        assert abs(stored.astype(D).mean() - F(value)) < 4 * deviation


def test_chance_is_even_and_independent(tmp_path: Path) -> None:
    """Of elements, moments, tensors and steps: all of it as if every rounding were a throw of its own."""
    n, steps = 2**18, 6
    g = (1 + np.random.default_rng(0).uniform(0, 2.0**-7, n)).astype(F)
    values = np.stack([g, g * g])  # the moments where both betas are 0
    likely = (values.view(np.uint32) & np.uint32(0xFFFF)) / 2**16
    parameters = [libmoe.Parameter(np.zeros(n, F), g.copy()) for _ in range(2)]
    optimizer = libmoe.AdamW(parameters, 0.0, betas=(0.0, 0.0), state_dtype="bf16", seed=SEED)
    throws = []
    for _ in range(steps):
        optimizer.step()
        throws.append([(stored > values) - likely for stored in moments(optimizer, tmp_path)])
    # [step, tensor, moment, element], mean 0 and deviation 1
    residuals = np.array(throws) / np.sqrt(np.maximum(likely * (1 - likely), 2.0**-17))
    levels = (likely * 64).astype(np.int64)
    for moment in range(2):
        counts = np.bincount(levels[moment], minlength=64)
        for throw in residuals[:, :, moment].reshape(-1, n):
            square = (np.bincount(levels[moment], throw, 64) ** 2 / counts).sum()
            assert abs(square - 64) < 5 * np.sqrt(2 * 64)
    pairs = {
        "steps": (residuals[:-1], residuals[1:]),
        "tensors": (residuals[:, 0], residuals[:, 1]),
        "moments": (residuals[:, :, 0], residuals[:, :, 1]),
    }
    for lag in (1, 2, 3, 5, 8, 16, 48, 64, 96, 1024, 32768, 65536):
        pairs[f"elements {lag} apart"] = (residuals[..., lag:], residuals[..., :-lag])
        pairs[f"moments {lag} apart"] = (residuals[:, :, 0, lag:], residuals[:, :, 1, :-lag])
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean()) < 4.5 / np.sqrt(one.size), name


def test_numbers_that_need_no_rounding(tmp_path: Path) -> None:
    exact = np.array([0, -0.0, 1.5, -(2.0**-133), np.inf, -np.inf], F)
    nans = np.array([0x7F80_0001, 0x7FFF_FFFF, 0xFFFF_FFFF], np.uint32).view(F)
    values = np.tile(np.concatenate([exact, nans]), 500)
    parameter = libmoe.Parameter(np.zeros_like(values), values)
    optimizer = make("sgd", [parameter], learning_rate=0.0)
    optimizer.step()
    (stored,) = moments(optimizer, tmp_path)
    np.testing.assert_array_equal(stored[0], values)


def test_small_changes_add_up(tmp_path: Path) -> None:
    """v grows by less than half a step of bfloat16 and would stand still, rounded to the nearest."""
    n, steps, beta2 = 4096, 2500, 0.999
    parameter = libmoe.Parameter(np.zeros(n, F), np.ones(n, F))
    optimizer = libmoe.AdamW([parameter], betas=(0.9, beta2), state_dtype="bf16", seed=SEED)
    nearest = np.zeros(1, F)
    for _ in range(steps):
        optimizer.step()
        nearest = libmoe.from_bfloat16(libmoe.to_bfloat16(nearest * F(beta2) + F(1 - beta2)))
    v = moments(optimizer, tmp_path)[0][1].astype(D)
    expected = 1 - beta2**steps
    assert abs(v.mean() / expected - 1) < 0.002
    assert abs(nearest[0] / expected - 1) > 0.1
    assert v.std() / expected < 0.1


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_same_bits_for_threads_and_instructions(kind: str, tmp_path: Path) -> None:
    found = set()
    for options in ({"n_threads": 1}, {"n_threads": 3}, {"n_threads": 7, "instructions": "avx2"}):
        context = libmoe.Context(**options)
        parameter = libmoe.Parameter(normal(100_003))
        optimizer = make(kind, [parameter], context=context)
        for step in range(3):
            parameter.grad[...] = normal(100_003, seed=step)
            optimizer.step(max_norm=1.0)
        found.add(parameter.data.tobytes() + moments(optimizer, tmp_path)[0].tobytes())
    assert len(found) == 1


def test_another_seed_rounds_otherwise(tmp_path: Path) -> None:
    found = []
    for seed in (SEED, SEED, SEED + 1, 2**64 - 1):
        parameter = libmoe.Parameter(np.zeros(1000, F), normal(1000))
        optimizer = make("sgd", [parameter], seed=seed)
        optimizer.step()
        found.append(moments(optimizer, tmp_path)[0].tobytes())
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize(("kind", "bytes_each"), [("adamw", 8), ("sgd", 4)])
def test_half_the_memory(kind: str, bytes_each: int) -> None:
    n = 100_000
    taken = []
    for state_dtype in ("f32", "bf16"):
        context = libmoe.Context()
        before = context.memory()[0]
        optimizer = make(kind, [libmoe.Parameter(np.zeros(n, F))], state_dtype=state_dtype, context=context)
        taken.append(context.memory()[0] - before)
        optimizer.close()
    assert abs(taken[0] - n * bytes_each) < 1024 and abs(taken[1] - n * bytes_each // 2) < 1024


def test_refused() -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="state_dtype = 'f16'; choose one of 'f32', 'bf16'"):
        libmoe.AdamW([libmoe.Parameter(normal(3))], state_dtype="f16")  # type: ignore[arg-type]
    with pytest.raises(libmoe.InvalidArgumentError, match="seed = -1 is out of range"):
        libmoe.SGD([libmoe.Parameter(normal(3))], seed=-1)
