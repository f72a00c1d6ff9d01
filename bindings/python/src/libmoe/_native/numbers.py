"""Checks of numbers and words before the library sees them; every message names the argument and the mend."""

from __future__ import annotations

import ctypes
import operator
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._keywords import nearest
from ..errors import ArgumentTypeError, InvalidArgumentError

_BOOLS = (bool, np.bool_)
MANY, FEW = 24, 8  # words that are too many for a message, and how many of them it then has


def integer(name: str, value: Any, ctype: Any) -> int:
    """Return ``value`` as an int that the C type holds; ctypes itself would silently cut off high bits."""
    number = _whole(name, value)
    if ctype(number).value != number:
        low, high = _bounds(ctype)
        raise InvalidArgumentError(f"{name} = {number} is out of range: expected {low} to {high}")
    return number


def _whole(name: str, value: Any) -> int:
    if isinstance(value, _BOOLS):
        raise ArgumentTypeError(f"{name}: expected an int, got {value!r}; use a number such as {int(value)}")
    try:
        return operator.index(value)
    except TypeError:
        raise _wrong_type(name, value, "int") from None


def _wrong_type(name: str, value: Any, wanted: str) -> ArgumentTypeError:
    mend = "give a number or leave it out" if value is None else f"use {wanted}({name})"
    article = "an" if wanted == "int" else "a"
    return ArgumentTypeError(f"{name}: expected {article} {wanted}, got {type(value).__name__}; {mend}")


def _bounds(ctype: Any) -> tuple[str, str]:
    bits = 8 * ctypes.sizeof(ctype)
    if ctype(-1).value < 0:
        return f"-2^{bits - 1}", f"2^{bits - 1} - 1"
    return "0", f"2^{bits} - 1"


def count(name: str, value: Any) -> int:
    """Return ``value`` as a number of things: an int64 of at least 0."""
    number = integer(name, value, ctypes.c_int64)
    if number < 0:
        raise InvalidArgumentError(f"{name} = {number} is negative; give 0 or more")
    return number


def integers(name: str, value: Any, dtype: Any) -> NDArray[Any]:
    """Return a new array of ``value``, whose numbers are all ints that the type holds: none is cut off.

    Parameters
    ----------
    name : str
        What the argument is called in messages.
    value
        A sequence of ints, or of such sequences of one length, or an array of any integer type.
    dtype
        numpy's, of the result.
    """
    if isinstance(value, str):
        raise ArgumentTypeError(
            f"{name}: expected integers, got a str; encode the text first, for a model of bytes "
            f"with list({name}.encode())"
        )
    if isinstance(value, (bytes, bytearray)):
        value = np.frombuffer(value, np.uint8)
    try:
        found = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(f"{name}: expected integers in rows of one length ({error})") from None
    if found.size == 0 and not isinstance(value, np.ndarray):
        found = found.astype(dtype)  # [] has no numbers that are not whole
    if found.dtype.kind == "O" and all(isinstance(n, int) for n in found.flat):
        found = np.asarray(found, object)  # beyond 64 bits: refused below, by value
    elif found.dtype.kind not in "iu":
        raise ArgumentTypeError(
            f"{name}: expected integers, got {_kind(found)}; if they are whole, use "
            f"numpy.asarray({name}).astype(numpy.{np.dtype(dtype).name})"
        )
    bounds = np.iinfo(dtype)
    for index, number in ((found.argmin(), found.min()), (found.argmax(), found.max())) if found.size else ():
        if not bounds.min <= int(number) <= bounds.max:
            place = ", ".join(map(str, np.unravel_index(index, found.shape)))
            raise InvalidArgumentError(
                f"{name}[{place}] = {number} is out of range: it does not fit in {bounds.dtype}"
            )
    return np.array(found, dtype, order="C")


def _kind(array: NDArray[Any]) -> str:
    return {"b": "bool", "f": f"{array.dtype}", "U": "text", "S": "bytes"}.get(
        array.dtype.kind, str(array.dtype)
    )


