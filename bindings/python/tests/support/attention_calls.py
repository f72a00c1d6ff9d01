"""Calls of attention, forward and backward, with the inputs and options that several tests have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrays import normal
from libmoe import blocks

Floats = NDArray[np.float32]
Inputs = tuple[Floats, Floats, Floats, Floats]  # query, key, value, doutput
# What `options` knows.
MASKS = ["none", "causal", "boolean", "added", "padding", "all", "sinks", "near", "places"]


def arrays(shape: tuple[int, ...]) -> Inputs:
    """Of B, S, U, heads, key heads, D and, where it is another, Dv."""
    b, s, u, heads, kv_heads, d, *rest = shape
    dv = rest[0] if rest else d
    return (
        normal(b, s, heads, d, seed=1),
        normal(b, u, kv_heads, d, seed=2),
        normal(b, u, kv_heads, dv, seed=3),
        normal(b, s, heads, dv, seed=4),
    )


def options(mask: str, shape: tuple[int, ...]) -> dict[str, Any]:
    b, s, u, heads, *_ = shape
    random = np.random.default_rng(5)
    found: dict[str, Any] = {}
    if mask in ("causal", "all", "near", "places"):
        found["causal"] = True
    if mask in ("boolean", "all"):
        found["mask"] = random.random((s, u)) < 0.7
        found["mask"][s // 2] = False  # sees nothing
    if mask in ("added", "all"):
        found["added_mask"] = random.standard_normal((s, u)).astype(np.float32)
        found["added_mask"][random.random((s, u)) < 0.2] = -np.inf
    if mask in ("padding", "all"):
        found["valid_mask"] = np.arange(u) < random.integers(0, u + 1, (b, 1))
        found["valid_mask"][0, 0] = True
    if mask in ("near", "places", "sinks"):
        found["sinks"] = random.standard_normal(heads).astype(np.float32)
    if mask in ("near", "places"):
        found["window"], found["chunk"] = 1 + u // 4, 1 + u // 3
    if mask == "places":  # padding in front, behind and between
        found["valid_mask"] = random.random((b, u)) < 0.8
        found["valid_mask"][:, : u // 7] = False
        found["mask"] = random.random((s, u)) < 0.9
        found["added_mask"] = random.standard_normal((s, u)).astype(np.float32)
    return found


def everything(inputs: Inputs, context: Any, given: dict[str, Any]) -> dict[str, Floats]:
    query, key, value, doutput = inputs
    output, log_sums = blocks.attention(query, key, value, context=context, **given)
    dsinks = np.zeros_like(given["sinks"]) if "sinks" in given else None
    gradients = blocks.attention_backward(
        query, key, value, output, log_sums, doutput, dsinks=dsinks, context=context, **given
    )
    found = {"output": output, "log_sums": log_sums}
    if dsinks is not None:
        found["dsinks"] = dsinks
    return found | dict(zip(("dquery", "dkey", "dvalue"), gradients))  # noqa: B905
