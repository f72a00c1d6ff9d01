"""Keys of GGUF files: what stands before the tensors, which the library itself reads."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Mapping
from pathlib import Path as Place
from typing import Any, BinaryIO

import numpy as np

from .checkpoint import Path, place_of
from .errors import FileError, InvalidArgumentError

MAGIC = b"GGUF"
_FIXED = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_LONGEST = 1 << 28


def is_gguf(path: Path) -> bool:
    """Return whether there is a file that begins as GGUF files do."""
    try:
        with open(place_of(path), "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def gguf_files(path: Path) -> list[str]:
    """Return the GGUF files in a folder that has no config.json, in order; none of anything else."""
    place = place_of(path)
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return []
    return [] if "config.json" in names else [name for name in names if name.endswith(".gguf")]


def keys_of(path: Path) -> Mapping[str, Any]:
    """Return the keys of a GGUF file: numbers, texts, and lists of them.

    Raises
    ------
    InvalidArgumentError
        The file is none, or damaged.
    FileError
        It cannot be read.
    """
    place = place_of(path)
    try:
        status = os.stat(place)
        return _keys(place, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise FileError(f"{str(place)!r}: {error.strerror}") from None


@functools.lru_cache(maxsize=2)
def _keys(place: Place, size: int, _changed: int) -> Mapping[str, Any]:
    with open(place, "rb", buffering=1 << 20) as file:
        reader = _Reader(file, size)
        try:
            return reader.keys()
        except (struct.error, ValueError, RecursionError, MemoryError) as error:
            raise InvalidArgumentError(
                f"{str(place)!r} is no GGUF file, or is damaged ({error}): fetch or copy it again"
            ) from None


class _Reader:
    """Values of a file, one after the other."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._most = min(size, _LONGEST)

    def keys(self) -> dict[str, Any]:
        if self._bytes(4) != MAGIC:
            raise ValueError("it does not begin as GGUF files do")
        version, _, count = self._numbers("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, not 2 or 3")
        found = {}
        for _ in range(count):
            name = self._text()
            found[name] = self._value(self._numbers("<I")[0])
        return found

    def _bytes(self, count: int) -> bytes:
        if count > self._most:
            raise ValueError(f"a length of {count}")
        found = self._file.read(count)
        if len(found) != count:
            raise ValueError("it ends too early")
        return found

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _text(self) -> str:
        return self._bytes(self._numbers("<Q")[0]).decode(errors="replace")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _FIXED:
            return self._numbers("<" + _FIXED[kind])[0]
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY or depth > 2:
            raise ValueError(f"a value of type {kind}")
        own, count = self._numbers("<IQ")
        if own in _FIXED:
            dtype = np.dtype("<" + _FIXED[own]) if _FIXED[own] != "?" else np.dtype(np.bool_)
            return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()
        if count > self._most:
            raise ValueError(f"an array of {count} elements")
        return [self._value(own, depth + 1) for _ in range(count)]
