"""safetensors files: read without a copy, written whole or not at all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from . import _abi, _check
from ._foreign import cure
from ._keywords import keywords
from ._library import Handle, Native, lib
from .context import Context, handle_of
from .errors import ArgumentTypeError, InvalidArgumentError

Path = Union[str, "os.PathLike[str]"]

# What numpy has no type for comes as bits.
_NUMPY: dict[str, Any] = {
    "f32": np.float32,
    "bf16": np.uint16,
    "f16": np.float16,
    "f64": np.float64,
    "i64": np.int64,
    "i32": np.int32,
    "i16": np.int16,
    "i8": np.int8,
    "u64": np.uint64,
    "u32": np.uint32,
    "u16": np.uint16,
    "u8": np.uint8,
    "bool": np.bool_,
    "f8_e4m3": np.uint8,
    "f8_e5m2": np.uint8,
    "f8_e8m0": np.uint8,
}
_WORDS = {number: word for word, number in _abi.DTYPE.items()}


def encoded(path: Path) -> bytes:
    """Return the path as C takes it."""
    try:
        bytes_ = os.fsencode(path)
    except TypeError:
        raise ArgumentTypeError(f"path: expected a str or path, got {type(path).__name__}") from None
    if b"\0" in bytes_:
        raise InvalidArgumentError(f"path: {path!r} contains the character 0")
    return bytes_


class _Memory:
    """Memory of a mapping as numpy takes it: arrays made from it keep it, and it keeps the checkpoint."""

    def __init__(self, handle: Handle, tensor: _abi.moe_stored_tensor) -> None:
        self._handle = handle
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(_NUMPY[_WORDS[tensor.dtype]]).str,
            "shape": tuple(tensor.shape[: tensor.rank]),
            "data": (tensor.data, True),
        }


@keywords
class Checkpoint(Native, Mapping[str, "NDArray[Any]"]):
    """A safetensors file, or several that an index file names, as a mapping of names to read-only arrays.

    The arrays are the file itself, mapped: nothing is read before it is used.  They keep the file open, also
    after the checkpoint is closed; it may be replaced meanwhile, but not changed in place.

    Parameters
    ----------
    path : path
        A safetensors file, or an index file, whose name ends in ``.json``.
    context : Context, optional
        By default the shared one.  The checkpoint keeps it alive.

    Raises
    ------
    FileError
        The file cannot be opened.
    InvalidArgumentError
        It is no such file, or damaged; the text names the tensor or the byte.

    Examples
    --------
    >>> import libmoe, numpy, tempfile
    >>> path = tempfile.mkdtemp() + "/table.safetensors"
    >>> libmoe.save(path, {"table": numpy.arange(6, dtype=numpy.float32).reshape(2, 3)})
    >>> with libmoe.Checkpoint(path) as checkpoint:
    ...     list(checkpoint), checkpoint.dtype("table"), float(checkpoint["table"].sum())
    (['table'], 'f32', 15.0)
    """

    def __init__(self, path: Path, *, context: Context | None = None) -> None:
        parent = handle_of(context)
        self._open_handle = Handle(
            lib.moe_checkpoint_open,
            lib.moe_checkpoint_free,
            parent,
            encoded(path),
            keep={"context": parent},
        )
        self._path = os.fspath(path)

    _instead = "open it again from its path: libmoe.Checkpoint(path)"

    def _told(self) -> str:
        return f"{self._path!r}, {len(self)} tensors"

    def __len__(self) -> int:
        """Return the number of tensors."""
        count = ctypes.c_int64()
        lib.moe_checkpoint_tensor_count(self._handle, ctypes.byref(count))
        return count.value

    def __iter__(self) -> Iterator[str]:
        """Return the names, in the order of their bytes."""
        for index in range(len(self)):
            yield self._tensor(index).name.decode()

    def __contains__(self, name: object) -> bool:
        """Return whether there is a tensor called so."""
        return isinstance(name, str) and self._index(name) is not None

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a tensor; bfloat16 as uint16, 8-bit numbers as uint8: see :meth:`dtype`."""
        tensor = self._named(name)
        return np.asarray(_Memory(self._handle, tensor))

    def dtype(self, name: str) -> str:
        """Return what a tensor's elements are: ``"f32"``, ``"bf16"``, ``"f16"``, ``"i64"`` and so on."""
        return _WORDS[self._named(name).dtype]

    def _named(self, name: str) -> _abi.moe_stored_tensor:
        index = self._index(name) if isinstance(name, str) else None
        if index is None:
            raise KeyError(name)
        return self._tensor(index)

    def _tensor(self, index: int) -> _abi.moe_stored_tensor:
        tensor = _abi.moe_stored_tensor()
        lib.moe_checkpoint_tensor(self._handle, index, ctypes.byref(tensor))
        return tensor

    def _index(self, name: str) -> int | None:
        wanted, low, high = name.encode("utf-8", "surrogatepass"), 0, len(self)
        while low < high:
            middle = (low + high) // 2
            found = self._tensor(middle).name
            if found == wanted:
                return middle
            low, high = (middle + 1, high) if found < wanted else (low, middle)
        return None


