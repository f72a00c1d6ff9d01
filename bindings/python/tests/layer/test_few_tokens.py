"""Few tokens are multiplied in other ways than many: their bits are those of the others."""

from __future__ import annotations

from typing import Any

import pytest

import libmoe
from arrays import normal
from comparison import assert_same_bits

HIDDEN = 1100  # more than one piece of a panel, in bfloat16 too, and no whole chunks


def layer_of(dtype: Any, threads: int) -> libmoe.Layer:
    return libmoe.Layer(
        HIDDEN,
        70,
        80,
        2,
        expert_kind="gated",
        activation="silu",
        weight_dtype=dtype,
        seed=5,
        context=libmoe.Context(threads),
    )


@pytest.mark.parametrize("tokens", [1, 2, 16])  # 80 * 1100 * 2 products are enough to be shared out
def test_threads_that_share_the_gate_of_few_tokens_change_no_bit(tokens: int) -> None:
    x = normal(tokens, HIDDEN)
    alone, shared = (layer_of("f32", threads).forward(x) for threads in (1, 2))
    assert_same_bits(shared.y, alone.y)
    assert_same_bits(shared.report.mean_probability, alone.report.mean_probability)
    many = layer_of("f32", 2).forward(normal(600, HIDDEN))  # blocks of tokens, each with one thread
    first = layer_of("f32", 2).forward(normal(600, HIDDEN)[:tokens])
    assert_same_bits(many.y[:tokens], first.y)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    "tokens", [1, 6, 7, 14, 15]
)  # rows of one tile that fetch nothing, or do; and two tiles
def test_packed_panels_that_one_tile_reads_have_the_bits_of_weights_as_they_lie(
    dtype: Any, tokens: int
) -> None:
    layer = libmoe.Layer(
        HIDDEN, 70, 2, 2, expert_kind="gated", activation="silu", weight_dtype=dtype, seed=5
    )  # both experts have all tokens
    x = normal(tokens, HIDDEN)
    plain = layer(x)
    layer.prepare(dtype)
    assert_same_bits(layer(x), plain)
