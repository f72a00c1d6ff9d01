"""What a query does not see does not reach it, a NaN neither: 0 times it would be no number."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from against_oracle import inputs, unsettle
from attention_calls import Inputs, arrays, everything, options
from comparison import assert_close, gradients_of
from masked_layers import LAYERS, MASK, PLACES, SIZES, H, T

SHAPES = [(2, 37, 300, 4, 2, 40), (1, 300, 300, 2, 1, 64), (2, 3, 70, 3, 3, 5), (1, 200, 33, 2, 2, 16)]
MASKS = ["causal", "boolean", "added", "padding", "all"]
WAYS: list[dict[str, Any]] = [
    {"n_threads": 2},
    {"n_threads": 7, "instructions": "avx2"},
    {"n_threads": 1, "matmul": "reference"},
]
ODD = [np.nan, np.inf, -np.inf]
Seen = NDArray[np.bool_]  # [B,S,U]


def seen_of(given: dict[str, Any], shape: tuple[int, ...]) -> Seen:
    b, s, u, *_ = shape
    seen = np.ones((b, s, u), bool)
    if given.get("causal"):
        seen &= np.tri(s, u, u - s, dtype=bool)
    if "mask" in given:
        seen &= given["mask"]
    if "added_mask" in given:
        seen &= given["added_mask"] != -np.inf
    if "valid_mask" in given:
        seen &= given["valid_mask"][:, None, :]
    return seen


def none(of: Seen, axis: int) -> Seen:
    return np.asarray(np.logical_not(of.any(axis=axis)))


def compare(
    shape: tuple[int, ...], given: dict[str, Any], usual: Inputs, odd: Inputs, queries: Seen, keys: Seen
) -> None:
    """The same bits for the queries [B,S] and the keys [B,U] that have nothing to do with what is odd."""
    for way, compute_dtype in itertools.product(WAYS, ("f32", "bf16")):
        own = {**given, "compute_dtype": compute_dtype}
        with libmoe.Context(**way) as context, np.errstate(invalid="ignore"):
            expected, found = everything(usual, context, own), everything(odd, context, own)
        for name, rows in (("output", queries), ("dquery", queries), ("dkey", keys), ("dvalue", keys)):
            np.testing.assert_array_equal(found[name][rows], expected[name][rows], f"{name} {own} {way}")


def changed(values: NDArray[np.float32], rows: Seen, odd: float) -> NDArray[np.float32]:
    """Odd in some features of the rows [B,n], so that infinities do not cancel."""
    other = values.copy()
    other[rows] = np.where(np.arange(values.shape[-1]) % 3 == 0, odd, other[rows]).astype(np.float32)
    return other


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_that_some_queries_do_not_see(
    shape: tuple[int, ...], mask: str, odd: float, dropout: float
) -> None:
    given = {**options(mask, shape), "dropout": dropout}
    query, key, value, doutput = arrays(shape)
    seen = seen_of(given, shape)
    b, _, u, *_ = shape
    rows = np.zeros((b, u), bool)
    rows[:, [u - 1, u // 2] if mask in ("boolean", "added", "all") else [u - 1]] = True
    queries = none(seen & rows[:, None, :], 2)  # that see none of them
    keys = none(seen & ~queries[:, :, None], 1)  # that none of the others sees
    assert queries.any() or mask == "padding" or shape[1] == 3
    compare(
        shape,
        given,
        (query, key, value, doutput),
        (query, key, changed(value, rows, odd), doutput),
        queries,
        keys,
    )


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("mask", ["boolean", "added", "padding", "all"])
@pytest.mark.parametrize("shape", SHAPES)
def test_keys_that_no_query_sees(shape: tuple[int, ...], mask: str, odd: float) -> None:
    given = options(mask, shape)
    b, _, u, *_ = shape
    hidden = np.array([u // 5, u // 2])
    if "mask" in given:
        given["mask"][:, hidden] = False
    elif "added_mask" in given:
        given["added_mask"][:, hidden] = -np.inf
    else:
        given["valid_mask"][:, hidden] = False
    rows = none(seen_of(given, shape), 1)
    assert rows[:, hidden].all()
    query, key, value, doutput = arrays(shape)
    everybody = np.ones(query.shape[:2], bool), np.ones((b, u), bool)
    other = (query, changed(key, rows, odd), changed(value, rows, odd), doutput)
    compare(shape, given, (query, key, value, doutput), other, *everybody)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("shape", [(2, 37, 300, 4, 2, 40), (1, 200, 33, 2, 2, 16), (2, 3, 70, 3, 3, 5)])
@pytest.mark.parametrize("mask", ["causal", "boolean", "added", "all"])
def test_queries_that_see_no_key(mask: str, shape: tuple[int, ...], odd: float) -> None:
    given = options(mask, shape)
    if "added_mask" in given:
        given["added_mask"][shape[1] // 2] = -np.inf
    rows = none(seen_of(given, shape), 2)
    if not rows.any():
        assert mask == "causal" and shape[1] <= shape[2]
        return
    query, key, value, doutput = arrays(shape)
    everybody = np.ones(query.shape[:2], bool), np.ones(key.shape[:2], bool)
    other = (changed(query, rows, odd), key, value, changed(doutput, rows, odd))
    compare(shape, given, (query, key, value, doutput), other, *everybody)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradients_that_come_from_some_queries(shape: tuple[int, ...], mask: str, odd: float) -> None:
    given = options(mask, shape)
    query, key, value, doutput = arrays(shape)
    rows = np.zeros(query.shape[:2], bool)
    rows[:, shape[1] // 3] = True
    keys = none(seen_of(given, shape) & rows[:, :, None], 1)
    compare(
        shape,
        given,
        (query, key, value, doutput),
        (query, key, value, changed(doutput, rows, odd)),
        ~rows,
        keys,
    )


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("shape", [(1, 60, 60, 2, 1, 16), (2, 5, 130, 2, 2, 40)])
def test_an_infinite_key_that_weighs_nothing(shape: tuple[int, ...], odd: float) -> None:
    # Seen by the last query alone, to which it is infinitely little: no other query's gradient may meet it.
    if np.isnan(odd):
        return
    query, key, value, doutput = arrays(shape)
    query[:, -1, :, 0] = -1 if odd > 0 else 1
    usual = key.copy()
    usual[:, -1] = 0
    other = usual.copy()
    other[:, -1, :, 0] = odd
    queries = np.ones(query.shape[:2], bool)
    queries[:, -1] = False
    keys = np.zeros(key.shape[:2], bool)
    given = {"causal": True}
    compare(shape, given, (query, usual, value, doutput), (query, other, value, doutput), queries, keys)


CALLS = {**{name: (a, b, {**c, "sequence_length": T}) for name, (a, b, c) in LAYERS.items()}}
CALLS |= {name: (a, {}, {**c, "sequence_length": 8}) for name, (a, c) in PLACES.items()}


@pytest.mark.parametrize("policy", ["full", "lean"])
@pytest.mark.parametrize("matmul", ["native", "reference", "openblas"])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("name", CALLS)
def test_padding_of_a_layer_that_is_not_finite(name: str, odd: float, matmul: Any, policy: Any) -> None:
    arguments, by_token, call = CALLS[name]
    results: list[dict[str, Any]] = []
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        for value in (0.5, odd):
            layer = libmoe.Layer(**{**SIZES, **arguments}, context=context)
            unsettle(layer)
            x, dy = inputs(T, H)
            x[~MASK] = dy[~MASK] = value
            tape = layer.tape()
            output = layer.forward(x, tape=tape, valid_mask=MASK, tape_policy=policy, **by_token, **call)
            dx = layer.backward(tape, dy)
            report: dict[str, Any] = {"y": output.y, "aux": np.float64(output.report.aux_loss)}
            report["mean_probability"] = output.report.mean_probability
            report["entropy"] = np.float64(output.report.entropy)
            results.append(report | gradients_of(layer, dx) | layer.buffers)
        for key, expected in results[0].items():
            if matmul == "openblas":  # whose bits depend on how many rows it gets at once
                assert_close(key, results[1][key], expected)
            else:
                np.testing.assert_array_equal(results[1][key], expected, key)


@pytest.mark.parametrize("matmul", ["native", "reference", "openblas"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"router_weights": "topk_softmax"},
        {"score": "sigmoid"},
        {"losses": {"switch": 0.3, "z": 0.2}},
        {"noise": "learned"},
        {"router_batch_norm": True},
    ],
)
def test_a_router_weight_of_minus_infinity(arguments: dict[str, Any], matmul: Any) -> None:
    """An expert whose logits are minus infinity passes nothing on, as one whose bias says so."""
    x, dy = inputs(T, H)
    x = np.abs(x) + np.float32(0.1)
    results: list[dict[str, Any]] = []
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        for by_bias in (True, False):
            layer = libmoe.Layer(**{**SIZES, **arguments}, context=context)
            unsettle(layer)
            if "router_batch_norm" in arguments:  # what the gate reads stays above 0
                layer.parameters["router.norm.weight"].data[...] = 0.1
                layer.parameters["router.norm.bias"].data[...] = 2
            layer.parameters["router.weight"].data[3] = 0 if by_bias else -np.inf
            if by_bias:
                layer.parameters["router.bias"].data[3] = -np.inf
            tape = layer.tape()
            y = layer.forward(x, tape=tape).y
            results.append({"y": y, **gradients_of(layer, layer.backward(tape, dy))})
    for key, expected in results[0].items():
        assert np.isfinite(expected).all(), key
        np.testing.assert_allclose(results[1][key], expected, rtol=1e-6, atol=1e-7, err_msg=key)