@keywords
def save(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    max_shard_size: int | str = 0,
    context: Context | None = None,
) -> None:
    """Write arrays to a safetensors file, or to several with an index; whole or not at all.

    Parameters
    ----------
    path : path
        Replaced if it is there.  With a ``max_shard_size`` the index, ``NAME.safetensors.index.json``.
    tensors : mapping of str to ndarray
        Floats of 2, 4 and 8 bytes, integers and bool, of at most 8 dimensions, C-contiguous; ``uint16`` is
        bfloat16, as everywhere here.
    max_shard_size : int or str
        Bytes, also as ``"4GB"``, of tensors in one file at most, but for a file of one larger tensor: the
        files are ``NAME-00001-of-0000N.safetensors``, and those of an index that is replaced are removed.
        0 writes one file.
    context : Context, optional
        By default the shared one.

    Raises
    ------
    TypeError, ValueError
        An array has the wrong type or layout.
    FileError
        The file cannot be written; ``path`` is as it was.
    """
    size = _check.byte_count("max_shard_size", max_shard_size, ctypes.c_int64)
    _check.mapping("tensors", tensors, "a dict of arrays by name")
    described = (_abi.moe_stored_tensor * len(tensors))()
    for index, (name, array) in enumerate(tensors.items()):
        if not isinstance(array, np.ndarray):
            raise ArgumentTypeError(
                f"tensors[{name!r}]: expected a numpy array, got {type(array).__name__}; "
                f"use {cure('it', array, 'f32', False)}"
            )
        if "\0" in name:
            raise InvalidArgumentError(f"tensors: {name!r} contains the character 0")
        _check.contiguous(f"tensors[{name!r}]", array)
        if array.ndim > 8:
            raise InvalidArgumentError(f"tensors[{name!r}]: expected at most 8 dimensions, got {array.ndim}")
        described[index] = _abi.moe_stored_tensor(
            name=name.encode(),
            dtype=_abi.DTYPE[_word(name, array)],
            rank=array.ndim,
            shape=array.shape,
            data=array.ctypes.data,
        )
    handle = handle_of(context)
    if size == 0:
        lib.moe_checkpoint_write(handle, encoded(path), described, len(described))
    else:
        lib.moe_checkpoint_write_sharded(handle, encoded(path), described, len(described), size)


def _word(name: str, array: NDArray[Any]) -> str:
    if _check.dtype_of(array) == "bf16":
        return "bf16"
    for word, dtype in _NUMPY.items():
        if array.dtype == dtype:
            return word
    raise ArgumentTypeError(f"tensors[{name!r}]: {array.dtype} cannot be saved; use float32")
