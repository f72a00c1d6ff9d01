"""Who frees what, and when: close, `with`, garbage, in any order."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import pkgutil
import weakref
from pathlib import Path

import numpy as np
import pytest

import libmoe
from arrays import normal

H = 8


def make_layer(context: libmoe.Context | None = None) -> libmoe.Layer:
    return libmoe.Layer(H, 16, 4, 2, context=context)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_with_closes() -> None:
    with libmoe.Context(1) as context, make_layer(context) as layer, layer.tape() as tape:
        layer.forward(normal(3, H), tape=tape)
    with pytest.raises(libmoe.BadStateError, match="this Layer is closed"):
        layer(normal(3, H))
    with pytest.raises(libmoe.BadStateError, match="this Context is closed"):
        make_layer(context)
    layer.close()  # a second time does nothing


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_closing_in_any_order(order: tuple[int, ...]) -> None:
    context = libmoe.Context(2)
    layer = make_layer(context)
    objects = [context, layer, layer.tape(), libmoe.AdamW(layer.parameters, context=context)]
    for position, index in enumerate(order):
        objects[index].close()
        if objects.index(layer) not in order[: position + 1]:
            layer(normal(3, H))


def test_no_class_has_a_finalizer_of_its_own() -> None:
    """``__del__`` would run in any order and at exit; ``weakref.finalize`` frees instead."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(libmoe.__path__, "libmoe.")
        if module.name
        not in ("libmoe.mpi", "libmoe.torch", "libmoe.transformers")  # which want more than numpy
    ]
    classes = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    assert libmoe.Layer in classes
    assert [kind for kind in classes if hasattr(kind, "__del__")] == []


def test_a_closed_tape_lets_go_of_x() -> None:
    layer, x = make_layer(), normal(3, H)
    with layer.tape() as tape:
        layer.forward(x, tape=tape)
        held = weakref.ref(x)
        del x
        assert held() is not None
    assert held() is None
    with pytest.raises(libmoe.BadStateError, match="this Tape is closed"):
        layer.backward(tape, normal(3, H))


def test_a_layer_outlives_its_context_and_the_log() -> None:
    lines: list[str] = []
    context = libmoe.Context(1, log=lambda level, line: lines.append(line))
    layer = make_layer(context)
    y = layer(normal(3, H))
    context.close()
    del context
    gc.collect()
    np.testing.assert_array_equal(layer(normal(3, H)), y)


def test_arrays_outlive_their_layer() -> None:
    layer = make_layer()
    expected = layer.state_dict()["router.weight"]
    row = layer.parameters["router.weight"].data[1]
    optimizer = libmoe.SGD(layer.parameters, learning_rate=1.0)
    layer.parameters["router.weight"].grad[...] = 1
    layer.close()
    del layer
    gc.collect()
    optimizer.step()  # the optimiser holds the parameters
    np.testing.assert_array_equal(row, expected[1] - 1)


def test_a_layer_holds_the_arrays_bound_to_it() -> None:
    layer = make_layer()
    layer.bind("router.bias", np.zeros(4, np.float32))
    gc.collect()
    layer.parameters["router.bias"].data[...] = [9, 0, 0, 0]
    assert layer.forward(normal(50, H)).report.tokens_per_expert[0] == 50


def test_the_tape_holds_x() -> None:
    layer = make_layer()
    tape, other = layer.tape(), layer.tape()
    x = normal(3, H)
    layer.forward(x, tape=tape)
    layer.forward(normal(3, H), tape=other)  # nobody else holds this one
    gc.collect()
    np.testing.assert_array_equal(layer.backward(other, x), layer.backward(tape, x))


def test_memory_is_given_back() -> None:
    """Without close, as most programs are written; a layer that leaked would leave 2,000 times 200 KB."""
    x = normal(64, 32)

    def one_life(context: libmoe.Context) -> None:
        layer = libmoe.Layer(32, 96, 4, 2, context=context)
        tape, optimizer = layer.tape(), libmoe.AdamW(layer.parameters, context=context)
        layer.forward(x, tape=tape)
        layer.backward(tape, x)
        optimizer.step()

    def lives(count: int) -> None:
        for _ in range(count):
            one_life(libmoe.Context(1))

    lives(200)
    before = resident_bytes()
    lives(2000)
    assert resident_bytes() - before < 4_000_000


def test_the_default_context_is_shared_until_it_is_closed() -> None:
    context = libmoe.default_context()
    assert libmoe.default_context() is context
    context.close()
    assert libmoe.default_context() is not context
    make_layer()(normal(3, H))
