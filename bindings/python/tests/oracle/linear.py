"""Linear maps, softmax, sigmoid and their kin."""

from __future__ import annotations

import numpy as np

from .settings import Array, Parameters


def linear(parameters: Parameters, name: str, x: Array) -> Array:
    """x W^T + b:  x [N,in]  W [out,in]  b [out], where there is one  ->  [N,out]."""
    y = x @ parameters[f"{name}.weight"].T
    if f"{name}.bias" in parameters:
        y = y + parameters[f"{name}.bias"]
    return y


def linear_backward(parameters: Parameters, gradients: Parameters, name: str, x: Array, d_y: Array) -> Array:
    """Add to the gradients of W and b; return d_x [N,in]."""
    gradients[f"{name}.weight"] += d_y.T @ x
    if f"{name}.bias" in gradients:
        gradients[f"{name}.bias"] += d_y.sum(axis=0)
    return d_y @ parameters[f"{name}.weight"]


def softmax(v: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(v - v.max(axis=-1, keepdims=True))
    p: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return p


def softmax_backward(p: Array, d_p: Array) -> Array:
    """d_v for p = softmax(v)."""
    d_v: Array = p * (d_p - (p * d_p).sum(axis=-1, keepdims=True))
    return d_v


def logsumexp(v: Array) -> Array:
    """Over the last axis; its gradient is the softmax."""
    top = v.max(axis=-1)
    total: Array = top + np.log(np.exp(v - top[..., None]).sum(axis=-1))
    return total


def sigmoid(v: Array) -> Array:
    """1 / (1 + exp(-v))."""
    s: Array = 1 / (1 + np.exp(-v))
    return s


def softplus(v: Array) -> Array:
    """ln(1 + exp(v)); its slope is the sigmoid."""
    s: Array = np.logaddexp(0, v)
    return s
