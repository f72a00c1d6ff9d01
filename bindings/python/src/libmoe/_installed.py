"""Where C and C++ programs find the library that this package has loaded, and its headers."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ._native.library import lib
from .errors import FileError


def library() -> Path:
    """Return the shared library: the file itself, whatever name or link it was loaded by."""
    address = ctypes.cast(lib.moe_version, ctypes.c_void_p).value or 0
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:  # begin-end mode offset device inode path
            begin, _, end = line.partition(" ")[0].partition("-")
            if int(begin, 16) <= address < int(end, 16):
                return Path(line.rstrip("\n").split(None, 5)[5])
    raise FileError(f"the system does not tell where {lib._name} is")


def include_dir() -> Path:
    """Return the folder of ``moe.h``, ``moe_model.h`` and ``moe.hpp``."""
    return _beside(library().parents[1] / "include", "moe.h")


def cmake_dir() -> Path:
    """Return the folder in which CMake's ``find_package(libmoe)`` looks with ``libmoe_DIR``."""
    return _beside(library().parent / "cmake" / "libmoe", "libmoe-config.cmake")


def _beside(folder: Path, file: str) -> Path:
    if not (folder / file).exists():
        raise FileError(
            f"there is no {folder / file}: {library()}, which is in use, stands alone; install libmoe "
            "whole, by its wheel or by `make install`, or unset LIBMOE_LIBRARY if it names that library"
        )
    return folder
