"""Muon over the user's own arrays and over layers, against its equations in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal

Float64 = NDArray[np.float64]


def orthogonalised(u: Float64) -> Float64:
    """Newton and Schulz's iteration of the last two dimensions, as Jordan et al. have it, in float64."""
    x = np.swapaxes(u, -1, -2) if u.shape[-2] > u.shape[-1] else u
    x = x / (np.sqrt((x * x).sum(axis=(-1, -2), keepdims=True)) + 1e-7)
    for _ in range(5):
        a = x @ np.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return np.swapaxes(x, -1, -2) if u.shape[-2] > u.shape[-1] else x


class Equations:
    """One tensor's steps."""

    def __init__(self, p: NDArray[np.float32], by_adamw: bool) -> None:
        self.p, self.by_adamw = p.astype(np.float64), by_adamw
        self.m = self.v = np.zeros_like(self.p)
        self.t = 0

    def step(self, g: Float64, rate: float, momentum: float, decay: float) -> None:
        self.t += 1
        self.p = self.p - rate * decay * self.p
        if self.by_adamw:
            self.m = 0.9 * self.m + 0.1 * g
            self.v = 0.95 * self.v + 0.05 * g**2
            update = self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.95**self.t)) + 1e-8)
        else:
            self.v = momentum * self.v + g
            update = orthogonalised(g + momentum * self.v)
            update = 0.2 * np.sqrt(max(g.shape[-2:])) * update
        self.p = self.p - rate * update


SHAPES = {
    "a": (6, 9),
    "b": (9, 6),
    "experts": (3, 4, 7),
    "x.bias": (3, 4),
    "norm": (5,),
    "embed.weight": (11, 4),
}
BY_ADAMW = {"x.bias", "norm", "embed.weight"}


def own() -> list[libmoe.Parameter]:
    return [libmoe.Parameter(normal(*s, seed=i), name=n) for i, (n, s) in enumerate(SHAPES.items())]


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_steps_follow_the_equations(clipped: bool, chosen: bool) -> None:
    parameters = own()
    others = {"b", "norm"} if chosen else BY_ADAMW
    adamw = [p for p in parameters if p.name in others] if chosen else None
    optimizer = libmoe.Muon(parameters, 0.05, 0.8, 0.1, adamw=adamw)
    equations = [Equations(p.data, p.name in others) for p in parameters]
    for step in range(12):
        rate, momentum = (0.05, 0.8) if step < 6 else (0.02, 0.6)
        optimizer.learning_rate, optimizer.momentum = rate, momentum
        gradients = [normal(*p.data.shape, seed=100 * step + i) for i, p in enumerate(parameters)]
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients))
        for p, g in zip(parameters, gradients):  # noqa: B905
            p.grad[...] = g
        if clipped:
            assert optimizer.step(max_norm=1.5) == pytest.approx(norm, rel=1e-6)
        else:
            optimizer.step()
        factor = min(1.0, 1.5 / (norm + 1e-6)) if clipped else 1.0
        for e, g in zip(equations, gradients):  # noqa: B905
            e.step(factor * g.astype(np.float64), rate, momentum, 0.1)
    for p, e in zip(parameters, equations):  # noqa: B905
        np.testing.assert_allclose(p.data, e.p, rtol=1e-4, atol=2e-5, err_msg=p.name)


def test_updates_are_nearly_orthogonal_and_of_adamws_size() -> None:
    """Singular values of an update are near 1, whatever the gradient's; its mean square is that of AdamW."""
    p = libmoe.Parameter(np.zeros((40, 100), np.float32))
    u, _, v = np.linalg.svd(normal(40, 100), full_matrices=False)
    p.grad[...] = (u * np.geomspace(1, 0.02, 40)) @ v
    libmoe.Muon([p], learning_rate=1.0, weight_decay=0.0).step()
    singular = np.linalg.svd(-p.data, compute_uv=False) / (0.2 * np.sqrt(100))
    assert singular.max() < 1.25 and singular.min() > 0.3
    assert np.sqrt((p.data**2).mean()) == pytest.approx(0.2, rel=0.25)


