"""safetensors files: read without a copy where numpy has the type, written whole or not at all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path as Place
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from ._keywords import keywords
from ._native import abi, check
from ._native.foreign import cure
from ._native.library import Handle, Native, lib
from .context import Context, handle_of
from .errors import ArgumentTypeError, InvalidArgumentError

Path = Union[str, "os.PathLike[str]"]

# Of the elements as a file has them; what numpy has no type for is bits.
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
    "other": np.uint8,
    "f4": np.uint8,
    "f6_e2m3": np.uint8,
    "f6_e3m2": np.uint8,
    "c64": np.complex64,
    "f8_e4m3fnuz": np.uint8,
    "f8_e5m2fnuz": np.uint8,
}
# Of GGUF files: blocks of numbers, which are bytes.
_BLOCKS = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("iq4_nl", "iq4_xs", "mxfp4", "nvfp4"),
)
_NUMPY.update(dict.fromkeys(_BLOCKS, np.uint8))
# Of elements that are no bytes; then all whose numbers nobody here knows.
_BYTES = ("other", "f4", "f6_e2m3", "f6_e3m2")
_BITS = (*_BYTES, "f8_e4m3fnuz", "f8_e5m2fnuz")
# What comes as float32, because its bits would be taken for whole numbers.
_CONVERTED = ("bf16", "f8_e4m3", "f8_e5m2", "f8_e8m0", *_BLOCKS)
# Types of the package ml_dtypes, which numpy calls by these names.
_NAMED = {"float8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2", "float8_e8m0fnu": "f8_e8m0"}
_WORDS = {number: word for word, number in abi.DTYPE.items()}


def encoded(path: Path) -> bytes:
    """Return the path as C takes it."""
    try:
        bytes_ = os.fsencode(path)
    except TypeError:
        raise ArgumentTypeError(f"path: expected a str or path, got {type(path).__name__}") from None
    if b"\0" in bytes_:
        raise InvalidArgumentError(f"path: {path!r} contains the character 0")
    return bytes_


def place_of(path: Path) -> Place:
    """Return the path as Python opens it; refused where :func:`encoded` refuses it."""
    return Place(os.fsdecode(encoded(path)))


class _Memory:
    """Memory of a mapping as numpy takes it: arrays made from it keep it, and it keeps the checkpoint."""

    def __init__(self, handle: Handle, tensor: abi.moe_stored_tensor) -> None:
        self._handle = handle
        word = _WORDS[tensor.dtype]
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(_NUMPY[word]).str,
            "shape": (tensor.size,) if word in _BYTES + _BLOCKS else tuple(tensor.shape[: tensor.rank]),
            "data": (tensor.data, True),
        }


class StoredArray(np.ndarray):
    """An array whose type in the file numpy does not tell: written by :func:`save`, it is what it was there.

    Copies, slices and results of computing with it are like any other array of their dtype.
    """

    _bits: NDArray[Any] | None
    _tensor: abi.moe_stored_tensor
    _handle: Handle  # of the checkpoint: the description's texts are its memory

    def __array_finalize__(self, source: Any) -> None:
        """Forget the file: this is another array."""
        self._bits = None

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Return results as usual."""
        return array[()] if return_scalar else np.asarray(array)


def _stored(
    values: NDArray[Any], bits: NDArray[Any], tensor: abi.moe_stored_tensor, handle: Handle
) -> StoredArray:
    """Return values, which are read-only, that know their bits in the file."""
    array = values.view(StoredArray)
    array._bits, array._tensor, array._handle = bits, tensor, handle
    return array


