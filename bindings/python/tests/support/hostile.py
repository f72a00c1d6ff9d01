"""C functions called with arguments of which one is wrong, or all sizes are, in every way it can be.

Each call is announced before it is made: the last line names the one that did not come back.  Statuses do not
matter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

from libmoe._native import abi
from libmoe._native.library import lib
from libmoe._native.struct import Sized

ROOM = 1 << 16  # bytes of an array: enough for all sizes that are not refused
INTEGERS = [-(2**63), -(2**31) - 1, -1, 0, 1, 2, 3, 5, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1]
# Any stride is good, as long as the array's size fits in 63 bits.
STRIDES = [-(2**63), -1, 0, 1, 2**60, 2**62, 2**63 - 1]
FLOATS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 5e-324, 1e-300, 0.5, 1.0, 3e38, 1e300]
NUMBERS: dict[Any, list[Any]] = {
    c_int32: [-(2**31), -1, 0, 1, 2, 3, 7, 99, 2**31 - 1],
    c_int64: INTEGERS,
    c_uint64: [0, 1, 2**56, 2**63, 2**64 - 1],
    c_size_t: [0, 1, 7, 2**63, 2**64 - 1],
    c_float: FLOATS,
    c_double: FLOATS,
}
# Of tensors of rank 3 whose dimensions say one thing and their product another, or nothing at all.
SHAPES = [
    (2**62, 4, 0), (4, 2**62, 0), (0, 2**62, 4), (2**62, 0, 4), (-1, 0, 2), (-(2**63), 1, 1),
    (2**63 - 1,) * 3, (2**31,) * 3,
]  # fmt: skip
STRUCT_SIZES = [0, 1, 8, 4096, 4104, 2**63, 2**64 - 1]
FILLINGS = [0x00, 0x7F, 0x80, 0xFF]  # of 0x7F floats are huge, of 0xFF they are NaN and integers -1

alive: list[Any] = []


def room(filling: int = 0, size: int = ROOM) -> int:
    """Return the address of new memory."""
    memory = ctypes.create_string_buffer(bytes([filling]) * size, size + 64)
    alive.append(memory)
    return (ctypes.addressof(memory) + 63) // 64 * 64


def placed(struct: ctypes.Structure, tail: int = 0) -> int:
    """Return the address of a copy of a struct; what follows it is `tail` in every byte."""
    address = room(tail, 8192)
    ctypes.memmove(address, ctypes.addressof(struct), ctypes.sizeof(struct))
    return address


def is_sized(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Sized)


def is_pointer(kind: Any) -> bool:
    return kind in (c_void_p, c_char_p) or not issubclass(kind, ctypes._SimpleCData)


def structs(struct: Any) -> Iterator[tuple[str, int]]:
    """Yield addresses of a struct's copies, each with something wrong, and what that is."""
    alive.append(dict(struct._objects or {}))  # what its pointers point to, also while they point elsewhere
    yield "tail", placed(struct, 0xFF)
    if hasattr(struct, "shape"):
        good_rank, good_shape = struct.rank, tuple(struct.shape)
        for shape in SHAPES:
            struct.rank, struct.shape = 3, (*shape, *good_shape[3:])
            yield f"shape = {shape}", placed(struct)
        struct.rank, struct.shape = good_rank, good_shape
    for name, kind, *_ in struct._fields_:
        is_function = hasattr(kind, "_restype_")  # a wrong one would be called
        if is_function or issubclass(kind, (ctypes.Array, ctypes.py_object)):
            continue
        good = getattr(struct, name)
        wrong: list[Any]
        if name == "struct_size":
            size = ctypes.sizeof(struct)
            wrong = [*STRUCT_SIZES, size - 8, size + 1, size + 8]
        elif kind in NUMBERS:
            wrong = STRIDES if "stride" in name else NUMBERS[kind]
        elif kind is c_void_p:
            wrong = [None, room() + 1, *(room(filling) for filling in FILLINGS)]
        else:  # a pointer to structs
            if kind is not c_char_p:  # whose bytes a field keeps alive, and what cast makes of them does not
                good = ctypes.cast(good, kind)  # what getattr gives is the field itself, and changes with it
            values = [("NULL", 0), ("odd", room() + 1)]
            if is_sized(kind._type_):
                inner = structs(good.contents) if good else iter(())
                values += [("0xff", room(0xFF)), *inner]
            for what, address in values:
                setattr(struct, name, ctypes.cast(address, kind))
                yield f"{name}: {what}", placed(struct)
            setattr(struct, name, good)
            continue
        for value in wrong:
            setattr(struct, name, value)
            tails = (0x00, 0xFF) if name == "struct_size" else (0x00,)
            for tail in tails:
                yield f"{name} = {value}, tail {tail}", placed(struct, tail)
        setattr(struct, name, good)


