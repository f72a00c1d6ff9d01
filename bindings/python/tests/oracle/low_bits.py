"""Weights of few bits, and products of integers, by their definition in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

TINY = np.finfo(np.float32).tiny
# Twice the values of E2M1, and the values of IQ4_NL.
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


@dataclass
class Term:
    """A part of each block of 32 inputs: scale * number, scales [n, blocks] and numbers [n, blocks, 32]."""

    scale: Floats
    numbers: Numbers


@dataclass
class Kept:
    """What a form keeps of weights [n, k]: their values, and what products of integers make of them."""

    weights: Floats  # [n, k]
    terms: list[Term]
    offset: Floats | None = None  # [n, blocks], taken away from each weight
    stored: Any = None  # what a file would have of a block


def in_groups(values: Floats, size: int) -> Floats:
    """Cut the last axis into groups of that size, the last of which is filled up with 0."""
    missing = -values.shape[-1] % size
    filled = np.concatenate([values, np.zeros((*values.shape[:-1], missing), np.float32)], axis=-1)
    return filled.reshape(*values.shape[:-1], -1, size)


def usable(step: Floats) -> Floats:
    """0 where a step is too small to be divided by."""
    return np.where(np.abs(step) >= TINY, step, np.float32(0))


def inverse(step: Floats) -> Floats:
    """1 / d, and 0 where that is no number."""
    own = usable(step)
    return np.where(own != 0, np.float32(1) / np.where(own != 0, own, np.float32(1)), np.float32(0))


def whole(values: Floats) -> Floats:
    """Round to the nearest whole number, the even one in a tie."""
    return np.rint(values).astype(np.float32)


def sum_of_32(values: Floats) -> Floats:
    """Sum the last axis of 32 as the kernels do: eight at once, then halves."""
    eight = ((values[..., :8] + values[..., 8:16]) + values[..., 16:24]) + values[..., 24:]
    pairs = eight[..., :4] + eight[..., 4:]
    total: Floats = (pairs[..., 0] + pairs[..., 1]) + (pairs[..., 2] + pairs[..., 3])
    return total


# ------------------------------------------------------------------------------------------------------------
# Each form
# ------------------------------------------------------------------------------------------------------------


def multiples(values: Floats, step: Floats) -> Numbers:
    """Divide by steps, rounding away from 0 in a tie, within -127 ... 127."""
    scaled = values * inverse(step)
    size = np.floor(np.abs(scaled))
    size += np.abs(scaled) - size >= 0.5
    numbers: Numbers = (np.sign(scaled) * np.minimum(size, 127)).astype(np.int64)
    return numbers


def eight_bits(values: Floats) -> tuple[Floats, Numbers]:
    """Return d and q: one d for 32 values, the q in groups of 32."""
    groups = in_groups(values, 32)
    step = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    return usable(step)[..., 0], multiples(groups, step)


def farthest(groups: Floats) -> Floats:
    """Return the first of each group's values with the largest magnitude, [..., 1]."""
    return np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)


def nibbles(groups: Floats, step: Floats) -> Numbers:
    """Multiples as numbers of -8 ... 7."""
    scaled = groups.astype(np.float64) * inverse(step) + 8.5
    return np.clip(np.trunc(scaled.astype(np.float32)), 0, 15).astype(np.int64) - 8


