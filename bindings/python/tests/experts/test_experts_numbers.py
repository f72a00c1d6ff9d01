"""Experts by call against float64, and against a layer bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import libmoe
from comparison import assert_all_close, assert_close
from expert_calls import KINDS, LAYOUTS, Case, assert_same, floats, stored

# bfloat16 rounds sums of float32 where the oracle rounds exact ones: now and then to the number beside.
TOLERANCE = {"f32": 1e-5, "f16": 1e-5, "bf16": 4e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_float64(kind: str, layout: str, dtype: str) -> None:
    case = Case(**KINDS[kind], dtype=dtype)
    assert_all_close(case.by_call(layout), case.in_float64(), TOLERANCE[dtype])


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {"T": 0},
        {"T": 1, "K": 1},
        {"T": 3, "K": 7},  # more choices than experts
        {"T": 900, "H": 65, "I": 33, "E": 3},  # more rows than are gathered at once
        {"H": 1, "I": 1},
        {"E": 1},
        {"H": 301, "I": 70, "T": 20},
    ],
    ids=str,
)
def test_sizes(sizes: dict[str, Any], saves: bool) -> None:
    case = Case(**KINDS["gpt-oss"], **sizes)
    for layout in ("fused", "interleaved"):
        assert_all_close(case.by_call(layout, saves=saves), case.in_float64())


@pytest.mark.parametrize("kind", ["swiglu", "gelu with biases", "linear"])
def test_weights_on_what_experts_read(kind: str) -> None:
    case = Case(**KINDS[kind], weight_on_input=True)
    assert_all_close(case.by_call("transposed"), case.in_float64())


@pytest.mark.parametrize(
    ("matmul", "instructions", "n_threads"),
    [("native", "all", 2), ("native", "avx2", 1), ("reference", "base", 2), ("openblas", "all", 1)],
)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_a_layer(kind: str, dtype: str, matmul: Any, instructions: Any, n_threads: int) -> None:
    context = libmoe.Context(n_threads, matmul, instructions=instructions)
    calls: list[dict[str, Any]] = [{}, {"T": 3}, {"T": 300, "E": 2, "K": 2}]
    for sizes in calls:
        case = Case(**KINDS[kind], dtype=dtype, **sizes)
        of_layer = case.by_layer(context)
        for layout in ("apart", "fused", "interleaved", "gaps", "listed and transposed"):
            assert_same(case.by_call(layout, saves=layout != "gaps", context=context), of_layer)


@pytest.mark.parametrize("kind", ["identity", "zero", "constant"])
def test_experts_without_matrices(kind: Any) -> None:
    case = Case(E=3, H=9)
    x, dy, w = (each.astype(np.float64) for each in (case.x, case.dy, case.weights))
    vectors = np.random.default_rng(1).standard_normal((3, 9)).astype(np.float32)
    if kind == "constant":
        weights = libmoe.ExpertWeights(constant=vectors)
        rows = np.where(case.known[..., None] < 0, 0, vectors[case.known].astype(np.float64))
    else:
        weights = libmoe.ExpertWeights(kind=kind, n_experts=3, hidden_size=9)
        rows = np.where(case.known[..., None] < 0, 0, x[:, None] if kind == "identity" else 0 * x[:, None])
    call = (case.x, case.indices, case.weights, weights)
    out = libmoe.experts_forward(*call, saved=True, rows=True)
    assert_close("y", out.y, (w[..., None] * rows).sum(axis=1))
    assert_close("rows", out.rows, np.broadcast_to(rows, out.rows.shape))
    gradient = np.full_like(vectors, np.nan)
    wanted = libmoe.ExpertGradients(constant=gradient) if kind == "constant" else None
    dx, dw = libmoe.experts_backward(
        dy.astype(np.float32), *call, saved=out.saved, gradients=wanted, overwrite=True
    )
    chosen = case.known >= 0
    assert_close("dw", dw, (dy[:, None] * rows).sum(axis=2) * chosen)
    assert_close("dx", dx, dy * (w * chosen).sum(axis=1, keepdims=True) if kind == "identity" else 0 * dy)
    if kind == "constant":
        expected = np.stack(
            [((w * (case.known == e)).sum(axis=1)[:, None] * dy).sum(axis=0) for e in range(3)]
        )
        assert_close("d constant", gradient, expected)


def test_bfloat16_tokens_and_routing_weights() -> None:
    case = Case(**KINDS["swiglu"])
    case.x, case.dy, case.weights = (
        floats(stored(v, "bf16"), "bf16") for v in (case.x, case.dy, case.weights)
    )
    weights, truth = case.weights_in("fused"), case.in_float64()
    x, dy, w = (stored(v, "bf16") for v in (case.x, case.dy, case.weights))
    named = x.view(ml_dtypes.bfloat16)
    out = libmoe.experts_forward(named, case.known, w, weights, saved=True, rows=True)
    assert out.y.dtype == out.rows.dtype == ml_dtypes.bfloat16
    dx, dw = libmoe.experts_backward(
        dy.view(ml_dtypes.bfloat16), named, case.indices, w, weights, saved=out.saved
    )
    # The float32 results, rounded once.
    plain = case.by_call("fused")
    for name, found in {"y": out.y, "rows": out.rows, "dx": dx}.items():
        np.testing.assert_array_equal(found.view(np.uint16), libmoe.to_bfloat16(plain[name]), err_msg=name)
    np.testing.assert_array_equal(dw, libmoe.to_bfloat16(plain["dw"]))
    assert_close("dw", floats(dw, "bf16"), truth["dw"], 2**-8)


@pytest.mark.parametrize("kind", ["gpt-oss", "gelu with biases"])
def test_biases_in_bfloat16(kind: str) -> None:
    case = Case(**KINDS[kind])
    biases = {name: "bf16" for name in case.values if "bias" in name}
    for name in biases:
        case.values[name] = floats(stored(case.values[name], "bf16"), "bf16")
    weights = case.place("interleaved", case.values, biases).weights
    out = libmoe.experts_forward(case.x, case.indices, case.weights, weights, **case.options)
    assert_same({"y": out.y}, case.by_layer())
