"""Where an array's elements are, whoever made the array: numpy, torch, or an address and a shape."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentTypeError, InvalidArgumentError
from .foreign import TYPES

_NUMPY = {np.dtype(each): word for word in ("f32", "bf16", "f16", "i32", "i64") for each in TYPES[word].types}
_NAMED = {TYPES[word].name: word for word in ("f32", "bf16", "f16", "i32", "i64")} | {"uint8": "u8"}
_SIZES = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "i64": 8, "u8": 1}


class Memory(NamedTuple):
    """An array in memory of the caller's.

    Parameters
    ----------
    address : int
        Of the first element.
    dtype : str
        ``"f32"``, ``"bf16"``, ``"f16"``, ``"i32"``, ``"i64"`` or ``"u8"``.
    shape : tuple of int
        The lengths of its axes.
    strides : tuple of int, optional
        In elements, one for each axis; without them the array is row-major without gaps.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the strides, in elements."""
        return gapless(self.shape) if self.strides is None else self.strides

    @property
    def size(self) -> int:
        """Return how many elements there are."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Return the bytes of an element."""
        return _SIZES[self.dtype]


def gapless(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a row-major array without gaps."""
    steps, step = [], 1
    for length in reversed(shape):
        steps.append(step)
        step *= length
    return tuple(reversed(steps))


def memory(name: str, value: Any, *, write: bool = False) -> Memory:
    """Return where the elements of an array are; the caller keeps it alive.

    Parameters
    ----------
    name : str
        What the argument is called in messages.
    value
        A numpy array, a :class:`Memory`, or what has ``data_ptr``, ``stride``, ``shape`` and ``dtype``, as
        tensors of torch have.
    write : bool
        Whether the library writes into it.
    """
    if isinstance(value, np.ndarray):
        return _of_numpy(name, value, write)
    if isinstance(value, Memory):
        return value
    if not callable(getattr(value, "data_ptr", None)):
        raise ArgumentTypeError(
            f"{name}: expected a numpy array or a tensor with data_ptr(), got {type(value).__name__}; "
            f"use numpy.asarray({name}, numpy.float32)"
        )
    device = getattr(value, "device", None)
    if device is not None and device.type != "cpu":
        raise ArgumentTypeError(f"{name}: is on {device}, and libmoe computes on the CPU; use {name}.cpu()")
    dtype = _NAMED.get(str(value.dtype).partition(".")[2])
    if dtype is None:
        raise ArgumentTypeError(f"{name}: its type is {value.dtype}; use {name}.float()")
    return Memory(value.data_ptr(), dtype, tuple(value.shape), tuple(value.stride()))


def _of_numpy(name: str, value: np.ndarray[Any, Any], write: bool) -> Memory:
    dtype = _NUMPY.get(value.dtype) or _NAMED.get(value.dtype.name)
    if dtype is None or isinstance(value, np.ma.MaskedArray):
        raise ArgumentTypeError(f"{name}: its type is {value.dtype}; use {name}.astype(numpy.float32)")
    if write and not value.flags.writeable:
        raise InvalidArgumentError(f"{name}: expected an array that may be written to; use {name}.copy()")
    address = value.__array_interface__["data"][0]
    if value.flags.c_contiguous:
        return Memory(address, dtype, value.shape)
    steps = []
    for length, step in zip(value.shape, value.strides):
        # Of a single element there is no next one, wherever numpy says it is.
        steps.append(step // value.itemsize if length > 1 else 0)
        if length > 1 and (step % value.itemsize or step < 0):
            raise InvalidArgumentError(
                f"{name}: expected steps of whole elements forwards; use numpy.ascontiguousarray({name})"
            )
    return Memory(address, dtype, value.shape, tuple(steps))


def row_major(
    name: str, value: Any, shape: tuple[int, ...] | None, dtypes: tuple[str, ...], *, write: bool = False
) -> Memory:
    """Return the memory of an array of one of these types, and of that shape or any, without gaps."""
    found = memory(name, value, write=write)
    if found.dtype not in dtypes:
        raise ArgumentTypeError(f"{name}: expected {' or '.join(dtypes)}, got {found.dtype}")
    if shape is not None and found.shape != shape:
        raise InvalidArgumentError(f"{name}: expected shape {shape}, got {found.shape}")
    if found.strides is None or found.size == 0:
        return found
    whole = zip(found.shape, found.strides, gapless(found.shape))
    if any(length > 1 and step != wanted for length, step, wanted in whole):
        mend = f"numpy.ascontiguousarray({name})" if isinstance(value, np.ndarray) else f"{name}.contiguous()"
        raise InvalidArgumentError(f"{name}: expected an array without gaps; use {mend}")
    return found
