"""Checks of arguments before the library sees them; every message names the argument and the mend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentTypeError, InvalidArgumentError
from .foreign import cure
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
]

FloatArray = NDArray[np.float32]
Array = NDArray[Any]
"""float32, or bfloat16 where a layer or a parameter has that."""


# What an element may be: its types, what messages call them, and what numpy is asked for to get them.
_TYPES: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "f32": ((np.float32,), "float32", "numpy.float32"),
    "bf16": ((np.uint16,), "bfloat16 (as uint16)", "numpy.float32"),
    "i32": ((np.int32,), "int32", "numpy.int32"),
    "i64": ((np.int64,), "int64", "numpy.int64"),
    "mask": ((np.bool_, np.uint8), "bool or uint8", "bool"),
}


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
    dtype : {"f32", "bf16", "i32", "i64", "mask"}
        float32; bfloat16 as uint16 or as the type of that name in ``ml_dtypes``; int32; int64; bool or uint8.
    """
    types, expected, asked = _TYPES[dtype]
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
    if value.dtype not in types and not (dtype == "bf16" and value.dtype.name == "bfloat16"):
        if dtype in ("i32", "i64") and value.dtype.kind in "iu":
            integers(name, value, types[0])  # says which number does not fit, if any does not
        mend = f"libmoe.to_bfloat16({name})" if dtype == "bf16" else f"{name}.astype({asked})"
        if dtype == "bf16" and value.dtype != np.float32:
            mend = f"libmoe.to_bfloat16({name}.astype(numpy.float32))"
        raise ArgumentTypeError(f"{name}: expected {expected}, got {value.dtype}; use {mend}")
    if shape is not None and value.shape != shape:
        wanted = math.prod(shape)
        mend = f"use {name}.reshape{shape}" if value.size == wanted else f"give it {wanted} elements"
        raise InvalidArgumentError(f"{name}: expected shape {shape}, got {value.shape}; {mend}")
    contiguous(name, value)
    if not value.flags.aligned:
        raise InvalidArgumentError(
            f"{name}: expected memory aligned to {value.itemsize} bytes; use {name}.copy()"
        )
    if write and not value.flags.writeable:
        raise InvalidArgumentError(f"{name}: expected an array that may be written to; use {name}.copy()")
    return value


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
    """Return the name of the array's type, as far as the library has it."""
    return "bf16" if value.dtype == np.uint16 or value.dtype.name == "bfloat16" else "f32"
