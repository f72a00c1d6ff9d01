"""What one rank finds wrong ends the call on all ranks alike, and nobody waits for ever."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from libmoe._native import abi
from libmoe._native.library import lib
from ranked_layers import alone, divided, joined, plain, require_same, step, tokens
from thread_ranks import LOST, NOT_BEGUN, NOT_ENDED, ThreadRanks

Said = tuple[type, str]


def said(call: Callable[[], Any]) -> Said | None:
    """Return what a call raises."""
    try:
        call()
    except libmoe.MoeError as error:
        return type(error), str(error)
    return None


def layers(ranks: ThreadRanks, use: Callable[[libmoe.Layer], Any], **config: Any) -> list[Any]:
    """Make a layer on every rank and use it there."""

    def one(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(1) as context:
            return use(libmoe.Layer(**plain(**config), context=context, communicator=communicator))

    return ranks.run(one)


def test_an_error_of_one_rank_is_that_of_all_and_the_layer_goes_on() -> None:
    parts = [12, 5, 20]
    x, dy = tokens(37)
    bad = x.copy()
    bad[14] = np.nan
    divisions = divided(parts)
    config = plain()

    def one(communicator: libmoe.Communicator) -> Any:
        part = divisions[communicator.rank]
        with libmoe.Context(1) as context:
            layer = libmoe.Layer(**config, context=context, communicator=communicator)
            found = said(partial(step, layer, part, bad, dy))
            return found, step(layer, part, x, dy)

    results = ThreadRanks(3, patience=20).run(one)
    kinds = {found for found, _ in results}
    assert len(kinds) == 1
    kind, text = kinds.pop()
    assert kind is libmoe.NotFiniteError
    assert text.startswith("rank 1: x: token 2 gets a logit that is NaN")
    require_same(joined([made for _, made in results]), alone(config, 37, partial(step, x=x, dy=dy)))


def test_what_the_boundary_of_one_rank_refuses_ends_the_call_on_all() -> None:
    x, _ = tokens(4)

    def use(layer: libmoe.Layer) -> Any:
        indices = np.zeros((4, 2), np.int32)
        indices[3, 1] = 99 if layer._handle.keep["communicator"].rank == 2 else 1
        return said(lambda: layer.forward(x, expert_indices=indices))

    results = layers(ThreadRanks(3, patience=20), use)
    assert len(set(results)) == 1
    assert results[0][0] is libmoe.InvalidArgumentError
    assert results[0][1].startswith("rank 2: ") and "99" in results[0][1]


def test_ranks_with_other_layers_or_calls_are_told_so() -> None:
    x, dy = tokens(4)

    def other(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(1) as context:
            config = plain(seed=communicator.rank // 2)
            layer = libmoe.Layer(**config, context=context, communicator=communicator)
            return said(lambda: layer(x))

    found = set(ThreadRanks(3, patience=20).run(other))
    assert len(found) == 1
    assert "rank 2 makes another call than rank 0" in found.pop()[1]

    def steps(layer: libmoe.Layer) -> Any:
        rank = layer._handle.keep["communicator"].rank
        return said(lambda: layer.forward(x, training=True, step=rank))

    found = set(layers(ThreadRanks(2, patience=20), steps))
    assert len(found) == 1
    assert "rank 1 makes another call than rank 0" in found.pop()[1]

    def uneven(layer: libmoe.Layer) -> Any:
        rank = layer._handle.keep["communicator"].rank
        given = np.zeros((4, 2), np.int32) if rank else None
        return said(lambda: layer.forward(x, expert_indices=given))

    found = set(layers(ThreadRanks(2, patience=20), uneven))
    assert len(found) == 1
    assert "given on some ranks and" in found.pop()[1]


def test_backward_goes_back_from_the_same_forward_on_all_ranks() -> None:
    x, dy = tokens(6)

    def use(layer: libmoe.Layer) -> Any:
        first, second = layer.tape(), layer.tape()
        layer.forward(x, tape=first)
        layer.forward(x, tape=second)
        rank = layer._handle.keep["communicator"].rank
        return said(lambda: layer.backward(first if rank else second, dy))

    found = set(layers(ThreadRanks(2, patience=20), use))
    assert len(found) == 1
    assert "makes another call" in found.pop()[1]


@pytest.mark.parametrize("fault", [NOT_BEGUN, NOT_ENDED])
def test_a_transport_that_fails_anywhere_ends_the_call_everywhere(fault: int) -> None:
    x, dy = tokens(9)
    divisions = divided([5, 0, 4])

    def one(number: int, communicator: libmoe.Communicator) -> Any:
        part = divisions[communicator.rank]
        with libmoe.Context(1) as context:
            layer = libmoe.Layer(**plain(n_shared_experts=1), context=context, communicator=communicator)
            found = said(partial(step, layer, part, x, dy))
            return found, said(partial(step, layer, part, x, dy))

    healthy = ThreadRanks(3, patience=20)
    assert healthy.run(partial(one, 0)) == [(None, None)] * 3
    exchanges = healthy.exchanges(1)
    assert exchanges > 20
    for number in range(1, exchanges // 2 + 1):
        ranks = ThreadRanks(3, patience=20)
        ranks.fail(1, number, fault)
        for first, again in ranks.run(partial(one, number)):
            assert again is not None and again[0] is libmoe.CommunicationError
            assert first is None or first[0] is libmoe.CommunicationError


def test_a_rank_that_does_not_come_is_missed() -> None:
    x, _ = tokens(9)
    ranks = ThreadRanks(2, patience=1)
    ranks.fail(1, 2, LOST)
    for found in layers(ranks, lambda layer: said(lambda: layer(x))):
        assert found[0] is libmoe.CommunicationError


def by_hand(communicator: libmoe.Communicator, x: NDArray[np.float32], **fields: Any) -> Said | None:
    """Return what a forward and a backward in a context with these fields say."""
    config = abi.moe_context_config(n_threads=1, **fields)
    context, layer, tape = (ctypes.POINTER(kind)() for kind in (abi.moe_context, abi.moe_layer, abi.moe_tape))
    y, dx = np.zeros_like(x), np.zeros_like(x)
    lib.moe_context_create(ctypes.byref(config), ctypes.byref(context))
    layer_config = abi.moe_layer_config(**plain())
    struct = ctypes.byref(communicator._struct)
    lib.moe_layer_create_distributed(context, ctypes.byref(layer_config), struct, None, ctypes.byref(layer))
    lib.moe_tape_create(layer, ctypes.byref(tape))

    def call() -> None:
        lib.moe_layer_forward(layer, x.ctypes.data, len(x), None, y.ctypes.data, tape, None)
        lib.moe_layer_backward(layer, tape, x.ctypes.data, x.ctypes.data, 1.0, dx.ctypes.data, None)

    try:
        return said(call)
    finally:
        lib.moe_tape_free(tape)
        lib.moe_layer_free(layer)
        lib.moe_context_free(context)


@pytest.mark.parametrize("asked", [1, 2, 5, 9, 14, 20])
def test_cancelling_one_rank_cancels_all(asked: int) -> None:
    x, _ = tokens(9)

    def one(communicator: libmoe.Communicator) -> Any:
        count = [0]

        def cancel(_: Any) -> int:
            count[0] += 1
            return int(communicator.rank == 1 and count[0] >= asked)

        return by_hand(communicator, x, cancel=abi.moe_context_config_cancel(cancel))

    found = set(ThreadRanks(3, patience=20).run(one))
    assert len(found) == 1
    assert "rank 1: cancelled by the context's cancel callback" in found.pop()[1]


def test_memory_that_one_rank_has_not_got_ends_the_call_on_all() -> None:
    x, _ = tokens(9)
    libc = ctypes.CDLL(None)
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes = [ctypes.c_size_t] * 2
    libc.free.argtypes = [ctypes.c_void_p]

    def one(refused: int, communicator: libmoe.Communicator) -> Any:
        count = [0]

        def alloc(_: Any, size: int, alignment: int) -> Any:
            count[0] += 1
            if communicator.rank == 1 and count[0] == refused:
                return None
            return libc.aligned_alloc(alignment, -(-size // alignment) * alignment)

        fields = {
            "alloc": abi.moe_context_config_alloc(alloc),
            "dealloc": abi.moe_context_config_dealloc(lambda _, memory: libc.free(memory)),
        }
        try:
            return by_hand(communicator, x, **fields), count[0]
        except libmoe.OutOfMemoryError:
            return None, count[0]

    whole = ThreadRanks(2, patience=20).run(partial(one, 0))
    assert [found for found, _ in whole] == [None, None]
    made = 0
    for refused in range(whole[1][1], 0, -1):
        ranks = ThreadRanks(2, patience=1)
        try:
            (first, _), (second, count) = ranks.run(partial(one, refused))
        except libmoe.MoeError:
            break
        if second is None or count < refused:
            break  # the layer itself could not be made, of which the others know nothing
        assert first == second and second[0] is libmoe.OutOfMemoryError and second[1].startswith("rank 1: ")
        made += 1
    assert made >= 4
