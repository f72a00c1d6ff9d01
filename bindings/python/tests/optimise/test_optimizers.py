"""The optimisers and clipping over the user's own arrays, against the equations in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal

SHAPES = [(7,), (3, 5), (2, 3, 4), (2, 1, 3, 5)]
STEPS = 20
Float64 = NDArray[np.float64]


def own_parameters() -> list[libmoe.Parameter]:
    return [libmoe.Parameter(normal(*shape, seed=i), name=f"own {i}") for i, shape in enumerate(SHAPES)]


def adamw(p: Float64, gradients: list[Float64], rates: list[float]) -> Float64:
    beta1, beta2, epsilon, decay = 0.8, 0.95, 1e-6, 0.1
    m = v = np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(gradients, rates), start=1):  # noqa: B905
        p = p - rate * decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return p


def sgd(p: Float64, gradients: list[Float64], rates: list[float]) -> Float64:
    momentum, decay = 0.9, 0.1
    v = np.zeros_like(p)
    for g, rate in zip(gradients, rates):  # noqa: B905
        p = p - rate * decay * p
        v = momentum * v + g
        p = p - rate * v
    return p


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_steps_follow_the_equations(kind: str) -> None:
    parameters = own_parameters()
    if kind == "AdamW":
        optimizer: libmoe.AdamW | libmoe.SGD = libmoe.AdamW(
            parameters, learning_rate=0.05, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.1
        )
        equations = adamw
    else:
        optimizer = libmoe.SGD(parameters, learning_rate=0.05, momentum=0.9, weight_decay=0.1)
        equations = sgd
    assert optimizer.learning_rate == 0.05

    gradients = [
        [normal(*shape, seed=100 * i + step) for step in range(STEPS)] for i, shape in enumerate(SHAPES)
    ]
    rates = [0.05 if step < 10 else 0.02 for step in range(STEPS)]
    expected = [
        equations(p.data.astype(np.float64), [g.astype(np.float64) for g in mine], rates)
        for p, mine in zip(parameters, gradients)  # noqa: B905
    ]
    for step, rate in enumerate(rates):
        optimizer.learning_rate = rate
        for p, mine in zip(parameters, gradients):  # noqa: B905
            p.grad[...] = mine[step]
        optimizer.step()
    for p, value in zip(parameters, expected):  # noqa: B905
        np.testing.assert_allclose(p.data, value, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_groups_are_optimisers_of_their_own(kind: str) -> None:
    """Each group has the bits of an optimiser for it alone; the rate of all changes by one factor."""
    grouped, alone = own_parameters(), own_parameters()
    make = getattr(libmoe, kind)
    one = make(
        grouped,
        learning_rate=0.5,
        weight_decay=0.1,
        groups=[
            {"parameters": [grouped[0], grouped[2]], "weight_decay": 0.0},
            {"parameters": [grouped[1]], "learning_rate": 0.125},
        ],
    )
    others = [
        make([alone[0]], learning_rate=0.5, weight_decay=0.0),
        make([alone[1]], learning_rate=0.125, weight_decay=0.1),
        make([alone[2]], learning_rate=0.5, weight_decay=0.0),
        make([alone[3]], learning_rate=0.5, weight_decay=0.1),
    ]
    for step in range(6):
        if step == 3:
            for optimizer in (one, *others):
                optimizer.learning_rate /= 4
        for i, (a, b) in enumerate(zip(grouped, alone)):  # noqa: B905
            a.grad[...] = b.grad[...] = normal(*a.data.shape, seed=10 * step + i)
        one.step()
        for other in others:
            other.step()
        for a, b in zip(grouped, alone):  # noqa: B905
            np.testing.assert_array_equal(a.data, b.data)


def test_a_group_of_a_layers_parameters() -> None:
    """The layer makes new objects for the same memory. Without gradients a value moves by its decay alone."""
    layer = libmoe.Layer(4, 8, 3, 2, expert_kind="mlp")
    biases = {name: p for name, p in layer.parameters.items() if name.endswith("bias")}
    for p in layer.parameters.values():
        p.data[...] = 1
    optimizer = libmoe.SGD(
        layer.parameters,
        learning_rate=0.5,
        weight_decay=0.5,
        groups=[{"parameters": biases, "weight_decay": 0.0}],
    )
    layer.zero_grad()
    optimizer.step()
    assert biases
    for name, p in layer.parameters.items():
        assert (p.data == (1 if name in biases else 0.75)).all()


def test_groups_that_are_none() -> None:
    a, b = (libmoe.Parameter(normal(3), name=name) for name in "ab")
    cases: list[tuple[list[Any], str]] = [
        ([{"parameters": [b]}], "'b' is not among the parameters"),
        ([{"parameters": [a]}, {"parameters": [a]}], "groups.1.: 'a' is in groups.0. as well"),
        ([{"parameters": [a], "learning_rate": -1.0}], r"groups\[0\]: learning_rate = -1 is not a number"),
        ([{"parameters": [a], "weight_decay": math.nan}], r"groups\[0\]: weight_decay = nan is not"),
        ([{"parameters": a}], r"groups\[0\]: parameters: expected a sequence, got Parameter"),
        ([{"parameters": ["a"]}], r"groups\[0\]: parameters\[0\]: .* got str; use layer.parameters"),
    ]
    for groups, message in cases:
        with pytest.raises(libmoe.InvalidArgumentError, match=message):
            libmoe.AdamW([a], groups=groups)
    with pytest.raises(libmoe.InvalidArgumentError, match="no multiple of the optimiser's, which is 0"):
        libmoe.AdamW([a], learning_rate=0.0, groups=[{"parameters": [a], "learning_rate": 0.1}])
    unknown: Any = [{"parameters": [a], "lr": 0.1}]
    with pytest.raises(TypeError, match=r"groups.0.: unknown names \['lr'\]; .*did you mean learning_rate"):
        libmoe.AdamW([a], groups=unknown)


def test_parameters_wrap_arrays_without_a_copy() -> None:
    data, grad = normal(3, 4), normal(3, 4, seed=1)
    parameter = libmoe.Parameter(data, grad, name="mine")
    assert parameter.data is data
    assert parameter.grad is grad
    assert parameter.name == "mine"
    before = data.copy()
    libmoe.SGD([parameter], learning_rate=0.5).step()
    np.testing.assert_allclose(data, before - 0.5 * grad, rtol=1e-6)
    np.testing.assert_array_equal(libmoe.Parameter(data).grad, np.zeros((3, 4)))


def test_training_a_layer_beside_own_parameters() -> None:
    """A layer learns to negate; the bias in front of it is the user's."""
    layer = libmoe.Layer(4, 16, 3, 2, seed=1)
    bias = libmoe.Parameter(np.full(4, 0.5, np.float32), name="bias")
    optimizer = libmoe.AdamW([*layer.parameters.values(), bias], learning_rate=1e-2, weight_decay=0.0)
    tape = layer.tape()
    losses = []
    for step in range(300):
        x = normal(64, 4, seed=step)
        output = layer.forward(x + bias.data, tape=tape, training=True, step=step)
        error = output.y + x
        losses.append(float((error**2).mean()))
        dx = layer.backward(tape, error * np.float32(2 / error.size))
        assert dx is not None
        bias.grad[...] = dx.sum(0)
        optimizer.step()
        layer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("max_norm", [0.5, 1000.0, math.inf])