@keywords
class Checkpoint(Native, Mapping[str, "NDArray[Any]"]):
    """A safetensors file, several that an index file names, or a GGUF file: names to read-only arrays.

    The arrays hold the numbers.  Where numpy has their type they are the file itself, mapped: nothing is read
    before it is used, and they keep the file open, also after the checkpoint is closed; it may be replaced
    meanwhile, but not changed in place.  bfloat16 and 8-bit floats come as copies in float32, exactly, and
    so do the blocks of GGUF, as each format defines its numbers; :meth:`raw` has their bits.

    Parameters
    ----------
    path : path
        A safetensors file, an index file, whose name ends in ``.json``, or a GGUF file, of several the first.
    context : Context, optional
        By default the shared one.  The checkpoint keeps it alive.

    Raises
    ------
    FileError
        The file cannot be opened.
    InvalidArgumentError
        It is no such file, or damaged; the text names the tensor or the byte, or says what the file is.

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

    def __repr__(self) -> str:
        """Return the path and the number of tensors."""
        tensors = "closed" if self._open_handle is None else f"{len(self)} tensors"
        return f"Checkpoint({self._path!r}, {tensors})"

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a tensor's numbers; bfloat16 and 8-bit floats as float32.

        Raises
        ------
        KeyError
            There is none; the text has the nearest name there is.
        InvalidArgumentError
            numpy and libmoe have no such type; :meth:`raw` has the bytes.
        FileError
            The file has been cut short or changed since it was opened.
        """
        index, tensor = self._named(name)
        word = _WORDS[tensor.dtype]
        if word in _BITS:
            raise InvalidArgumentError(
                f"{name}: its dtype is {tensor.dtype_name.decode()}, which numpy and libmoe do not have; "
                f"raw({name!r}) gives its bytes"
            )
        bits = self._bits(index, tensor)
        if word in _CONVERTED:
            return _stored(self._read(index, tensor, "f32"), bits, tensor, self._handle)
        return bits if word == "u16" else np.asarray(bits)

    def raw(self, name: str) -> NDArray[Any]:
        """Return a tensor as the file has it: bfloat16 as uint16, 8-bit floats as uint8.

        Of 4 or 6 bits, of blocks, and of a type that libmoe does not know, these are its bytes, in one
        dimension.
        :func:`save` writes the array as the type it was.

        Raises
        ------
        KeyError
            There is none; the text has the nearest name there is.
        FileError
            The file has been cut short or changed since it was opened.
        """
        index, tensor = self._named(name)
        return self._bits(index, tensor)

    def dtype(self, name: str) -> str:
        """Return what a tensor's elements are: ``"f32"``, ``"bf16"``, ``"f16"``, ``"i64"`` and so on."""
        tensor = self._named(name)[1]
        return str(tensor.dtype_name.decode().lower())

    def _bits(self, index: int, tensor: abi.moe_stored_tensor) -> NDArray[Any]:
        """Return the elements as they are: mapped, or copied where they lie between their addresses."""
        word = _WORDS[tensor.dtype]
        array = np.asarray(_Memory(self._handle, tensor))
        if not array.flags.aligned:
            array = self._read(index, tensor, word)
        return _stored(array, array, tensor, self._handle)

    def _read(self, index: int, tensor: abi.moe_stored_tensor, word: str) -> NDArray[Any]:
        array = np.empty(tuple(tensor.shape[: tensor.rank]), _NUMPY[word])
        dtype = abi.DTYPE[word]
        lib.moe_checkpoint_read_tensor(self._handle, index, dtype, array.ctypes.data, array.nbytes)
        array.flags.writeable = False
        return array

    def _named(self, name: str) -> tuple[int, abi.moe_stored_tensor]:
        index = self._index(name) if isinstance(name, str) else None
        if index is None:
            raise KeyError(self._missing(name) if isinstance(name, str) and "\0" not in name else name)
        return index, self._tensor(index)

    def _missing(self, name: str) -> str:
        """Return what there is in place of it."""
        try:
            wanted = name.encode("utf-8", "surrogatepass")
            lib.moe_checkpoint_find_tensor(self._handle, wanted, ctypes.byref(ctypes.c_int64()))
        except InvalidArgumentError as error:
            return str(error)
        return name

    def _tensor(self, index: int) -> abi.moe_stored_tensor:
        tensor = abi.moe_stored_tensor()
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
        Replaced if it is there, with its mode and owner; of a link, the file behind it.  With a
        ``max_shard_size`` the index, ``NAME.safetensors.index.json``.
    tensors : mapping of str to ndarray
        Floats of 2, 4 and 8 bytes, integers and bool, of at most 8 dimensions, C-contiguous; ``uint16`` is
        bfloat16, as everywhere here; arrays of ml_dtypes are its bfloat16 and 8-bit floats.  Arrays of a
        :class:`Checkpoint`, or the checkpoint itself, are written as the types they have in its file.
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
    size = check.byte_count("max_shard_size", max_shard_size, ctypes.c_int64)
    if isinstance(tensors, Checkpoint):
        tensors = {name: tensors.raw(name) for name in tensors}
    check.mapping("tensors", tensors, "a dict of arrays by name")
    described = (abi.moe_stored_tensor * len(tensors))()
    for index, (name, array) in enumerate(tensors.items()):
        described[index] = _described(name, array)
    handle = handle_of(context)
    if size == 0:
        lib.moe_checkpoint_write(handle, encoded(path), described, len(described))
    else:
        lib.moe_checkpoint_write_sharded(handle, encoded(path), described, len(described), size)


def _described(name: str, array: NDArray[Any]) -> abi.moe_stored_tensor:
    if not isinstance(array, np.ndarray):
        raise ArgumentTypeError(
            f"tensors[{name!r}]: expected a numpy array, got {type(array).__name__}; "
            f"use {cure('it', array, 'f32', False)}"
        )
    if "\0" in name:
        raise InvalidArgumentError(f"tensors: {name!r} contains the character 0")
    if isinstance(array, StoredArray) and array._bits is not None:
        stored = array._tensor
        return abi.moe_stored_tensor(
            name=name.encode(),
            dtype=stored.dtype,
            rank=stored.rank,
            shape=stored.shape,
            data=array._bits.ctypes.data,
            size=stored.size,
            dtype_name=stored.dtype_name,
        )
    check.contiguous(f"tensors[{name!r}]", array)
    if array.ndim > 8:
        raise InvalidArgumentError(f"tensors[{name!r}]: expected at most 8 dimensions, got {array.ndim}")
    return abi.moe_stored_tensor(
        name=name.encode(),
        dtype=abi.DTYPE[_word(name, array)],
        rank=array.ndim,
        shape=array.shape,
        data=array.ctypes.data,
    )


def _word(name: str, array: NDArray[Any]) -> str:
    if check.dtype_of(array) == "bf16":
        return "bf16"
    if array.dtype.name in _NAMED:
        return _NAMED[array.dtype.name]
    for word, dtype in _NUMPY.items():
        if array.dtype == dtype:
            return word
    raise ArgumentTypeError(f"tensors[{name!r}]: {array.dtype} cannot be saved; use float32")
