"""Records of the experts that tokens used: made, replayed, saved and loaded."""

from __future__ import annotations

import gc
import re
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal

H, E, K = 6, 5, 2


def make_layer(**options: Any) -> libmoe.Layer:
    return libmoe.Layer(H, 7, E, K, **options)


def file_of(indices: NDArray[np.int32]) -> bytes:
    """Return the bytes of a record as the format has them: name, version, E, T, K, checksum, experts."""
    head = b"moeroute" + struct.pack("<4I", 1, E, *indices.shape)
    body = indices.astype("<i4").tobytes()
    checksum = 0xCBF29CE484222325  # FNV-1a
    for byte in head + body:
        checksum = (checksum ^ byte) * 0x100000001B3 % 2**64
    return head + struct.pack("<Q", checksum) + body


def chosen(*tokens: list[int]) -> NDArray[np.int32]:
    return np.array(tokens, np.int32)


def test_a_record_is_replayed_whatever_the_router_would_choose() -> None:
    layer, routing, x = make_layer(), libmoe.Routing(), normal(2, 4, H)
    first = layer.forward(x, record=routing)
    layer.parameters["router.weight"].data[...] *= -1
    fresh, again = layer.forward(x), layer.forward(x, replay=routing)
    assert not np.array_equal(fresh.report.expert_indices, first.report.expert_indices)
    np.testing.assert_array_equal(again.report.expert_indices, first.report.expert_indices)
    # The router of now weighs: softmax over the two logits, as scores divided by their sum are.
    logits = (
        x.reshape(-1, H) @ layer.parameters["router.weight"].data.T + layer.parameters["router.bias"].data
    )
    kept = np.exp(np.take_along_axis(logits, first.report.expert_indices, axis=1))
    np.testing.assert_allclose(again.report.expert_weights, kept / kept.sum(1, keepdims=True), rtol=1e-5)


def test_a_replayed_call_gives_the_same_bits_forwards_and_backwards() -> None:
    layer, routing, x, dy = make_layer(), libmoe.Routing(), normal(9, H), normal(9, H, seed=1)
    tape = layer.tape()
    y = layer.forward(x, tape=tape, record=routing).y
    dx = layer.backward(tape, dy)
    again = layer.forward(x, tape=tape, replay=routing).y
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(layer.backward(tape, dy), dx)


def test_the_saved_bytes_are_the_choices() -> None:
    layer, routing = make_layer(), libmoe.Routing()
    report = layer.forward(normal(9, H), record=routing).report
    assert routing.save() == file_of(report.expert_indices)
    report = layer.forward(normal(3, H), record=routing).report  # the latest call's alone
    assert routing.save() == file_of(report.expert_indices)


def test_saved_bytes_are_replayed_in_another_layer() -> None:
    indices = chosen([0, 4], [3, 1], [2, -1])
    routing = libmoe.Routing()
    routing.load(file_of(indices))
    report = make_layer(seed=3).forward(normal(3, H), replay=routing).report
    np.testing.assert_array_equal(report.expert_indices, indices)
    np.testing.assert_array_equal(report.tokens_per_expert, [1, 1, 1, 1, 1])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_load_takes_bytes_of_every_kind(kind: Any) -> None:
    saved = file_of(chosen([0, 4], [3, 1]))
    routing = libmoe.Routing()
    routing.load(kind(saved))
    assert routing.save() == saved


def test_an_empty_record_is_saved_and_loaded() -> None:
    routing, other = libmoe.Routing(), libmoe.Routing()
    empty = routing.save()
    assert len(empty) == 32
    other.load(file_of(chosen([0, 4])))
    other.load(empty)
    assert other.save() == empty


SAVED = file_of(chosen([0, 4], [3, 1]))


@pytest.mark.parametrize(
    ("damaged", "text"),
    [
        (b"", "memory"),
        (SAVED[:31], "size = 31"),
        (SAVED[:-1], "size = 47, but the routing in memory needs 48 bytes"),
        (b"x" + SAVED[1:], "memory: no saved routing begins here"),
        (SAVED[:-4] + b"\2\0\0\0", "memory: wrong checksum"),
        (file_of(chosen([0, 4], [3, 5])), "memory: expert 5 of token 1 is not one of 5"),
    ],
)
def test_bytes_that_are_no_record_change_nothing(damaged: bytes, text: str) -> None:
    routing = libmoe.Routing()
    routing.load(SAVED)
    with pytest.raises(libmoe.InvalidArgumentError, match=re.escape(text)):
        routing.load(damaged)
    assert routing.save() == SAVED


def test_a_record_of_another_call_is_refused() -> None:
    layer, routing = make_layer(), libmoe.Routing()
    layer.forward(normal(4, H), record=routing)
    with pytest.raises(libmoe.InvalidArgumentError, match="replay"):
        layer.forward(normal(5, H), replay=routing)
    with pytest.raises(libmoe.InvalidArgumentError, match="replay"):
        libmoe.Layer(H, 7, E, K + 1).forward(normal(4, H), replay=routing)
    with pytest.raises(libmoe.InvalidArgumentError, match="replay"):
        layer.forward(normal(4, H), replay=routing, expert_indices=np.zeros((4, K), np.int32))


def test_a_record_is_a_routing() -> None:
    layer: Any = make_layer()
    with pytest.raises(TypeError, match="^record: expected a libmoe.Routing, got Tape; "):
        layer.forward(normal(4, H), record=layer.tape())
    with pytest.raises(TypeError, match="^replay: expected a libmoe.Routing, got bytes; "):
        layer.forward(normal(4, H), replay=SAVED)


def test_a_closed_record_is_refused() -> None:
    routing = libmoe.Routing()
    routing.close()
    for call in (
        routing.save,
        lambda: routing.load(SAVED),
        lambda: make_layer().forward(normal(4, H), record=routing),
    ):
        with pytest.raises(libmoe.BadStateError, match="this Routing is closed"):
            call()


def test_a_record_outlives_its_context() -> None:
    context = libmoe.Context(1)
    routing = libmoe.Routing(context=context)
    context.close()
    del context
    gc.collect()
    routing.load(SAVED)
    assert routing.save() == SAVED
