"""Generation: what a model has read so far."""

from __future__ import annotations

import ctypes

from ._keywords import keywords
from ._native import check
from ._native.library import Handle, Native, lib


@keywords
class Cache(Native):
    """Keys and values of the tokens so far, of sequences that grow together.  Made by :meth:`Model.cache`.

    Attributes
    ----------
    n_sequences, max_length : int
        B, and how many tokens of each there is room for.
    """

    def __init__(self, model: Handle, n_sequences: int, max_length: int) -> None:
        self.n_sequences = check.integer("n_sequences", n_sequences, ctypes.c_int64)
        self.max_length = check.integer("max_length", max_length, ctypes.c_int64)
        self._open_handle = Handle(
            lib.moe_cache_create,
            lib.moe_cache_free,
            model,
            self.n_sequences,
            self.max_length,
            keep={"context": model.keep["context"]},
        )
        self._length = 0

    _instead = "make one with model.cache(...) and read the tokens again"

    def _told(self) -> str:
        return f"{self.n_sequences} sequences, {self._length} of {self.max_length} tokens each"

    @property
    def length(self) -> int:
        """Tokens that have been read, of each sequence."""
        return self._length

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens.

        Raises
        ------
        InvalidArgumentError
            There are not so many.
        """
        length = check.integer("length", length, ctypes.c_int64)
        lib.moe_cache_truncate(self._handle, length)
        self._length = length
