"""A record of which experts the tokens of a call used."""

from __future__ import annotations

import ctypes

import numpy as np

from ._keywords import keywords
from ._native.library import Handle, Native, lib
from .context import Context, handle_of
from .errors import ArgumentTypeError


@keywords
class Routing(Native):
    """The experts that the tokens of one call used: recorded by one forward, replayed by others.

    A replayed call makes no choices of its own; the router still weighs.  So a later version of the weights,
    another program or the training after an inference can use the experts that were used before.  A new
    record is empty; it keeps its memory, that of the largest call so far, until it is closed or dropped.

    Parameters
    ----------
    context : Context, optional
        By default the shared one.  The record keeps it alive.

    Raises
    ------
    OutOfMemoryError
        There is no memory.

    Examples
    --------
    >>> import libmoe, numpy
    >>> layer, routing = libmoe.Layer(64, 256, n_experts=8, top_k=2), libmoe.Routing()
    >>> x = numpy.ones((5, 64), numpy.float32)
    >>> first = layer.forward(x, record=routing)
    >>> saved = routing.save()  # pathlib.Path(...).write_bytes(saved) makes a file of it
    >>> len(saved)  # 4 bytes for each of 5 * 2 choices
    72
    >>> routing.load(saved)
    >>> again = layer.forward(x, replay=routing)
    >>> bool((again.y == first.y).all())
    True
    """

    def __init__(self, *, context: Context | None = None) -> None:
        parent = handle_of(context)
        self._open_handle = Handle(
            lib.moe_routing_create, lib.moe_routing_free, parent, keep={"context": parent}
        )

    _instead = "pickle the bytes that its save() returns, and load them into another"

    def save(self) -> bytes:
        """Return the record as 32 bytes and 4 for each choice, the same on every machine.

        Raises
        ------
        BadStateError
            The record is closed.
        """
        size = ctypes.c_size_t()
        lib.moe_routing_saved_size(self._handle, ctypes.byref(size))
        saved = np.empty(size.value, np.uint8)
        lib.moe_routing_save(self._handle, saved.ctypes.data, saved.size)
        return saved.tobytes()

    def load(self, saved: bytes | bytearray | memoryview) -> None:
        """Become the record that :meth:`save` gave these bytes of.

        Parameters
        ----------
        saved : bytes, bytearray or memoryview
            All of them.

        Raises
        ------
        InvalidArgumentError
            They are no record, cut off or changed; this record is as it was.
        OutOfMemoryError
            There is no memory; this record is as it was.
        BadStateError
            The record is closed.
        """
        if not isinstance(saved, (bytes, bytearray, memoryview)):
            raise ArgumentTypeError(
                f"saved: expected bytes, got {type(saved).__name__}; use what Routing.save returned"
            )
        memory = np.frombuffer(saved, np.uint8)
        lib.moe_routing_load(self._handle, memory.ctypes.data, memory.size)
