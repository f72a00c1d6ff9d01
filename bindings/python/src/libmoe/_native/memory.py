"""Where an array's elements are, whoever made the array: numpy, torch, or an address and a shape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentTypeError, InvalidArgumentError
from .foreign import TYPES, cure

_NUMPY = {np.dtype(each): word for word in ("f32", "bf16", "f16", "i32", "i64") for each in TYPES[word].types}
_NAMED = {TYPES[word].name: word for word in ("f32", "bf16", "f16", "i32", "i64")} | {"uint8": "u8"}
_WORDS = {word: name for name, word in _NAMED.items()}
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


def shown(shape: Iterable[Any]) -> str:
    """Return a shape as messages have it: [3, K]."""
    return f"[{', '.join(map(str, shape))}]"


def memory(
    name: str, value: Any, *, write: bool = False, dtypes: tuple[str, ...] = ("f32", "bf16", "f16")
) -> Memory:
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
    dtypes : tuple of str
        What it may be.
    """
    if isinstance(value, np.ndarray):
        found = _of_numpy(name, value, write, dtypes)
    elif isinstance(value, Memory):
        found = value
    elif callable(getattr(value, "data_ptr", None)):
        found = _of_tensor(name, value, dtypes)
    else:
        raise ArgumentTypeError(
            f"{name}: expected a numpy array or a tensor of {_named(dtypes)}, got {type(value).__name__}; "
            f"use {_made(name, value, dtypes, write)}"
        )
    if found.dtype not in dtypes:
        raise _mistyped(name, value, _WORDS[found.dtype], dtypes)
    return found


def _named(dtypes: tuple[str, ...]) -> str:
    return " or ".join(_WORDS[word] for word in dtypes)


def _made(name: str, value: Any, dtypes: tuple[str, ...], write: bool) -> str:
    return "numpy.zeros(size, numpy.uint8)" if dtypes == ("u8",) else cure(name, value, dtypes[0], write)


def _mistyped(name: str, value: Any, has: Any, dtypes: tuple[str, ...]) -> ArgumentTypeError:
    """Return what to say of an array of another type; bfloat16 is what numpy has no word for."""
    word = _WORDS[dtypes[0]]
    mend = f"{name}.astype(numpy.{word})" if isinstance(value, np.ndarray) else f"{name}.to(torch.{word})"
    if isinstance(value, np.ndarray) and word == "bfloat16":
        mend = f"libmoe.to_bfloat16({name})"
    if isinstance(value, Memory):
        mend = f"memory of type {dtypes[0]!r}"
    return ArgumentTypeError(f"{name}: expected {_named(dtypes)}, got {has}; use {mend}")


def _of_tensor(name: str, value: Any, dtypes: tuple[str, ...]) -> Memory:
    device = getattr(value, "device", None)
    if device is not None and device.type != "cpu":
        raise ArgumentTypeError(f"{name}: is on {device}, and libmoe computes on the CPU; use {name}.cpu()")
    dtype = _NAMED.get(str(value.dtype).partition(".")[2])
    if dtype is None:
        raise _mistyped(name, value, value.dtype, dtypes)
    return Memory(value.data_ptr(), dtype, tuple(value.shape), tuple(value.stride()))


def _of_numpy(name: str, value: np.ndarray[Any, Any], write: bool, dtypes: tuple[str, ...]) -> Memory:
    # A name says nothing of the order of bytes: '>f4' is float32 by name.
    dtype = (_NUMPY.get(value.dtype) or _NAMED.get(value.dtype.name)) if value.dtype.isnative else None
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentTypeError(f"{name}: expected a plain array, got a masked one; use {name}.filled(0)")
    if dtype is None:
        raise _mistyped(name, value, value.dtype, dtypes)
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
    found = memory(name, value, write=write, dtypes=dtypes)
    if shape is not None and found.shape != shape:
        raise InvalidArgumentError(f"{name}: expected shape {shown(shape)}, got {shown(found.shape)}")
    if found.strides is None or found.size == 0:
        return found
    whole = zip(found.shape, found.strides, gapless(found.shape))
    if any(length > 1 and step != wanted for length, step, wanted in whole):
        mend = f"numpy.ascontiguousarray({name})" if isinstance(value, np.ndarray) else f"{name}.contiguous()"
        raise InvalidArgumentError(f"{name}: expected an array without gaps; use {mend}")
    return found