def test_clipping(max_norm: float) -> None:
    parameters = own_parameters()
    for i, p in enumerate(parameters):
        p.grad[...] = normal(*p.data.shape, seed=10 + i)
    before = [p.grad.astype(np.float64) for p in parameters]
    norm = math.sqrt(sum(float((g**2).sum()) for g in before))
    assert libmoe.clip_grad_norm(parameters, max_norm) == pytest.approx(norm, rel=1e-6)
    for p, g in zip(parameters, before):  # noqa: B905
        np.testing.assert_allclose(p.grad, g * min(1.0, max_norm / (norm + 1e-6)), rtol=1e-6)


def test_clipping_refuses_what_is_not_finite() -> None:
    parameters = own_parameters()
    for p in parameters:
        p.grad[...] = 5
    parameters[2].grad[1, 2, 3] = math.inf
    with pytest.raises(libmoe.NotFiniteError, match="own 2"):
        libmoe.clip_grad_norm(parameters, 1.0)
    assert (parameters[0].grad == 5).all()


@pytest.mark.parametrize("kind", [libmoe.AdamW, libmoe.SGD])
@pytest.mark.parametrize("max_norm", [0.5, 1000.0, math.inf])
def test_a_clipped_step_is_clipping_and_a_step(
    kind: type[libmoe.AdamW] | type[libmoe.SGD], max_norm: float
) -> None:
    together, apart = own_parameters(), own_parameters()
    one, other = kind(together, learning_rate=0.1), kind(apart, learning_rate=0.1)
    for step in range(3):
        for i, (a, b) in enumerate(zip(together, apart)):  # noqa: B905
            a.grad[...] = b.grad[...] = normal(*a.data.shape, seed=10 * step + i)
        gradients = [a.grad.copy() for a in together]
        norm = one.step(max_norm=max_norm)
        assert norm == libmoe.clip_grad_norm(apart, max_norm)
        assert other.step() is None
        for a, b, gradient in zip(together, apart, gradients):  # noqa: B905
            np.testing.assert_array_equal(a.data, b.data)
            np.testing.assert_array_equal(a.grad, gradient)


def test_a_clipped_step_refuses_what_is_not_finite() -> None:
    parameters = own_parameters()
    optimizer = libmoe.AdamW(parameters)
    before = [p.data.copy() for p in parameters]
    for p in parameters:
        p.grad[...] = 5
    parameters[2].grad[1, 2, 3] = math.nan
    with pytest.raises(libmoe.NotFiniteError, match="own 2"):
        optimizer.step(max_norm=1.0)
    with pytest.raises(libmoe.InvalidArgumentError, match="max_norm"):
        optimizer.step(max_norm=0.0)
    for p, value in zip(parameters, before):  # noqa: B905
        np.testing.assert_array_equal(p.data, value)


def test_layer_parameters_may_be_passed_as_they_are() -> None:
    layer = libmoe.Layer(4, 8, 3, 2)
    for p in layer.parameters.values():
        p.grad[...] = 1
    count = sum(p.data.size for p in layer.parameters.values())
    assert libmoe.clip_grad_norm(layer.parameters, math.inf) == pytest.approx(math.sqrt(count))
    before = layer.state_dict()
    libmoe.SGD(layer.parameters, learning_rate=1.0).step()
    for name, p in layer.parameters.items():
        np.testing.assert_allclose(p.data, before[name] - 1, rtol=1e-6)