def test_groups_and_bfloat16_have_masters_of_their_own() -> None:
    """A bfloat16 matrix is what the float32 one is, rounded; a group has its own rate and decay."""
    whole, half = libmoe.Parameter(normal(8, 5)), libmoe.Parameter(libmoe.to_bfloat16(normal(8, 5)))
    whole.data[...] = libmoe.from_bfloat16(half.data)
    for p in (whole, half):
        optimizer = libmoe.Muon(
            [p], 0.1, groups=[{"parameters": [p], "learning_rate": 0.003, "weight_decay": 0.5}]
        )
        e = Equations(libmoe.from_bfloat16(p.data) if p is half else p.data, False)
        for step in range(5):
            p.grad[...] = normal(8, 5, seed=step)
            optimizer.step()
            e.step(p.grad.astype(np.float64), 0.003, 0.95, 0.5)
        if p is whole:
            np.testing.assert_allclose(p.data, e.p, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(half.data, libmoe.to_bfloat16(whole.data))


@pytest.mark.parametrize("state_dtype", ["f32", "bf16"])
def test_a_stopped_run_goes_on_with_the_same_bits(state_dtype: Any, tmp_path: Path) -> None:
    def begin() -> tuple[list[libmoe.Parameter], libmoe.Muon]:
        parameters = own()
        return parameters, libmoe.Muon(parameters, 0.05, state_dtype=state_dtype, seed=3)

    def advance(parameters: list[libmoe.Parameter], optimizer: libmoe.Muon, steps: range) -> None:
        for step in steps:
            for i, p in enumerate(parameters):
                p.grad[...] = normal(*p.data.shape, seed=100 * step + i)
            optimizer.step()

    parameters, optimizer = begin()
    advance(parameters, optimizer, range(2))
    optimizer.learning_rate, optimizer.momentum = 0.02, 0.7
    libmoe.save_training(tmp_path / "state", step=2, optimizers=[optimizer], parameters=parameters)
    advance(parameters, optimizer, range(2, 5))

    others, other = begin()
    assert libmoe.load_training(tmp_path / "state", optimizers=[other], parameters=others) == 2
    assert (other.learning_rate, other.momentum) == (0.02, 0.7)
    advance(others, other, range(2, 5))
    for a, b in zip(parameters, others):  # noqa: B905
        np.testing.assert_array_equal(a.data, b.data)

    with libmoe.Checkpoint(tmp_path / "state") as checkpoint:
        numbers = checkpoint["optimizers.0.muon"]
        np.testing.assert_allclose(numbers, [0.02, 0.7, 0.9, 0.95, 1e-8, 0.1, 0.9**2, 0.95**2], rtol=1e-12)
        shapes = [checkpoint[f"optimizers.0.{i}.moments"].shape[0] for i in range(len(SHAPES))]
        assert shapes == [2 if name in BY_ADAMW else 1 for name in SHAPES]
    with pytest.raises(libmoe.InvalidArgumentError, match="optimizers.0.adamw"):
        libmoe.load_training(tmp_path / "state", optimizers=[libmoe.AdamW(others)], parameters=others)


def test_adamws_parameters_are_among_its_own() -> None:
    parameters = own()
    with pytest.raises(libmoe.InvalidArgumentError, match="adamw: 'stray' is not among the parameters"):
        libmoe.Muon(parameters, adamw=[libmoe.Parameter(normal(3), name="stray")])
    with pytest.raises(
        libmoe.InvalidArgumentError, match=r"by_adamw\[4\] = 0, but tensors\[4\] \(norm\) has one dimension"
    ):
        libmoe.Muon(parameters, adamw=parameters[:2])


def test_its_state_may_be_memory_of_the_users() -> None:
    parameters, others = own(), own()
    plain, bound = libmoe.Muon(parameters), libmoe.Muon(others, unallocated_state=True)
    assert bound.state_size == plain.state_size
    with pytest.raises(libmoe.BadStateError):
        bound.step()
    bound.bind_state(np.zeros(bound.state_size // 4, np.float32))
    for a, b in zip(parameters, others):  # noqa: B905
        a.grad[...] = b.grad[...] = normal(*a.data.shape, seed=9)
    plain.step()
    bound.step()
    for a, b in zip(parameters, others):  # noqa: B905
        np.testing.assert_array_equal(a.data, b.data)
