"""What forward leaves for backward."""

from __future__ import annotations

from ._native.check import Array
from ._native.library import Handle, Native, lib
from ._native.numbers import instance
from ._repr import brief


class Tape(Native):
    """What forward leaves for backward.  Made by :meth:`Layer.tape`, filled again at every forward.

    It also holds the x of that forward, which must not change until backward.  It serves one thread at a
    time, may outlive its layer, and keeps its memory, that of the largest call so far, until it is closed or
    dropped.
    """

    def __init__(self, layer: Native) -> None:
        handle = instance("layer", layer, Native, "layer.tape()")._handle
        context = handle.keep["context"]
        self._open_handle = Handle(lib.moe_tape_create, lib.moe_tape_free, handle, keep={"context": context})
        self._sequences = 1  # of the forward that filled it

    _instead = "make one with layer.tape() and run forward again"

    def _told(self) -> str:
        x = self._x
        return "empty" if x is None else f"of x: {brief(x)}"

    @property
    def _x(self) -> Array | None:
        """The x of the forward that filled the tape; None while it is empty."""
        x: Array | None = self._handle.keep.get("x")
        return x

    @_x.setter
    def _x(self, x: Array | None) -> None:
        self._handle.keep["x"] = x
