"""Rows that travel in pieces while others are computed: the bits of one process, also after faults."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from rank_soak import Cancellable
from ranked_layers import (
    GROUPS,
    Part,
    alone,
    divided,
    joined,
    plain,
    require_same,
    same,
    step,
    together,
    tokens,
)
from thread_ranks import NOT_BEGUN, NOT_ENDED, ThreadRanks

WIDE = plain(hidden_size=512, intermediate_size=24, n_experts=10)
MOST = 5
"""Pieces of rows at most; of the experts of a rank each has one at least."""


def exchanges(config: dict[str, Any], parts: list[int], **options: Any) -> int:
    """Return how many exchanges a rank makes in a step."""
    x, dy = tokens(sum(parts), config["hidden_size"])
    ranks = ThreadRanks(len(parts), patience=60)
    together(config, parts, partial(step, x=x, dy=dy, **options), ranks)
    return ranks.exchanges(0)


@pytest.mark.parametrize(
    ("experts", "parts", "pieces"),
    [
        (10, [750, 750], MOST),
        (10, [800, 0, 700], 4),
        (5, [750, 750], 3),
        (2, [750, 750], 1),
        (10, [40, 40], 1),
    ],
)
def test_rows_travel_in_pieces_where_they_are_many(experts: int, parts: list[int], pieces: int) -> None:
    """Rows of x and dy go there, outputs and dx come back; with a lean tape x goes twice."""
    wide = {**WIDE, "n_experts": experts}
    narrow = {**wide, "hidden_size": 8}
    for policy, moves in (("full", 4), ("lean", 5)):
        more = exchanges(wide, parts, tape_policy=policy) - exchanges(narrow, parts, tape_policy=policy)
        assert more == moves * (pieces - 1)


def test_rows_travel_while_others_are_computed() -> None:
    """On a link that takes its time, most of it passes unseen."""
    parts, rate = [750, 750], 1e8
    x, dy = tokens(1500, 512)
    ranks = ThreadRanks(2, patience=60)
    ranks.slow_down(rate)
    together({**WIDE, "intermediate_size": 512}, parts, partial(step, x=x, dy=dy), ranks)
    on_link = (ranks.bytes(0, 1) + ranks.bytes(1, 0)) / 2 / rate
    assert (ranks.slept(0) + ranks.slept(1)) / 2 < 0.4 * on_link


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"weight_dtype": "bf16", "expert_kind": "gated", "activation": "silu"},
    "bf16 tokens": {"io_dtype": "bf16"},
    "words": {"weight_on_input": True, "dropout": 0.3},
    "shared": {"n_shared_experts": 2, "shared_gate": "sigmoid", "output_bias": True},
    "linear": {"expert_kind": "linear", "intermediate_size": 512},
    "groups": {**GROUPS, "n_experts": 7, "experts_per_rank": [7, 0]},  # some pieces have two kinds
}


@pytest.mark.parametrize("policy", ["full", "lean"])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_change_no_bit(kind: str, policy: str) -> None:
    same({**WIDE, **KINDS[kind]}, [650, 850], tape_policy=policy, training=True)


@pytest.mark.parametrize("counts", [[10, 0, 0], [1, 9, 0], [2, 3, 5]], ids=str)
def test_pieces_of_any_division_of_experts(counts: list[int]) -> None:
    same({**WIDE, "experts_per_rank": counts}, [700, 0, 900])


def test_pieces_of_rows_that_are_uneven() -> None:
    """All tokens choose two experts of one rank, or most choose one."""
    numbers = np.random.default_rng(4)
    both = np.tile(np.array([[7, 8]], np.int32), (1500, 1))
    most = np.where(numbers.random((1500, 2)) < 0.9, 3, numbers.integers(-1, 10, (1500, 2))).astype(np.int32)
    for indices in (both, most):
        same(WIDE, [0, 1500], expert_indices=indices)


def test_chunks_have_pieces_of_their_own() -> None:
    same({**WIDE, "hidden_size": 1024, "n_shared_experts": 1}, [900, 700], chunk_tokens=768)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("matmul", ["native", "reference"])
def test_threads_and_products_change_no_bit_of_pieces(matmul: Any, threads: int) -> None:
    config = {**WIDE, "intermediate_size": 8}
    x, dy = tokens(1500, 512)
    use, divisions = partial(step, x=x, dy=dy), divided([650, 850])

    def one(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(threads, matmul=matmul) as context:
            layer = libmoe.Layer(**config, context=context, communicator=communicator)
            return use(layer, divisions[communicator.rank])

    with libmoe.Context(1, matmul=matmul) as context:
        wanted = use(libmoe.Layer(**config, context=context), Part(0, 1500))
    require_same(joined(ThreadRanks(2, patience=60).run(one)), wanted)


@pytest.mark.parametrize("prepared", ["bf16", "int8_a8", "int4_a8"])
def test_prepared_weights(prepared: Any) -> None:
    config = {**WIDE, "intermediate_size": 64, "expert_kind": "gated", "inference_only": True}
    x, _ = tokens(1500, 512)

    def use(layer: libmoe.Layer, part: Part) -> NDArray[Any]:
        layer.prepare(prepared)
        return layer(part.of(x))

    found = np.concatenate(together(config, [650, 850], use))
    np.testing.assert_array_equal(found.view(np.uint32), alone(config, 1500, use).view(np.uint32))


@pytest.mark.parametrize("poll", [*range(1, 30, 4), 40, 60])
@pytest.mark.parametrize("backward", [False, True])
def test_a_cancel_while_rows_travel_is_that_of_all_and_the_layer_goes_on(poll: int, backward: bool) -> None:
    """Every rank ends what has begun, so that the next call is right."""
    x, dy = tokens(1500, 512)
    divisions = divided([650, 850])

    def one(communicator: libmoe.Communicator) -> Any:
        part = divisions[communicator.rank]
        with Cancellable() as context:
            layer = libmoe.Layer(**WIDE, context=context, communicator=communicator)
            tape, said = layer.tape(), ""
            if backward:
                layer.forward(part.of(x), tape=tape)
            context.cancel_at(poll if communicator.rank == 1 else 0)
            try:
                if backward:
                    layer.backward(tape, part.of(dy))
                else:
                    layer.forward(part.of(x), tape=tape)
            except libmoe.MoeError as error:
                said = str(error)
            context.cancel_at(0)
            layer.zero_grad()
            return said, step(layer, part, x, dy)

    results = ThreadRanks(2, patience=60).run(one)
    said = {words for words, _ in results}
    assert len(said) == 1 and (said == {""} or "rank 1: cancelled" in said.pop())
    require_same(joined([made for _, made in results]), alone(WIDE, 1500, partial(step, x=x, dy=dy)))


@pytest.mark.parametrize("fault", [NOT_BEGUN, NOT_ENDED])
def test_a_transport_that_fails_while_rows_travel_ends_the_call_everywhere(fault: int) -> None:
    config = plain(hidden_size=2048, intermediate_size=8, n_experts=8)
    x, dy = tokens(300, 2048)
    divisions = divided([120, 180])

    def one(communicator: libmoe.Communicator) -> type | None:
        part = divisions[communicator.rank]
        with libmoe.Context(1) as context:
            layer = libmoe.Layer(**config, context=context, communicator=communicator)
            try:
                step(layer, part, x, dy)
            except libmoe.MoeError as error:
                return type(error)
        return None

    healthy = ThreadRanks(2, patience=60)
    assert healthy.run(one) == [None, None]
    for number in range(1, healthy.exchanges(1) + 1):
        ranks = ThreadRanks(2, patience=60)
        ranks.slow_down(2e8)
        ranks.fail(1, number, fault)
        found = ranks.run(one)
        assert found[1] is libmoe.CommunicationError
        assert found[0] in (None, libmoe.CommunicationError)
