"""What a layer's output should be: numpy in float64, from the weights before any rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from protocol import Work

Float64 = np.ndarray[Any, np.dtype[np.float64]]


def reference(work: Work) -> Float64:
    """Return y [T,H] of a layer of SwiGLU experts for the first input."""
    top_k = work.shape.top_k
    x = work.load("x").astype(np.float64)
    logits = x @ work.load("router.weight").astype(np.float64).T + work.load("router.bias")
    chosen = np.argsort(-logits, axis=1)[:, :top_k]
    weights = np.exp(np.take_along_axis(logits, chosen, axis=1))
    weights /= weights.sum(axis=1, keepdims=True)  # of all experts' softmax, the chosen ones' shares
    gates, ups, downs = (work.load(f"experts.{name}.weight") for name in ("gate", "up", "down"))
    y = np.zeros_like(x)
    for expert in np.unique(chosen):
        tokens, slots = np.nonzero(chosen == expert)
        gate, up = (x[tokens] @ half[expert].astype(np.float64).T for half in (gates, ups))
        inner = gate / (1 + np.exp(-gate)) * up
        y[tokens] += weights[tokens, slots, None] * (inner @ downs[expert].astype(np.float64).T)
    return y
