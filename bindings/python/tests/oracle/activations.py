"""Activations: each gives its values and its slopes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .linear import sigmoid
from .settings import Array, Group

erf = np.vectorize(math.erf, otypes=[np.float64])


def normal_cumulative(v: Array) -> tuple[Array, Array]:
    """The normal distribution Phi(v) and its density."""
    return 0.5 * (1 + erf(v / math.sqrt(2))), np.exp(-0.5 * v**2) / math.sqrt(2 * math.pi)


def gelu(v: Array) -> tuple[Array, Array]:
    """v Phi(v)."""
    cumulative, density = normal_cumulative(v)
    return v * cumulative, cumulative + v * density


def gelu_tanh(v: Array) -> tuple[Array, Array]:
    """GELU with Phi(v) taken as (1 + tanh(u)) / 2."""
    u = math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)
    d_u = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * v**2)
    cumulative = 0.5 * (1 + np.tanh(u))
    return v * cumulative, cumulative + v * 0.5 * (1 - np.tanh(u) ** 2) * d_u


def silu(v: Array) -> tuple[Array, Array]:
    """v sigmoid(v)."""
    s = sigmoid(v)
    return v * s, s + v * s * (1 - s)


def relu(v: Array) -> tuple[Array, Array]:
    """max(v, 0)."""
    return np.maximum(v, 0), (v > 0).astype(np.float64)


def relu2(v: Array) -> tuple[Array, Array]:
    """max(v, 0)^2."""
    return np.maximum(v, 0) ** 2, 2 * np.maximum(v, 0)


def quick_gelu(v: Array) -> tuple[Array, Array]:
    """v sigmoid(1.702 v)."""
    value, slope = silu(1.702 * v)
    return value / 1.702, slope


ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "relu": relu,
    "relu2": relu2,
    "quick_gelu": quick_gelu,
}


def gated(group: Group, gate: Array, up: Array) -> tuple[Array, Array, Array]:
    """act(min(gate, L)) * (up clamped to -L ... L, + offset), and its slopes along gate and along up."""
    limit, alpha = group.glu_limit or np.inf, group.glu_alpha or 1.0
    # v sigmoid(alpha v) = silu(alpha v) / alpha: alpha is for SiLU alone.
    value, slope = ACTIVATIONS[group.activation](alpha * np.minimum(gate, limit))
    factor = np.clip(up, -limit, limit) + group.glu_offset
    along_gate = slope * factor * (gate <= limit)
    return value / alpha * factor, along_gate, value / alpha * (np.abs(up) <= limit)
