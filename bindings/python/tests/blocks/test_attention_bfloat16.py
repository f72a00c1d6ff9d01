"""Attention that rounds what it multiplies to bfloat16: against float64, and the same bits by every way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
from attention_calls import MASKS, Floats, Inputs, arrays, everything, options
from comparison import assert_close, assert_same_bits
from oracle.attention import Attention

# B, S, U, heads, key heads, D, and Dv where it is another; odd numbers end in half a pair
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 7, 7, 3, 3, 5),
    (2, 33, 300, 4, 2, 80),
    (2, 300, 33, 4, 1, 5),
    (3, 1, 129, 2, 2, 64),
    (1, 97, 257, 6, 3, 32),
    (1, 3, 140, 2, 1, 5, 70),
    (1, 140, 271, 3, 1, 33, 1),
]


def halved(array: Floats) -> Floats:
    return libmoe.from_bfloat16(libmoe.to_bfloat16(array))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape: tuple[int, ...], mask: str) -> None:
    # The float64 one gets rounded arrays; weights and gradients of scores are rounded by libmoe alone.
    given = {**options(mask, shape), "dropout": 0.2, "seed": 3, "step": 5, "compute_dtype": "bf16"}
    inputs = arrays(shape)
    found = everything(inputs, None, given)
    query, key, value, doutput = map(halved, inputs)
    expected = Attention(query, key, value, given)
    seen = ~np.isinf(expected.log_sums)
    assert_close("log_sums", found["log_sums"][seen], expected.log_sums[seen])
    assert_close("output", found["output"], expected.output, 2**-8)
    for name, gradient in zip(("dquery", "dkey", "dvalue"), expected.backward(doutput)):  # noqa: B905
        size = np.abs(gradient).max() if name == "dvalue" else expected.terms
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=2**-6 * max(size, 1e-30), err_msg=name)


@pytest.mark.parametrize("mask", ["none", "all", "places"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(2, 300, 300, 4, 2, 40), (2, 5, 9, 3, 3, 7), (1, 141, 270, 4, 2, 40, 72)])
def test_same_bits(shape: tuple[int, ...], mask: str, dropout: float) -> None:
    # Where one instruction multiplies pairs bits are its own; elsewhere those of chains over rounded numbers.
    given = {**options(mask, shape), "dropout": dropout, "seed": 1, "compute_dtype": "bf16"}
    inputs = arrays(shape)
    pairs: list[dict[str, Any]] = [{"n_threads": n} for n in (1, 2, 3, 7)]
    chains: list[dict[str, Any]] = [{"n_threads": n, "instructions": "avx512"} for n in (1, 2, 3, 7)]
    chains += [{"n_threads": 1, "instructions": "avx2"}]
    chains += [{"n_threads": n, "matmul": "reference"} for n in (1, 5)]
    one, other = of_ways(pairs, inputs, given), of_ways(chains, inputs, given)
    # They differ by the order of sums alone, and by what then is rounded to the other side.
    for name, array in one.items():
        finite = np.isfinite(array)
        assert_close(name, other[name][finite], array[finite], 1e-3)


def of_ways(ways: list[dict[str, Any]], inputs: Inputs, given: dict[str, Any]) -> dict[str, Floats]:
    """What all of them give, to the bit."""
    first: dict[str, Floats] = {}
    for way in ways:
        with libmoe.Context(**way) as context:
            found = everything(inputs, context, given)
        first = first or found
        for name, array in first.items():
            assert_same_bits(found[name], array, f"{name} {way}")
    return first


def test_openblas_rounds_too() -> None:
    shape = (2, 50, 150, 4, 2, 40)
    inputs, given = arrays(shape), {**options("all", shape), "compute_dtype": "bf16"}
    expected = everything(inputs, None, given)
    ways: list[dict[str, Any]] = [{"matmul": "openblas"}, {"instructions": "base", "matmul": "openblas"}]
    for way in ways:
        with libmoe.Context(**way) as context:
            found = everything(inputs, context, given)
        for name, array in expected.items():
            finite = np.isfinite(array)
            assert_close(name, found[name][finite], array[finite], 1e-3)


def test_finite_differences() -> None:
    # Steps that are large beside what rounding moves; the slope is right to what it is made of.
    shape = (1, 6, 9, 2, 1, 4)
    query, key, value, doutput = arrays(shape)
    given: dict[str, Any] = {"causal": True, "compute_dtype": "bf16"}
    found = everything((query, key, value, doutput), None, given)
    for array, name in ((query, "dquery"), (key, "dkey"), (value, "dvalue")):
        direction = np.random.default_rng(3).standard_normal(array.shape).astype(np.float32)

        def loss(step: float, array: Floats = array, direction: Floats = direction) -> float:
            moved = [a + np.float32(step) * direction if a is array else a for a in (query, key, value)]
            output, _ = libmoe.blocks.attention(moved[0], moved[1], moved[2], **given)
            return float((output.astype(np.float64) * doutput).sum())

        slope = (loss(0.125) - loss(-0.125)) / 0.25
        assert_close(name, slope, (found[name].astype(np.float64) * direction).sum(), 0.1)