def number(name: str, value: Any) -> float:
    """Return ``value`` as a float; ctypes itself would not name the argument."""
    if isinstance(value, _BOOLS):
        raise ArgumentTypeError(f"{name}: expected a float, got {value!r}; use a number such as 1.0")
    try:
        return ctypes.c_double(value).value
    except OverflowError:
        raise InvalidArgumentError(f"{name} is out of range: it does not fit in a float") from None
    except (TypeError, ValueError, RuntimeError):
        raise _wrong_type(name, value, "float") from None


def flag(name: str, value: Any) -> bool:
    """Return ``value`` as a bool; a word such as ``"false"`` would be true."""
    if isinstance(value, _BOOLS) or (isinstance(value, (int, np.integer)) and value in (0, 1)):
        return bool(value)
    raise ArgumentTypeError(f"{name}: expected True or False, got {value!r}")


_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmgtp]?)(i?)(b|bytes?)?\s*", re.IGNORECASE)


def byte_count(name: str, value: Any, ctype: Any = ctypes.c_size_t) -> int:
    """Return a number of bytes: an int, or a text such as ``"512 MiB"``, ``"1GB"`` or ``"1.5g"``.

    A float will do where it is whole, such as ``2e9``: nothing of it is rounded.  KB, MB, GB and TB count by
    1000; KiB, MiB, GiB, TiB, and the letters k, m, g, t alone, by 1024.
    """
    if isinstance(value, str):
        value = _bytes_of(name, value)
    elif isinstance(value, (float, np.floating)):
        if not float(value).is_integer():
            raise ArgumentTypeError(f"{name} = {value!r} is no whole number of bytes; use int({name})")
        value = int(value)
    size = integer(name, value, ctype)
    if size < 0:
        raise InvalidArgumentError(f"{name} = {size} is below 0")
    return size


def _bytes_of(name: str, text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidArgumentError(
            f"{name} = {text!r} is no size; use bytes, or a text such as '512 MiB' or '1GB'"
        )
    digits, unit, binary, byte = found.groups()
    if binary and not unit:
        raise InvalidArgumentError(f"{name} = {text!r} is no size; use a unit such as KiB, MiB or GiB")
    base = 1000 if unit and byte and not binary else 1024
    whole, _, fraction = digits.partition(".")
    factor = base ** _UNITS[unit.lower()]
    # In integers: a float would not hold the bytes of a large size. A part of a byte is left out.
    size: int = int(whole or "0") * factor + int(fraction or "0") * factor // 10 ** len(fraction)
    return size


def choice(name: str, value: Any, choices: Mapping[str, int]) -> int:
    """Return the enum value of a word."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name}: expected a word, got {value!r}; choose one of {_some(choices)}")
    if value not in choices:
        near = nearest(value, choices)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise InvalidArgumentError(f"{name} = {value!r}; choose one of {_some(choices)}{hint}")
    return choices[value]


def _some(choices: Mapping[str, int]) -> str:
    """Return words to choose from: all, or where these are too many the first of them, and who has all."""
    if len(choices) <= MANY:
        return ", ".join(map(repr, choices))
    where = "docs/low_bits.md" if "int4_a8" in choices else "libmoe.words"
    return f"{', '.join(map(repr, list(choices)[:FEW]))} and {len(choices) - FEW} more ({where} has all)"


def instance(name: str, value: Any, kind: type | tuple[type, ...], cure: str) -> Any:
    """Return ``value`` if it is an object of the class; else say what to do."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(f"libmoe.{each.__name__}" for each in kinds)
        raise ArgumentTypeError(f"{name}: expected a {wanted}, got {type(value).__name__}; use {cure}")
    return value


def listed(name: str, value: Any, cure: str) -> list[Any]:
    """Return the members of a sequence; a text or a mapping is none, nor is one member by itself."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise ArgumentTypeError(f"{name}: expected a sequence, got {type(value).__name__}; use {cure}")
    return list(value)


def mapping(name: str, value: Any, cure: str) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping with names as its keys."""
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{name}: expected a dict, got {type(value).__name__}; use {cure}")
    for key in value:
        if not isinstance(key, str):
            raise ArgumentTypeError(f"{name}: expected names as keys, got {key!r}")
    return value
