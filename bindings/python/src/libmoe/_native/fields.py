"""Python's values in the fields of C structs, and back, by what the header says that each field is."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any, Optional, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import abi, check
from .struct import Struct

AnyStruct = TypeVar("AnyStruct", bound=Struct)
Shapes = Mapping[str, tuple[int, ...]]
"""What the letters of arrays' shapes stand for: ``{"T": (3, 5), "K": (2,)}``."""

_ELEMENTS = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "mask": np.uint8}
_BIAS = {None: abi.BIAS["default"], False: abi.BIAS["off"], True: abi.BIAS["on"]}


@functools.cache
def types(struct: type[Struct]) -> Mapping[str, Any]:
    """Return the types of a struct's fields, without its size and what is reserved."""
    known = ((field[0], field[1]) for field in struct._fields_)
    return {name: kind for name, kind in known if name != "struct_size" and not name.startswith("reserved")}


def filled(struct: type[AnyStruct], shapes: Shapes | None = None, **values: Any) -> AnyStruct:
    """Return a struct with these values, each checked; a message names it as it is called here.

    Arrays are the caller's, who keeps them alive; a struct, a handle or an address is taken as it is.
    """
    converters = _converters(struct)
    return struct(**{name: converters[name](name, value, shapes) for name, value in values.items()})


def to_c(struct: type[Struct], field: str, value: Any, owner: str = "", shapes: Shapes | None = None) -> Any:
    """Return a value as the field holds it; messages call it by its owner and the field."""
    return _converters(struct)[field](owner + field, value, shapes)


Converter = Callable[[str, Any, Optional[Shapes]], Any]


@functools.cache
def _converters(struct: type[Struct]) -> Mapping[str, Converter]:
    """Return what makes a field of a value, for each field: looked up once, since calls are short."""
    return {field: _converter(struct, field, kind) for field, kind in types(struct).items()}


def _converter(struct: type[Struct], field: str, kind: Any) -> Converter:
    if field in struct._words_:
        words = struct._words_[field]
        if words is abi.BIAS:
            return lambda name, value, _: _BIAS[None if value is None else check.flag(name, value)]
        return lambda name, value, _: check.choice(name, value, words)
    if field in struct._sums_:
        return lambda name, value, _: _sum(name, value, struct._sums_[field])
    if field in struct._flags_:
        return lambda name, value, _: check.flag(name, value)
    if field in struct._arrays_:
        return functools.partial(_address, *struct._arrays_[field])
    if kind in (ctypes.c_float, ctypes.c_double):
        return lambda name, value, _: check.number(name, value)
    if field in struct._bytes_:
        return lambda name, value, _: check.byte_count(name, value)
    if kind in (ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64):
        return lambda name, value, _: check.integer(name, value, kind)
    return lambda name, value, _: value


def _sum(name: str, value: Any, words: Mapping[str, int]) -> int:
    listed = [value] if isinstance(value, str) else check.listed(name, value, "a tuple of words")
    return sum({check.choice(name, word, words) for word in listed})


def _address(elements: str, letters: str, name: str, value: Any, shapes: Shapes | None) -> Any:
    if value is None or shapes is None:
        return value
    shape = sum((shapes[letter] for letter in letters), ())
    dtype, _, written = elements.partition(", ")
    return check.address(name, value, shape, write=bool(written), dtype=dtype)


def room(struct: type[Struct], shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Return new arrays for the library to fill: those of a struct whose shape is known."""
    return {
        name: np.empty([size for letter in letters for size in shapes[letter]], dtype)
        for name, letters, dtype in _rooms(struct)
        if all(map(shapes.__contains__, letters))
    }


@functools.cache
def _rooms(struct: type[Struct]) -> list[tuple[str, str, Any]]:
    """Return name, shape in letters and type of a struct's arrays."""
    listed = struct._arrays_.items()
    return [(name, letters, _ELEMENTS[elements.partition(", ")[0]]) for name, (elements, letters) in listed]


def from_c(struct: Struct, field: str) -> Any:
    """Return what :func:`to_c` would make this field's number of."""
    value = getattr(struct, field)
    if field in struct._words_:
        words = struct._words_[field]
        pairs = _BIAS.items() if words is abi.BIAS else words.items()
        return next(word for word, number in pairs if number == value)
    if field in struct._sums_:
        return tuple(word for word, number in struct._sums_[field].items() if value & number)
    if field in struct._flags_:
        return bool(value)
    return shortest(value) if types(type(struct))[field] is ctypes.c_float else value


def shortest(value: float) -> float:
    """Return the shortest decimal number that is this float32: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(value)))
