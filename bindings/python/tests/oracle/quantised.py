"""Weights in few bits as folders have them, written from their definitions: packed, and their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Quantised:
    """Tensors behind a linear map's name, and the float32 weights [out, in] that they are."""

    tensors: dict[str, Array]
    weights: Array


def words(numbers: Array, bits: int, axis: int) -> Array:
    """Whole numbers from 0 on as int32, so many in each along an axis, the first in the lowest bits."""
    inside = 32 // bits
    numbers = np.moveaxis(numbers, axis, -1).astype(np.uint32)
    room = -numbers.shape[-1] % inside
    numbers = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, room)])
    numbers = numbers.reshape(*numbers.shape[:-1], -1, inside)
    packed = (numbers << (bits * np.arange(inside, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    return np.ascontiguousarray(np.moveaxis(packed.view(np.int32), -1, axis))


def _scales(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return rng.uniform(0.01, 0.05, shape).astype(dtype)


def compressed(
    rng: np.random.Generator, rows: int, columns: int, group: int, *, bits: int = 4, zeros: bool = False,
    dtype: Any = ml_dtypes.bfloat16, ordered: bool = False,
) -> Quantised:  # fmt: skip
    """compressed-tensors, pack-quantized: signed numbers, moved up by half of their range; 0: one group."""
    half, groups = 1 << (bits - 1), columns // group if group else 1
    numbers = rng.integers(-half, half, (rows, columns))
    scales = _scales(rng, (rows, groups), dtype)
    column_group = np.arange(columns) // (columns // groups)
    tensors: dict[str, Array] = {
        "weight_packed": words(numbers + half, bits, 1),
        "weight_scale": scales,
        "weight_shape": np.array([rows, columns], np.int64),
    }
    if ordered:
        column_group = rng.permutation(column_group)
        tensors["weight_g_idx"] = column_group.astype(np.int32)
    points = np.zeros((rows, groups), np.int64)
    if zeros:
        points = rng.integers(-half, half, (rows, groups))
        tensors["weight_zero_point"] = words(points + half, bits, 0)
    centred = (numbers - points[:, column_group]).astype(np.float32)
    return Quantised(tensors, centred * scales.astype(np.float32)[:, column_group])


def awq(rng: np.random.Generator, rows: int, columns: int, group: int) -> Quantised:
    """AWQ: [in, out / 8], eight outputs of a word in an order of their own."""
    groups = columns // group
    numbers = rng.integers(0, 16, (columns, rows))
    points = rng.integers(0, 16, (groups, rows))
    scales = _scales(rng, (groups, rows), np.float16)

    def ordered(values: Array) -> Array:
        return values.reshape(len(values), -1, 8)[..., list(AWQ_ORDER)].reshape(values.shape)

    tensors = {
        "qweight": words(ordered(numbers), 4, 1),
        "qzeros": words(ordered(points), 4, 1),
        "scales": scales,
    }
    each = np.arange(columns) // group
    weights = (numbers - points[each]).astype(np.float32) * scales.astype(np.float32)[each]
    return Quantised(tensors, np.ascontiguousarray(weights.T))


def gptq(
    rng: np.random.Generator, rows: int, columns: int, group: int, *, bits: int = 4, ordered: bool = False,
    shift: int = 1, listed: bool = True,
) -> Quantised:  # fmt: skip
    """GPTQ: [in / 8, out]; zero points minus 1, groups of inputs by a list."""
    groups, most = columns // group, 1 << bits
    numbers = rng.integers(0, most, (columns, rows))
    points = rng.integers(shift, most, (groups, rows))
    scales = _scales(rng, (groups, rows), np.float16)
    each = np.arange(columns) // group
    if ordered:
        each = rng.permutation(each)
    tensors = {
        "qweight": words(numbers, bits, 0),
        "qzeros": words(points - shift, bits, 1),
        "scales": scales,
    }
    if listed or ordered:
        tensors["g_idx"] = each.astype(np.int32)
    weights = (numbers - points[each]).astype(np.float32) * scales.astype(np.float32)[each]
    return Quantised(tensors, np.ascontiguousarray(weights.T))


def fp8(
    rng: np.random.Generator, rows: int, columns: int, block: tuple[int, int], name: str = "weight_scale_inv"
) -> Quantised:
    """FP8 E4M3 and a scale for each block of rows and columns, the last ones smaller."""
    numbers = rng.normal(0, 2, (rows, columns)).astype(ml_dtypes.float8_e4m3fn)
    scales = _scales(rng, (-(-rows // block[0]), -(-columns // block[1])), np.float32)
    spread = scales.repeat(block[0], 0).repeat(block[1], 1)[:rows, :columns]
    return Quantised({"weight": numbers, name: scales}, numbers.astype(np.float32) * spread)


def int8(rng: np.random.Generator, rows: int, columns: int) -> Quantised:
    """compressed-tensors, int-quantized: a scale for each row."""
    numbers = rng.integers(-128, 128, (rows, columns), np.int8)
    scales = _scales(rng, (rows, 1), np.float32)
    return Quantised({"weight": numbers, "weight_scale": scales}, numbers.astype(np.float32) * scales)


def nvfp4(rng: np.random.Generator, rows: int, columns: int, *, modelopt: bool = False) -> Quantised:
    """NVFP4: two numbers in a byte, scales of 16 in E4M3, one of all that divides (modelopt: multiplies)."""
    codes = rng.integers(0, 16, (rows, columns), np.uint8)
    scales = rng.uniform(8, 100, (rows, columns // 16)).astype(ml_dtypes.float8_e4m3fn)
    whole = np.array([0.003 if modelopt else 300.0], np.float32)
    values = np.where(codes & 8, -E2M1[codes & 7], E2M1[codes & 7])
    packed = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    spread = scales.astype(np.float32) * whole if modelopt else scales.astype(np.float32) / whole
    weights = values * spread.repeat(16, 1)
    if modelopt:
        return Quantised({"weight": packed, "weight_scale": scales, "weight_scale_2": whole}, weights)
    return Quantised({"weight_packed": packed, "weight_scale": scales, "weight_global_scale": whole}, weights)


def mxfp4(rng: np.random.Generator, rows: int, columns: int) -> Quantised:
    """MXFP4 as compressed-tensors has it: scales of 32 are powers of two, their exponents bytes."""
    codes = rng.integers(0, 16, (rows, columns), np.uint8)
    scales = rng.integers(119, 124, (rows, columns // 32), np.uint8)
    values = np.where(codes & 8, -E2M1[codes & 7], E2M1[codes & 7])
    weights = values * np.exp2(scales.astype(np.float32) - 127).repeat(32, 1)
    return Quantised(
        {"weight_packed": codes[:, ::2] | codes[:, 1::2] << np.uint8(4), "weight_scale": scales}, weights
    )
