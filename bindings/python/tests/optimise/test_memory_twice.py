"""Parameters that are given twice, and parameters that move after their optimiser was made."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal

TAKERS: dict[str, Callable[[Any], object]] = {
    "AdamW": lambda parameters: libmoe.AdamW(parameters),
    "SGD": lambda parameters: libmoe.SGD(parameters),
    "clip": lambda parameters: libmoe.clip_grad_norm(parameters, 1.0),
}


def halves(part: str) -> list[libmoe.Parameter]:
    """Two parameters of which the last row of one is the first of the other, in their values or gradients."""
    shared = normal(5, 4)
    other = np.zeros((6, 4), np.float32)
    memory = {"data": (shared, other), "grad": (other, shared)}[part]
    first = libmoe.Parameter(memory[0][:3], memory[1][:3], "first")
    places = {"data": (slice(2, 5), slice(3, 6)), "grad": (slice(3, 6), slice(2, 5))}[part]
    return [first, libmoe.Parameter(memory[0][places[0]], memory[1][places[1]], "second")]


@pytest.mark.parametrize("take", TAKERS)
def test_memory_that_is_given_twice_is_refused(take: str) -> None:
    one, more = libmoe.Parameter(normal(3, 4), name="one"), libmoe.Parameter(normal(9), name="more")
    layer = libmoe.Layer(4, 8, 3, 2)
    weight = layer.parameters["router.weight"]
    view = libmoe.Parameter(weight.data[1:], weight.grad[1:], "rows")
    for given, names in (
        ([one, more, one], ("parameters[0], 'one'", "parameters[2], 'one'")),
        (
            [weight, *layer.parameters.values()],
            ("parameters[0], 'router.weight'", "parameters[1], 'router.weight'"),
        ),
        ([*layer.parameters.values(), view], ("'router.weight'", "'rows'")),
        (halves("grad"), ("'first'", "'second'")),
        ([libmoe.Parameter(one.data, one.grad, "again"), one], ("'again'", "'one'")),
    ):
        with pytest.raises(libmoe.InvalidArgumentError) as error:
            TAKERS[take](given)
        for name in names:
            assert name in str(error.value)
        assert "give each array once" in str(error.value)


@pytest.mark.parametrize("take", ["AdamW", "SGD"])
def test_values_that_overlap_are_refused(take: str) -> None:
    with pytest.raises(
        libmoe.InvalidArgumentError, match=r"parameters\[0\], 'first': data, and .*'second': data"
    ):
        TAKERS[take](halves("data"))


@pytest.mark.parametrize("take", TAKERS)
def test_neighbours_are_taken(take: str) -> None:
    data, grad = normal(6, 4), np.ones((6, 4), np.float32)
    TAKERS[take]([libmoe.Parameter(data[i : i + 2], grad[i : i + 2], str(i)) for i in (4, 0, 2)])


def test_there_is_nothing_to_clip() -> None:
    """An optimiser of nothing is refused, see binding/test_silent.py."""
    assert TAKERS["clip"]([]) == 0


def bound_layer() -> tuple[libmoe.Layer, np.ndarray[Any, Any]]:
    layer = libmoe.Layer(4, 8, 3, 2)
    data = normal(3, 4)
    layer.bind("router.weight", data, np.zeros((3, 4), np.float32))
    return layer, data


def test_an_optimiser_follows_memory_that_is_bound_after_it_was_made() -> None:
    """Each step changes what the layer computes with, by hand-computed numbers."""
    layer, first = bound_layer()
    optimizer = libmoe.SGD(layer.parameters, learning_rate=0.5)
    parameter = layer.parameters["router.weight"]
    second, grad = normal(3, 4), np.full((3, 4), 2, np.float32)
    before, kept = second.copy(), first.copy()
    layer.bind("router.weight", second, grad)
    optimizer.step()
    np.testing.assert_array_equal(second, before - 0.5 * 2)
    np.testing.assert_array_equal(first, kept)
    assert parameter.data is second
    assert parameter.grad is grad
    assert layer.parameters["router.weight"].data is second
    optimizer.step(max_norm=1e-3)  # the norm is that of the new gradient as well
    assert optimizer.step(max_norm=np.inf) == pytest.approx(np.sqrt(12 * 4.0))


def test_clipping_follows_too() -> None:
    layer, _ = bound_layer()
    held = list(layer.parameters.values())
    layer.bind("router.weight", normal(3, 4), np.full((3, 4), 3, np.float32))
    assert libmoe.clip_grad_norm(held, np.inf) == pytest.approx(np.sqrt(12 * 9.0))


def test_moved_onto_another_parameter_is_refused() -> None:
    layer, _ = bound_layer()
    mine = libmoe.Parameter(normal(3, 4), name="mine")
    optimizer = libmoe.SGD([*layer.parameters.values(), mine])
    layer.bind("router.weight", mine.data, np.zeros((3, 4), np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match="'router.weight'.*'mine'|'mine'.*'router.weight'"):
        optimizer.step()


def test_memory_of_the_layers_own_is_not_freed_under_an_optimiser() -> None:
    """It refuses, says what to do, and that works."""
    layer = libmoe.Layer(4, 8, 3, 2)
    optimizer = libmoe.SGD(layer.parameters)
    with pytest.raises(libmoe.BadStateError, match="make the optimiser afterwards"):
        layer.bind("router.weight", normal(3, 4))
    del optimizer
    gc.collect()
    layer.bind("router.weight", normal(3, 4))
    libmoe.SGD(layer.parameters).step()


def test_a_model_and_its_layers_know_of_each_other() -> None:
    """They are two ways to the same memory: what one binds, the other has."""
    model = libmoe.Model(4, 1, 2, vocabulary_size=5, moe=dict(n_experts=3, top_k=2, intermediate_size=8))
    (name,) = [name for name in model.parameters if name.endswith("router.weight")]
    optimizer = libmoe.SGD(model.parameters, learning_rate=1.0)
    in_use = re.escape("router.weight: its data is still in use")
    with pytest.raises(libmoe.BadStateError, match=in_use):
        model.layers[0].bind("router.weight", normal(3, 4))
    with pytest.raises(libmoe.BadStateError, match=in_use):
        model.bind(name, normal(3, 4))
    del optimizer
    gc.collect()
    first, second = normal(3, 4), normal(3, 4)
    model.layers[0].bind("router.weight", first)
    assert model.parameters[name].data is first
    optimizer = libmoe.SGD(model.parameters, learning_rate=1.0)
    model.bind(name, second)
    assert model.layers[0].parameters["router.weight"].data is second
    optimizer._parameters[list(model.parameters).index(name)].grad[...] = 1
    before = second.copy()
    optimizer.step()
    np.testing.assert_array_equal(second, before - 1)
