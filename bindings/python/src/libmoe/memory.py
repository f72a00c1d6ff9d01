"""Memory: how much a call takes, what an offloaded layer has read, and files as memory."""

from __future__ import annotations

import ctypes
import os
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ._keywords import keywords
from ._native import abi, check, fields
from ._native.library import Handle, Native, lib
from ._repr import Briefly
from .checkpoint import Path, encoded
from .context import Context, handle_of


@dataclass(frozen=True, repr=False)
class Plan(Briefly):
    """What :meth:`Layer.plan` says a call will take, in bytes: exactly what the library will ask for.

    Attributes
    ----------
    forward_bytes, backward_bytes : int
        Scratch of forward, and of backward with dx (0 without a tape).
    tape_bytes : int
        What the tape holds from forward to backward.
    total_bytes : int
        The tape and the larger of both scratches: what a memory limit bounds.
    chunk_tokens : int
        Tokens that experts compute at once.
    tape_policy : {"full", "lean"}
        Whether pre-activations are kept, or computed again in backward.
    n_tokens : int
        T.
    """

    forward_bytes: int
    backward_bytes: int
    tape_bytes: int
    total_bytes: int
    chunk_tokens: int
    tape_policy: str
    n_tokens: int

    def _told(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """One line for people, as ``moe_plan_describe`` has it."""
        plan = fields.filled(abi.moe_plan, **asdict(self))
        text = ctypes.create_string_buffer(256)
        lib.moe_plan_describe(plan, text, len(text), None)
        return text.value.decode()


def planned(layer: Handle, n_tokens: int, taped: bool, options: abi.moe_forward_options) -> Plan:
    """Ask the library, see :meth:`Layer.plan`."""
    plan = abi.moe_plan()
    lib.moe_layer_plan(layer, n_tokens, options, int(check.flag("taped", taped)), plan)
    return Plan(**{name: fields.from_c(plan, name) for name in fields.types(abi.moe_plan)})


@dataclass(frozen=True)
class OffloadStatistics:
    """What the calls of an offloaded layer have found, see :attr:`Layer.offload_statistics`.

    Attributes
    ----------
    hits, misses : int
        Experts that were needed, once for each chunk of tokens, and were in memory or not.
    bytes_read : int
        From the files, in the files' types.
    n_slots : int
        Experts for which there is room.
    """

    hits: int
    misses: int
    bytes_read: int
    n_slots: int


@keywords
class MappedFile(Native):
    """A file as memory, for parameters and optimiser states larger than memory.

    The system brings pages in as they are used, and writes them back when it needs room.  After a crash the
    file is a mixture of old and new: go on from a copy that was made after :meth:`flush`.

    Parameters
    ----------
    path : path
        A file of exactly ``size`` bytes; made, and filled with zeros, where there is none.
    size : int or str
        Bytes, also as ``"2GiB"``, at least 1.
    context : Context, optional
        By default the shared one.

    Raises
    ------
    InvalidArgumentError
        The file has another size.
    FileError
        The file cannot be made or opened.

    Examples
    --------
    >>> import libmoe, numpy, tempfile
    >>> layer = libmoe.Layer(8, 16, 4, 2, unallocated="expert_weights")
    >>> path = tempfile.mkdtemp() + "/up"
    >>> file = libmoe.MappedFile(path, 2 * 4 * 4 * 16 * 8)  # values, then gradients
    >>> data, grad = file.data.view(numpy.float32).reshape(2, 4, 16, 8)
    >>> layer.bind("experts.up.weight", data, grad)
    >>> layer.initialize()
    >>> file.flush()
    """

    def __init__(self, path: Path, size: int | str, *, context: Context | None = None) -> None:
        parent = handle_of(context)
        self._size = check.byte_count("size", size)
        self._open_handle = Handle(
            lib.moe_mapping_create,
            lib.moe_mapping_free,
            parent,
            encoded(path),
            self._size,
            keep={"context": parent},
        )
        self._path = os.fspath(path)

    _instead = "open it again from its path and size"

    def _told(self) -> str:
        return f"{self._path!r}, {self._size:,} bytes"

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes: what is written here is in the file.  Arrays made from it keep the file mapped."""
        address = ctypes.c_void_p()
        lib.moe_mapping_data(self._handle, ctypes.byref(address))
        return np.asarray(_Bytes(self._handle, address.value, self._size))

    def flush(self) -> None:
        """Bring what was written to the disk; returns when it is there.

        Raises
        ------
        FileError
            The system could not write it.
        """
        lib.moe_mapping_flush(self._handle)


class _Bytes:
    """Memory of a mapping as numpy takes it: arrays made from it keep it."""

    def __init__(self, handle: Handle, address: int | None, size: int) -> None:
        self._handle = handle
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (address, False),
        }
