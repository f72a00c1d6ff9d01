"""Attention in float64 as the textbook has it: the whole matrix of weights, head by head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .philox import words
from .settings import Array

DROPOUT = 23  # stream
Floats = NDArray[np.float32]


class Attention:
    """Forward at construction; `backward` after it."""

    def __init__(self, query: Floats, key: Floats, value: Floats, options: dict[str, Any]) -> None:
        b, s, heads, d = query.shape
        u, self.kv_heads = key.shape[1:3]
        self.group = heads // self.kv_heads
        self.scale = options.get("scale") or 1 / np.sqrt(d)
        self.q = query.astype(np.float64).transpose(0, 2, 1, 3)  # [B,heads,S,D]
        self.k = np.repeat(key.astype(np.float64).transpose(0, 2, 1, 3), self.group, axis=1)
        self.v = np.repeat(value.astype(np.float64).transpose(0, 2, 1, 3), self.group, axis=1)
        scores = self.scale * self.q @ self.k.transpose(0, 1, 3, 2)  # [B,heads,S,U]
        seen = np.ones((b, 1, s, u), bool)
        if options.get("causal"):
            seen &= np.tri(s, u, u - s, dtype=bool)
        if options.get("mask") is not None:
            seen &= options["mask"]
        if options.get("valid_mask") is not None:
            seen &= options["valid_mask"][:, None, None, :]
        seen &= _near(options, b, s, u)[:, None]
        if options.get("added_mask") is not None:
            scores = scores + options["added_mask"]
        scores = np.where(seen, scores, -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        sinks = options.get("sinks")
        sinks = np.full(heads, -np.inf) if sinks is None else sinks.astype(np.float64)
        sinks = np.where(np.isinf(top), -np.inf, sinks[None, :, None, None])  # nothing seen, nothing shared
        top = np.maximum(top, sinks)
        base = np.where(np.isinf(top), 0, top)
        weights, sunk = np.exp(scores - base), np.exp(sinks - base)
        total = weights.sum(axis=-1, keepdims=True) + sunk
        with np.errstate(divide="ignore"):
            self.log_sums = (np.where(np.isinf(top), 0, top) + np.log(total))[..., 0]
        self.weights = weights / np.where(total == 0, 1, total)
        self.sunk = sunk / np.where(total == 0, 1, total)
        self.kept: Array = np.ones_like(self.weights)
        rate = float(np.float32(options.get("dropout", 0)))
        if rate:
            drawn = words(options["seed"], DROPOUT, options["step"], b, heads, s, -(-u // 4) * 4)[..., :u]
            self.kept = (drawn >= np.uint64(rate * 2**32)) / (1 - rate)
        self.output = (self.weights * self.kept @ self.v).transpose(0, 2, 1, 3)

    def backward(self, doutput: Floats) -> tuple[Array, Array, Array]:
        d_out = doutput.astype(np.float64).transpose(0, 2, 1, 3)
        d_weights = d_out @ self.v.transpose(0, 1, 3, 2) * self.kept
        mean = (d_weights * self.weights).sum(axis=-1, keepdims=True)
        # What slopes are differences of, times keys or queries: gradients near 0 are right to so much of it.
        self.terms = np.abs(d_weights).max() * self.scale * max(np.abs(self.q).max(), np.abs(self.k).max())
        d_scores = self.weights * (d_weights - mean) * self.scale
        self.d_sinks = -(self.sunk * mean).sum(axis=(0, 2, 3))
        d_key = self._over_groups(d_scores.transpose(0, 1, 3, 2) @ self.q)
        d_value = self._over_groups((self.weights * self.kept).transpose(0, 1, 3, 2) @ d_out)
        return (d_scores @ self.k).transpose(0, 2, 1, 3), d_key, d_value

    def _over_groups(self, gradient: Array) -> Array:
        b, _, u, d = gradient.shape
        summed: Array = gradient.reshape(b, self.kv_heads, self.group, u, d).sum(axis=2).transpose(0, 2, 1, 3)
        return summed


def _near(options: dict[str, Any], b: int, s: int, u: int) -> NDArray[np.bool_]:
    """[B,S,U]: what window and chunk leave, by places counted over real keys; causality is not among it."""
    valid = options.get("valid_mask")
    real = np.ones((b, u), int) if valid is None else valid.astype(int)
    places = np.cumsum(real, axis=1) - real  # real keys before each
    own = np.maximum(np.arange(s) + u - s, 0)  # a query's key
    near = np.ones((b, s, u), bool)
    if options.get("window"):
        near &= places[:, None, :] > places[:, own, None] - options["window"]
    if options.get("chunk"):
        near &= places[:, None, :] // options["chunk"] == places[:, own, None] // options["chunk"]
    return near