def simple(values: Floats, step: Floats, numbers: Numbers, group: int, rounded: Floats) -> Kept:
    """Keep one term with a scale for so many inputs: `numbers` [n, groups, group], `rounded` [n, groups]."""
    numbers = numbers.reshape(len(values), -1, 32)
    scale = np.repeat(rounded, group // 32, axis=-1)
    weights = (scale[..., None] * numbers.astype(np.float32)).reshape(len(values), -1)
    return Kept(weights[:, : values.shape[1]], [Term(scale, numbers)], stored=step)


def halved(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def int8(values: Floats) -> Kept:
    step, numbers = eight_bits(values)
    return simple(values, step, numbers, 32, halved(step))


def int8_row(values: Floats) -> Kept:
    step = usable(np.abs(values).max(-1) / np.float32(127))
    numbers = multiples(in_groups(values, 256), step[:, None, None])
    return simple(values, step, numbers, 256, np.repeat(step[:, None], numbers.shape[1], axis=1))


def int4(values: Floats, group: int) -> Kept:
    groups = in_groups(values, group)
    step = usable(farthest(groups) / np.float32(-8))
    return simple(values, step, nibbles(groups, step), group, halved(step[..., 0]))


def int4_bf16(values: Floats) -> Kept:
    groups = in_groups(values, 32)
    step = usable(farthest(groups) / np.float32(-8)).astype(ml_dtypes.bfloat16).astype(np.float32)
    return simple(values, step, nibbles(groups, step), 32, step[..., 0])


def int4_zero(values: Floats, group: int) -> Kept:
    groups = in_groups(values, group)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    step = usable(high / np.float32(15) - low / np.float32(15))[..., None]
    zero = whole(np.clip(-low[..., None] * inverse(step), 0, 15))
    numbers = np.clip(whole(np.clip(groups * inverse(step), -15, 15)) + zero, 0, 15) - zero
    return simple(values, step, numbers.astype(np.int64), group, step[..., 0])


def nearest_e2m1(values: Floats, half: Floats) -> Numbers:
    """Return twice the nearest of the values of E2M1 times 2 half, of two the one nearer to 0."""
    size = np.abs(values)
    errors = np.abs(half[..., None] * E2M1[:8].astype(np.float32) - size[..., None])
    numbers: Numbers = np.where(values < 0, -1, 1) * E2M1[errors.argmin(-1)]
    return numbers


def mxfp4(values: Floats) -> Kept:
    groups = in_groups(values, 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    exponent = np.where(largest >= TINY * 4, np.frexp(largest)[1] - 1 - 2, -127)
    half = np.ldexp(np.float32(1), exponent - 1).astype(np.float32)
    return simple(values, exponent + 127, nearest_e2m1(groups, half), 32, half[..., 0])


def iq4_nl(values: Floats) -> Kept:
    """Of 18 reaches the one that explains most of the values."""
    groups = in_groups(values, 32)
    outer = farthest(groups)

    def nearest(scale: Floats) -> tuple[Numbers, Floats, Floats]:
        between = (np.float32(0.5) * (IQ4_NL[1:] + IQ4_NL[:-1]).astype(np.float32)).astype(np.float32)
        places = (groups * scale)[..., None] >= between
        numbers = IQ4_NL[places.sum(-1)]
        own = numbers.astype(np.float32)
        return numbers, sum_of_32(groups * own), sum_of_32(own * own)

    best, step = np.zeros(groups.shape[:-1], np.float32), np.zeros(groups.shape[:-1], np.float32)
    is_used = usable(outer / np.float32(128)) != 0
    for side in (-127, 113):
        for n in range(-8, 9, 2):
            reach = np.float32(side) * (np.float32(1) + np.float32(n) / np.float32(64))
            _, common, own = nearest(np.where(is_used, reach / np.where(is_used, outer, np.float32(1)), 0))
            gain = np.where(is_used[..., 0], common * (common / own), 0)
            step = np.where(gain > best, common / own, step)
            best = np.maximum(gain, best)
    rounded = halved(step)
    numbers, _, _ = nearest(inverse(rounded)[..., None])
    return simple(values, step, numbers, 32, rounded)


def by_32_outputs(values: Floats, group: int) -> tuple[Floats, Floats]:
    """Return values [n, groups, group], and [n, groups] the largest magnitudes in 32 outputs."""
    groups = in_groups(values, group)
    largest = np.abs(groups).max(-1)
    parts = [largest[first : first + 32] for first in range(0, len(values), 32)]
    return groups, np.concatenate([np.broadcast_to(part.max(0), part.shape) for part in parts])


def to_e4m3(values: Floats) -> Floats:
    return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def fp8(values: Floats) -> Kept:
    groups, largest = by_32_outputs(values, 128)
    step = usable(largest / np.float32(448))
    weights = step[..., None] * to_e4m3(groups * inverse(step)[..., None])
    return Kept(weights.reshape(len(values), -1)[:, : values.shape[1]], [])


def nvfp4(values: Floats) -> Kept:
    _, largest = by_32_outputs(values, 128)
    factor = np.repeat(usable(largest / np.float32(6 * 448)), 8, axis=-1)[..., None]
    groups = in_groups(values, 128).reshape(len(values), -1, 16)
    scale = to_e4m3(np.abs(groups).max(-1, keepdims=True) / np.float32(6) * inverse(factor))
    half = scale * factor * np.float32(0.5)
    numbers = nearest_e2m1(groups, half)
    weights = (half * numbers.astype(np.float32)).reshape(len(values), -1)[:, : values.shape[1]]
    half, numbers = half.reshape(len(values), -1, 2), numbers.reshape(len(values), -1, 2, 16)
    nothing = np.zeros_like(numbers[:, :, 0])
    first, last = [numbers[:, :, 0], nothing], [nothing, numbers[:, :, 1]]
    return Kept(
        weights,
        [Term(half[..., 0], np.concatenate(first, -1)), Term(half[..., 1], np.concatenate(last, -1))],
    )


def q6_k(values: Floats) -> Kept:
    groups = in_groups(values, 256).reshape(len(values), -1, 16)
    largest = np.abs(groups).max(-1, keepdims=True)
    is_used = largest >= 2.0**-120
    own = np.where(is_used, groups / np.where(is_used, largest, np.float32(1)), np.float32(0))
    outermost = np.take_along_axis(own, (np.abs(own) == 1).argmax(-1)[..., None], -1)

    def around(these: Floats, scale: Floats) -> tuple[Floats, Floats, Floats]:
        numbers = whole(np.clip(these * scale, -32, 31))
        filled = [np.concatenate([v, np.zeros_like(v)], -1) for v in (these * numbers, numbers * numbers)]
        return numbers, sum_of_32(filled[0]), sum_of_32(filled[1])

    best, step = np.zeros(own.shape[:-1], np.float32), np.zeros(own.shape[:-1], np.float32)
    for n in range(-2, 7):
        reach = np.float32(-32) + np.float32(n) / np.float32(4)
        _, common, squares = around(own, reach * outermost)
        fitted = common / np.where(squares > 0, squares, np.float32(1))
        gain = np.where(is_used[..., 0], common * fitted, 0)
        step = np.where(gain > best, fitted, step)
        best = np.maximum(gain, best)
    steps = (step * np.where(is_used, largest, np.float32(0))[..., 0]).reshape(len(values), -1, 16)
    d = halved(farthest(steps) / np.float32(-128))
    s = whole(np.clip(steps * inverse(d), -128, 127))
    scale = (d * s).reshape(len(values), -1, 1)
    numbers, _, _ = around(groups, inverse(scale))
    weights = (scale * numbers).reshape(len(values), -1)[:, : values.shape[1]]
    q, s8 = numbers.astype(np.int64), s.astype(np.int64)
    times = (q * s8.reshape(len(values), -1, 1)).reshape(len(values), -1, 32)
    return Kept(
        weights,
        [Term(np.repeat(d[..., 0], 8, axis=-1), times)],
        stored=(d, s8, q.reshape(len(values), -1, 256)),
    )


def fitted_above(groups: Floats) -> tuple[Floats, Floats]:
    """Return the steps and offsets of 32 values, by least squares for nine ways to begin."""
    f = np.float32
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    span = high - low
    is_used = span >= f(2.0**-120)
    inverse_span = np.where(is_used, f(1) / np.where(is_used, span, f(1)), f(0))
    own = groups * inverse_span[..., None]
    bottom = (-low * inverse_span)[..., None]
    total, squares = sum_of_32(own), sum_of_32(own * own)
    step, offset, least = np.zeros_like(low), -low, f(2) * squares + f(1)
    for n in range(9):
        numbers = whole(np.clip((own + bottom) * (f(14) + f(n) / f(4)), 0, 15))
        q, qq, qw = sum_of_32(numbers), sum_of_32(numbers * numbers), sum_of_32(own * numbers)
        determinant = f(32) * qq - q * q
        is_regular = is_used & (determinant > 0)
        divisor = np.where(is_regular, determinant, f(1))
        scale, away = (f(32) * qw - q * total) / divisor, (q * qw - qq * total) / divisor
        scale = np.where(away < 0, qw / np.where(qq > 0, qq, f(1)), scale)
        away = np.maximum(away, 0)
        error = squares - f(2) * (scale * qw - away * total)
        error = error + scale * scale * qq - f(2) * scale * away * q + f(32) * away * away
        is_better = is_regular & (scale > 0) & (error < least)
        least = np.where(is_better, error, least)
        step = np.where(is_better, scale * span, step)
        offset = np.where(is_better, away * span, offset)
    return step, offset


def q4_k(values: Floats) -> Kept:
    groups = in_groups(values, 256).reshape(len(values), -1, 8, 32)
    steps, offsets = fitted_above(groups)
    d, d_min = (halved(v.max(-1, keepdims=True) / np.float32(63)) for v in (steps, offsets))
    s, m = (whole(np.clip(v * inverse(by), 0, 63)) for v, by in ((steps, d), (offsets, d_min)))
    scale, offset = (d * s)[..., None], (d_min * m)[..., None]
    numbers = whole(np.clip((groups + offset) * inverse(scale), 0, 15))
    weights = (scale * numbers - offset).reshape(len(values), -1)[:, : values.shape[1]]
    n, q = len(values), numbers.astype(np.int64)
    stored = (d, d_min, s.astype(np.int64), m.astype(np.int64), q.reshape(n, -1, 256))
    return Kept(weights, [Term(scale.reshape(n, -1), q.reshape(n, -1, 32))], offset.reshape(n, -1), stored)


FORMS: dict[str, Callable[[Floats], Kept]] = {
    "int8": int8,
    "int4": lambda values: int4(values, 32),
    "int4_g64": lambda values: int4(values, 64),
    "int4_g128": lambda values: int4(values, 128),
    "mxfp4": mxfp4,
    "iq4_nl": iq4_nl,
    "q4_k": q4_k,
    "q6_k": q6_k,
    "int8_row": int8_row,
    "fp8": fp8,
    "nvfp4": nvfp4,
    "int4_bf16": int4_bf16,
    "int4_zero": lambda values: int4_zero(values, 32),
    "int4_zero_g64": lambda values: int4_zero(values, 64),
    "int4_zero_g128": lambda values: int4_zero(values, 128),
}


def kept(values: Floats, form: str) -> Kept:
    """Return what a form keeps of a matrix [n, k]."""
    return FORMS[form.removesuffix("_a8").removesuffix("_a16")](values)


def unpacked(values: Floats, form: str) -> Floats:
    """Return the weights that a form keeps of matrices [..., n, k]."""
    matrices = values.reshape(-1, *values.shape[-2:])
    return np.stack([kept(matrix, form).weights for matrix in matrices]).reshape(values.shape)


# ------------------------------------------------------------------------------------------------------------
# Products
# ------------------------------------------------------------------------------------------------------------


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
    own = kept(weights, form)
    total = np.zeros((len(x), len(weights)), np.float32)
    if bias is not None:
        total += bias
    if form == "int8_row_a8":
        whole_step = usable(np.abs(x).max(-1, keepdims=True) / np.float32(127))
        sums = multiples(x, whole_step) @ own.terms[0].numbers.reshape(len(weights), -1)[:, : x.shape[1]].T
        return fused(own.terms[0].scale[:, 0] * whole_step, sums.astype(np.float32), total)
    step, tokens = eight_bits(x)
    for block in range(tokens.shape[1]):
        for term in own.terms:
            sums = (tokens[:, block] @ term.numbers[:, block].T).astype(np.float32)
            total = fused(term.scale[None, :, block] * step[:, None, block], sums, total)
        if own.offset is not None:
            sums = step[:, block] * tokens[:, block].sum(-1).astype(np.float32)
            total = fused(-own.offset[None, :, block], sums[:, None], total)
    return total
