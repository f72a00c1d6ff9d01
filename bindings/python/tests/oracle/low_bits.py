"""Weights of few bits, and products of integers, by their definition in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def in_groups(values: Floats, size: int) -> Floats:
    """Cut the last axis into groups of that size, the last of which is filled up with 0."""
    missing = -values.shape[-1] % size
    filled = np.concatenate([values, np.zeros((*values.shape[:-1], missing), np.float32)], axis=-1)
    return filled.reshape(*values.shape[:-1], -1, size)


def inverse(step: Floats) -> Floats:
    """1 / d, and 0 where that is no number."""
    usable = np.abs(step) >= np.finfo(np.float32).tiny
    return np.where(usable, np.float32(1) / np.where(usable, step, np.float32(1)), np.float32(0))


def eight_bits(values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return d and q: one d for 32 values, the q in groups of 32."""
    groups = in_groups(values, 32)
    step = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    scaled = groups * inverse(step)
    size = np.floor(np.abs(scaled))
    size += np.abs(scaled) - size >= 0.5
    return step[..., 0], (np.sign(scaled) * size).astype(np.int64)


def four_bits(values: Floats, group: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return d and q, both for groups of 32 although d is one for `group` values."""
    groups = in_groups(values, group)
    farthest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)
    step = farthest / np.float32(-8)
    scaled = groups.astype(np.float64) * inverse(step) + 8.5
    numbers = np.minimum(np.trunc(scaled.astype(np.float32)), 15).astype(np.int64) - 8
    steps = np.repeat(step[..., 0], group // 32, axis=-1)
    return steps, numbers.reshape(*values.shape[:-1], -1, 32)


def packed(values: Floats, form: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return the scales [..., blocks], rounded to float16, and the numbers [..., blocks, 32] of a form."""
    name = form.removesuffix("_a8")
    if name == "int8":
        step, numbers = eight_bits(values)
    else:
        step, numbers = four_bits(values, int(name.removeprefix("int4_g")) if "_g" in name else 32)
    return step.astype(np.float16).astype(np.float32), numbers


def unpacked(values: Floats, form: str) -> Floats:
    """Return the weights that a form keeps."""
    step, numbers = packed(values, form)
    weights = (step[..., None] * numbers.astype(np.float32)).reshape(*values.shape[:-1], -1)
    return np.ascontiguousarray(weights[..., : values.shape[-1]])


def fused(a: Any, b: Any, c: Any) -> Floats:
    """a * b + c with one rounding: the exact product, and a sum in double that is rounded to odd."""
    product, summand = np.float64(a) * np.float64(b), np.float64(c)
    total = product + summand
    part = total - product
    error = (product - (total - part)) + (summand - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def integer_product(x: Floats, weights: Floats, form: str, bias: Floats | None = None) -> Floats:
    """Return x [T, k] times weights [n, k], both as integers, from the bias [n] on: [T, n]."""
    token_step, token_numbers = eight_bits(x)
    step, numbers = packed(weights, form)
    count = min(numbers.shape[-2], token_numbers.shape[-2])  # what a group is filled up with is 0
    total = np.zeros((len(x), len(weights)), np.float32)
    if bias is not None:
        total += bias
    for block in range(count):
        sums = (token_numbers[:, block] @ numbers[:, block].T).astype(np.float32)
        total = fused(step[None, :, block] * token_step[:, None, block], sums, total)
    return total
