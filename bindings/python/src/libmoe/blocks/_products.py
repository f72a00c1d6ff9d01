"""Norms and products with a matrix."""

from __future__ import annotations

import ctypes

import numpy as np

from .. import words
from .._keywords import keywords
from .._native import abi, check
from .._native.check import Array
from .._native.library import lib
from ..context import Context, handle_of
from ._arrays import Floats, matrix, weight_of


@keywords
def norm(
    x: Floats,
    weight: Floats,
    bias: Floats | None = None,
    *,
    kind: words.Norm = "layer",
    epsilon: float = 1e-5,
    context: Context | None = None,
) -> tuple[Floats, Floats]:
    """Each row normalised by itself: LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467).

    ``"layer"``: y = (x - mean) / sqrt(variance + epsilon) * weight + bias;
    ``"rms"``: y = x / sqrt(mean of x^2 + epsilon) * weight.

    Parameters
    ----------
    x : array of float32, [T, H]
    weight : array of float32, [H]
    bias : array of float32, [H], optional
        Not with ``"rms"``.

    Returns
    -------
    y : array of float32, [T, H]
    statistics : array of float32, [T, 2]
        Mean and 1 / root of each row, for :func:`norm_backward`.

    Raises
    ------
    InvalidArgumentError
        ``epsilon`` is not above 0, or RMSNorm is given a bias.
    """
    tokens, width = matrix("x", x)
    y, statistics = np.empty_like(x), np.empty((tokens, 2), np.float32)
    config = abi.moe_norm_config(
        n_tokens=tokens,
        hidden_size=width,
        epsilon=check.number("epsilon", epsilon),
        norm=check.choice("kind", kind, abi.NORM),
    )
    lib.moe_norm_forward(
        handle_of(context),
        ctypes.byref(config),
        x.ctypes.data,
        check.address("weight", weight, (width,)),
        check.address("bias", bias, (width,)),
        y.ctypes.data,
        statistics.ctypes.data,
    )
    return y, statistics


@keywords
def norm_backward(
    x: Floats,
    weight: Floats,
    statistics: Floats,
    dy: Floats,
    *,
    kind: words.Norm = "layer",
    dweight: Floats | None = None,
    dbias: Floats | None = None,
    context: Context | None = None,
) -> Floats:
    """Return the gradient of :func:`norm` in x; add those in weight and bias to ``dweight`` and ``dbias``."""
    tokens, width = matrix("x", x)
    dx = np.empty_like(x)
    config = abi.moe_norm_config(
        n_tokens=tokens, hidden_size=width, norm=check.choice("kind", kind, abi.NORM)
    )
    lib.moe_norm_backward(
        handle_of(context),
        ctypes.byref(config),
        x.ctypes.data,
        check.address("weight", weight, (width,)),
        check.address("statistics", statistics, (tokens, 2)),
        check.address("dy", dy, x.shape),
        dx.ctypes.data,
        check.address("dweight", dweight, (width,), write=True),
        check.address("dbias", dbias, (width,), write=True),
    )
    return dx


@keywords
def linear(x: Floats, weight: Array, bias: Floats | None = None, *, context: Context | None = None) -> Floats:
    """Return x W^T + b.

    Parameters
    ----------
    x : array of float32, [T, inputs]
    weight : array of any type of weights, [outputs, inputs]
        With bfloat16, x is rounded to it for the product; sums are float32.
    bias : array of float32, [outputs], optional

    Returns
    -------
    array of float32, [T, outputs]
    """
    tokens, inputs = matrix("x", x)
    outputs, dtype = weight_of(weight, inputs)
    y = np.empty((tokens, outputs), np.float32)
    config = abi.moe_linear_config(n_tokens=tokens, inputs=inputs, outputs=outputs, weight_dtype=dtype)
    lib.moe_linear_forward(
        handle_of(context),
        ctypes.byref(config),
        x.ctypes.data,
        weight.ctypes.data,
        check.address("bias", bias, (outputs,)),
        y.ctypes.data,
    )
    return y


@keywords
def linear_backward(
    x: Floats,
    weight: Array,
    dy: Floats,
    *,
    dweight: Floats | None = None,
    dbias: Floats | None = None,
    context: Context | None = None,
) -> Floats:
    """Return dx = dy W of :func:`linear`; add dy^T x to ``dweight`` and the sum of dy's rows to ``dbias``."""
    tokens, inputs = matrix("x", x)
    outputs, dtype = weight_of(weight, inputs)
    dx = np.empty_like(x)
    config = abi.moe_linear_config(n_tokens=tokens, inputs=inputs, outputs=outputs, weight_dtype=dtype)
    lib.moe_linear_backward(
        handle_of(context),
        ctypes.byref(config),
        x.ctypes.data,
        weight.ctypes.data,
        check.address("dy", dy, (tokens, outputs)),
        dx.ctypes.data,
        check.address("dweight", dweight, (outputs, inputs), write=True),
        check.address("dbias", dbias, (outputs,), write=True),
    )
    return dx