def wrong_values(kind: Any, good: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an argument can be instead of `good`."""
    if kind in NUMBERS:
        for value in NUMBERS[kind]:
            yield str(value), value
        return
    yield "NULL", None
    if isinstance(good, bytes):
        yield from (("empty", b""), ("long", b"a" * 5000), ("no text", b"\xff\xfe"), ("a folder", b"/"))
    elif isinstance(good, ctypes.Structure):
        yield "odd", placed(good) + 1
        yield from structs(good)
    elif good is not None:
        yield "odd", good + 1
        # A handle's memory is the library's: what it holds is as it should be.
        if kind in (c_void_p, c_char_p) or not issubclass(kind._type_, (ctypes.Structure, ctypes._Pointer)):
            for filling in FILLINGS:
                yield hex(filling), room(filling)


class Function:
    """A C function and good arguments for it."""

    def __init__(
        self,
        name: str,
        good: Callable[[], list[Any]],
        frees: str | None = None,
    ) -> None:
        declared = abi.FUNCTIONS[name][1]
        address = ctypes.cast(getattr(lib, name), c_void_p).value
        plain = [c_void_p if is_pointer(kind) else kind for kind in declared]
        assert address
        self.name, self.kinds, self.good = name, declared, good
        self.frees = frees  # what the last argument gets
        self.call = ctypes.CFUNCTYPE(c_int32, *plain)(address)

    def attempt(self, arguments: list[Any], what: str) -> int:
        """Announce and make one call."""
        print(f"{self.name}: {what}", flush=True)
        found = self.call(*(placed(a) if isinstance(a, ctypes.Structure) else a for a in arguments))
        assert 0 <= found <= 7
        if self.frees and found == 0:
            handle = c_void_p.from_address(arguments[-1]).value
            getattr(lib, self.frees)(ctypes.cast(handle or 0, self.kinds[-1]._type_))
        return int(found)

    def overlap(self, arrays: list[int]) -> None:
        """Give arrays in structs the memory of others, there and among the arguments."""
        for i, good in enumerate(self.good()):
            if not isinstance(good, ctypes.Structure):
                continue
            fields = [name for name, kind, *_ in good._fields_ if kind is c_void_p]
            for field in fields:
                for j in arrays:
                    arguments = self.good()
                    setattr(arguments[i], field, arguments[j])
                    self.attempt(arguments, f"argument {i}.{field} is argument {j}")
                for other in fields:
                    arguments = self.good()
                    setattr(arguments[i], field, getattr(arguments[i], other) or room())
                    setattr(arguments[i], other, getattr(arguments[i], field))
                    self.attempt(arguments, f"argument {i}.{field} is argument {i}.{other}")

    def torture(self) -> None:
        kept = len(alive)
        assert self.attempt(self.good(), "good") == 0, lib.moe_last_error_message()
        for i, kind in enumerate(self.kinds):
            for what, value in wrong_values(kind, self.good()[i]):
                arguments = self.good()
                arguments[i] = value
                self.attempt(arguments, f"argument {i} is {what}")
            del alive[kept:]
        arrays = [i for i, kind in enumerate(self.kinds) if kind is c_void_p]
        for i in arrays:  # one array twice
            for j in arrays:
                arguments = self.good()
                arguments[i] = arguments[j]
                self.attempt(arguments, f"argument {i} is argument {j}")
        self.overlap(arrays)
        sizes = [i for i, kind in enumerate(self.kinds) if kind is c_int64]
        if len(sizes) > 1:
            for value in [*INTEGERS, 2**31 - 1]:
                arguments = self.good()
                for i in sizes:
                    arguments[i] = value
                self.attempt(arguments, f"all sizes are {value}")
        del alive[kept:]
