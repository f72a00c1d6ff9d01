"""What the generated declarations are made of."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, ClassVar


class Status(ctypes.c_int):
    """What a function returns that can fail."""


class Struct(ctypes.Structure):
    """A struct of the headers, and what its fields mean."""

    _words_: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    """Fields that are a word, with the words they may be."""
    _sums_: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    """Fields that are several words added up."""
    _flags_: ClassVar[frozenset[str]] = frozenset()
    """Fields that are yes or no."""
    _bytes_: ClassVar[frozenset[str]] = frozenset()
    """Fields that are a size in bytes."""
    _arrays_: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Fields that are arrays: the elements' type, and the shape as a letter for each of its parts."""


class Sized(Struct):
    """A struct that tells the library how large it was when compiled; made with the header's defaults."""

    _defaults_: ClassVar[Mapping[str, Any]] = {}
    """Those that are not 0."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **{**self._defaults_, **fields})
