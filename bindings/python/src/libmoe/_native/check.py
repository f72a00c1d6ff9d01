"""Checks of arguments before the library sees them; every message names the argument and the mend."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentTypeError, InvalidArgumentError
from ..words import TensorDType
from . import abi
from .foreign import TYPES, cure
from .numbers import (
    byte_count,
    choice,
    count,
    flag,
    instance,
    integer,
    integers,
    listed,
    mapping,
    number,
)

__all__ = [
    "Array",
    "FloatArray",
    "address",
    "array",
    "byte_count",
    "choice",
    "contiguous",
    "count",
    "dtype_of",
    "flag",
    "instance",
    "integer",
    "integers",
    "listed",
    "mapping",
    "number",
    "tokens",
    "word_of",
]

FloatArray = NDArray[np.float32]
Array = NDArray[Any]
"""float32, or another type of weights where a layer or a parameter has that."""


def array(
    name: str, value: Any, shape: tuple[int, ...] | None = None, *, write: bool = False, dtype: str = "f32"
) -> Any:
    """Return ``value`` itself: a numpy array whose memory the library can use as it is.

    Parameters
    ----------
    name : str
        What the argument is called in messages.
    value
        Must be a numpy array of the type, row-major without gaps, aligned.
    shape : tuple of int, optional
        The shape it must have.
    write : bool
        Whether the library writes into it.
    dtype : str
        One of TYPES; bfloat16 also as the type of that name in ``ml_dtypes``.
    """
    wanted = TYPES[dtype]
    if not isinstance(value, np.ndarray):
        raise ArgumentTypeError(
            f"{name}: expected a numpy array, got {type(value).__name__}; "
            f"use {cure(name, value, dtype, write)}"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentTypeError(
            f"{name}: expected a plain array, got a masked one; use {name}.filled(0), and valid_mask for "
            "padding"
        )
    if not _has(value, dtype):
        if dtype in ("i32", "i64") and value.dtype.kind in "iu":
            integers(name, value, wanted.types[0])  # says which number does not fit, if any does not
        mend = f"libmoe.to_bfloat16({name})" if dtype == "bf16" else f"{name}.astype({wanted.asked})"
        if dtype == "bf16" and value.dtype != np.float32:
            mend = f"libmoe.to_bfloat16({name}.astype(numpy.float32))"
        raise ArgumentTypeError(f"{name}: expected {wanted.called}, got {value.dtype}; use {mend}")
    if shape is not None and value.shape != shape:
        size = math.prod(shape)
        mend = f"use {name}.reshape{shape}" if value.size == size else f"give it {size} elements"
        raise InvalidArgumentError(f"{name}: expected shape {shape}, got {value.shape}; {mend}")
    contiguous(name, value)
    if not value.flags.aligned:
        raise InvalidArgumentError(
            f"{name}: expected memory aligned to {value.itemsize} bytes; use {name}.copy()"
        )
    if write and not value.flags.writeable:
        raise InvalidArgumentError(f"{name}: expected an array that may be written to; use {name}.copy()")
    return value


def of_rank(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the shape of so many dimensions, at least 1, that is most like another of as many elements.

    The last dimension, which may be the features, stays the last one.
    """
    found = list(shape) or [1]
    while len(found) > rank and 1 in found:
        found.remove(1)
    while len(found) > rank:
        found[:2] = [found[0] * found[1]]
    return (1,) * (rank - len(found)) + tuple(found)


def contiguous(name: str, value: NDArray[Any]) -> None:
    """Refuse an array with gaps or in another order."""
    if not value.flags.c_contiguous:
        raise InvalidArgumentError(
            f"{name}: expected a C-contiguous array; use numpy.ascontiguousarray({name})"
        )


def address(
    name: str, value: Any, shape: tuple[int, ...], *, write: bool = False, dtype: str = "f32"
) -> int | None:
    """Return where an array's memory is that the caller may leave out; the caller keeps it alive."""
    if value is None:
        return None
    return int(array(name, value, shape, write=write, dtype=dtype).ctypes.data)


def tokens(name: str, value: Any, hidden_size: int, dtype: str) -> int:
    """Return how many tokens an array [..., H] holds."""
    if array(name, value, dtype=dtype).shape[-1:] != (hidden_size,):
        raise InvalidArgumentError(
            f"{name}: expected shape [..., {hidden_size}], got {value.shape}; "
            f"its last axis must be hidden_size = {hidden_size}"
        )
    return int(value.size // hidden_size)


def dtype_of(value: Any) -> str:
    """Return which type of weights an array has; what is none of them should have been float32."""
    if not isinstance(value, np.ndarray):
        return "f32"
    return next((word for word in get_args(TensorDType) if _has(value, word)), "f32")


def word_of(dtype: int) -> str:
    """Return the word of a type of weights by its number."""
    return next(word for word, number in abi.DTYPE.items() if number == dtype)


def _has(value: NDArray[Any], dtype: str) -> bool:
    named = dtype == "bf16" and value.dtype.name == "bfloat16" and value.dtype.isnative
    return value.dtype in TYPES[dtype].types or named
