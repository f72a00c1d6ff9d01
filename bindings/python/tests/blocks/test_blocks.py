"""Norms and products with a matrix against float64, and the same bits however they are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from block_checks import SAME, Arrays, Double, check, rounded
from comparison import assert_close
from libmoe import blocks, words

SAME += [{"n_threads": n, "instructions": "avx2"} for n in (1, 3)]
SAME += [{"n_threads": 2, "instructions": "avx2", "matmul": "reference"}]


# ---- norms -----------------------------------------------------------------------------------------------


class Norm:
    """In float64."""

    def __init__(self, x: Any, weight: Any, bias: Any, kind: words.Norm, epsilon: float) -> None:
        x = x.astype(np.float64)
        self.mean = x.mean(axis=1, keepdims=True) if kind == "layer" else np.zeros((len(x), 1))
        self.root = np.sqrt(((x - self.mean) ** 2).mean(axis=1, keepdims=True) + epsilon)
        self.normalized = (x - self.mean) / self.root
        self.weight, self.layer = weight.astype(np.float64), kind == "layer"
        self.y = self.normalized * self.weight + (0 if bias is None else bias)

    def backward(self, dy: Any) -> tuple[Double, Double, Double]:
        dy = dy.astype(np.float64)
        g, n = dy * self.weight, self.normalized
        dx = g - n * (g * n).mean(axis=1, keepdims=True)
        if self.layer:
            dx = dx - g.mean(axis=1, keepdims=True)
        return dx / self.root, (dy * n).sum(axis=0), dy.sum(axis=0)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("tokens", "width"), [(0, 5), (1, 1), (1, 33), (300, 67), (300, 256), (7, 1000)])
def test_norm(kind: words.Norm, tokens: int, width: int) -> None:
    x, dy = normal(tokens, width) + np.float32(0.5), normal(tokens, width, seed=1)
    weight = normal(width, seed=2) / np.float32(4) + np.float32(1)
    bias = normal(width, seed=3) if kind == "layer" else None
    exact = Norm(x, weight, bias, kind, 1e-2)
    dx, dweight, dbias = exact.backward(dy)
    statistics = np.concatenate([exact.mean, 1 / exact.root], axis=1)
    expected = {"y": exact.y, "statistics": statistics, "dx": dx, "dweight": 1 + dweight}
    if bias is not None:
        expected["dbias"] = 2 + dbias

    def compute(context: libmoe.Context) -> Arrays:
        y, statistics = blocks.norm(x, weight, bias, kind=kind, epsilon=1e-2, context=context)
        into = {"dweight": np.ones(width, np.float32)}
        if bias is not None:
            into["dbias"] = np.full(width, 2, np.float32)
        dx = blocks.norm_backward(x, weight, statistics, dy, kind=kind, context=context, **into)
        return {"y": y, "statistics": statistics, "dx": dx, **into}

    check(compute, expected)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_gradients_by_finite_differences(kind: words.Norm) -> None:
    x, dy, direction = normal(3, 11), normal(3, 11, seed=1), normal(3, 11, seed=2)
    weight = normal(11, seed=3)
    y, statistics = blocks.norm(x, weight, kind=kind)
    dx = blocks.norm_backward(x, weight, statistics, dy, kind=kind)

    def loss(step: float) -> float:
        return float((Norm(x + step * direction.astype(np.float64), weight, None, kind, 1e-5).y * dy).sum())

    assert_close("slope", (dx * direction).sum(), (loss(1e-5) - loss(-1e-5)) / 2e-5, 1e-5)


def test_layer_norm_of_rows_far_from_0() -> None:
    """The variance is that around the mean: nothing cancels."""
    x = normal(20, 300) + np.float32(1000)
    weight = np.ones(300, np.float32)
    y, _ = blocks.norm(x, weight, kind="layer")
    assert_close("y", y, Norm(x, weight, None, "layer", 1e-5).y, 2e-4)  # 1000 has 2^-14 behind the point


def test_bad_norms() -> None:
    x, weight = normal(2, 3), normal(3)
    with pytest.raises(libmoe.InvalidArgumentError, match="bias is not None, but norm = 'rms'"):
        blocks.norm(x, weight, weight.copy(), kind="rms")
    for epsilon in (0.0, -1.0, float("nan"), float("inf"), 1e-50):
        with pytest.raises(libmoe.InvalidArgumentError, match="epsilon = "):
            blocks.norm(x, weight, epsilon=epsilon)
    with pytest.raises(libmoe.InvalidArgumentError, match="hidden_size = 0 is below 1"):
        blocks.norm(np.empty((2, 0), np.float32), np.empty(0, np.float32))
    y, statistics = blocks.norm(x, weight)
    with pytest.raises(libmoe.InvalidArgumentError, match="dweight overlaps dbias|dbias overlaps dweight"):
        blocks.norm_backward(x, weight, statistics, y, dweight=(same := weight.copy()), dbias=same)


# ---- products with a matrix ------------------------------------------------------------------------------

SIZES = [(0, 5, 7), (1, 1, 1), (1, 300, 1100), (5, 64, 32), (300, 33, 65), (1000, 70, 300)]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SIZES)
def test_linear(tokens: int, inputs: int, outputs: int, dtype: str) -> None:
    x, dy = normal(tokens, inputs), normal(tokens, outputs, seed=1)
    matrix, bias = normal(outputs, inputs, seed=2), normal(outputs, seed=3)
    weight: Any = matrix if dtype == "f32" else libmoe.to_bfloat16(matrix)
    a, w, d = rounded(x, dtype), rounded(matrix, dtype), rounded(dy, dtype)
    expected = {
        "y": a @ w.T + bias,
        "dx": d @ w,
        "dweight": 1 + d.T @ a,
        "dbias": 2 + dy.astype(np.float64).sum(axis=0),
    }

    def compute(context: libmoe.Context) -> Arrays:
        into = {"dweight": np.ones((outputs, inputs), np.float32), "dbias": np.full(outputs, 2, np.float32)}
        y = blocks.linear(x, weight, bias, context=context)
        dx = blocks.linear_backward(x, weight, dy, context=context, **into)
        return {"y": y, "dx": dx, **into}

    check(compute, expected, pairs=dtype == "bf16")


@pytest.mark.parametrize("matmul", ["native", "openblas"])
def test_tokens_in_two_calls_give_the_gradient_of_one(matmul: Any) -> None:
    """One chain over all tokens: the same bits with our own kernels, near them with OpenBLAS."""
    x, dy, weight = normal(40, 19), normal(40, 35, seed=1), normal(35, 19, seed=2)
    once, twice = np.zeros_like(weight), np.zeros_like(weight)
    with libmoe.Context(matmul=matmul) as context:
        blocks.linear_backward(x, weight, dy, dweight=once, context=context)
        for part in (slice(0, 17), slice(17, 40)):
            blocks.linear_backward(x[part], weight, dy[part], dweight=twice, context=context)
    if matmul == "native":
        np.testing.assert_array_equal(once, twice)
    assert_close("dweight", twice, once)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (31, 64), (33, 65), (345, 128), (1030, 70)])
def test_few_tokens_have_the_bits_they_have_among_many(inputs: int, outputs: int, dtype: str) -> None:
    """A few tokens read the weights where they lie: the chains are those of many, and of plain loops."""
    x, matrix, bias = normal(29, inputs), normal(outputs, inputs, seed=1), normal(outputs, seed=2)
    weight: Any = matrix if dtype == "f32" else libmoe.to_bfloat16(matrix)
    for instructions in ("avx2", "avx512", "all"):
        with libmoe.Context(n_threads=2, instructions=instructions) as context:
            many = blocks.linear(x, weight, bias, context=context)
            for first, count in ((0, 1), (28, 1), (3, 2), (7, 3), (11, 4), (2, 5)):
                few = blocks.linear(x[first : first + count], weight, bias, context=context)
                np.testing.assert_array_equal(few, many[first : first + count], err_msg=f"{count}")
        if dtype == "f32" or instructions != "all":
            with libmoe.Context(matmul="reference", instructions="avx2") as context:
                np.testing.assert_array_equal(many, blocks.linear(x, weight, bias, context=context))


def test_few_tokens_and_weights_that_are_not_finite() -> None:
    """They reach the outputs they belong to, and no other."""
    weight = np.ones((64, 40), np.float32)
    weight[5, 39], weight[40, 3] = np.inf, np.nan
    y = blocks.linear(np.ones((2, 40), np.float32), weight)
    expected = np.full((2, 64), 40, np.float32)
    expected[:, 5], expected[:, 40] = np.inf, np.nan
    np.testing.assert_array_equal(y, expected)


def test_linear_without_some_outputs() -> None:
    x, dy, weight = normal(40, 19), normal(40, 35, seed=1), normal(35, 19, seed=2)
    np.testing.assert_array_equal(
        blocks.linear(x, weight), blocks.linear(x, weight, np.zeros(35, np.float32))
    )
    dbias = np.zeros(35, np.float32)
    dx = blocks.linear_backward(x, weight, dy, dbias=dbias)
    np.testing.assert_array_equal(dx, blocks.linear_backward(x, weight, dy))
    assert_close("dbias", dbias, dy.sum(axis=0, dtype=np.float64))


def test_bad_products() -> None:
    x, weight = normal(4, 3), normal(5, 3)
    with pytest.raises(libmoe.InvalidArgumentError, match="inputs = 0 is below 1"):
        blocks.linear(np.empty((2, 0), np.float32), np.empty((3, 0), np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match="outputs = 0 is below 1"):
        blocks.linear(x, np.empty((0, 3), np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match="dweight overlaps weight"):
        blocks.linear_backward(x, weight, normal(4, 5), dweight=weight)
    with pytest.raises(ValueError, match="weight: expected shape"):
        blocks.linear(x, normal(5, 4))
