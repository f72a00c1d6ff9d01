"""Generation: what a model has read so far."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from ._keywords import keywords
from ._native import check
from ._native.library import Handle, Native, lib
from .checkpoint import Path, encoded
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from .model import Model


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

    def save(self, path: Path) -> None:
        """Write what has been read into one safetensors file, whole or not at all.

        Raises
        ------
        FileError
            The file cannot be written; the text has the path.
        """
        lib.moe_cache_save(self._handle, encoded(path))

    @classmethod
    def load(cls, model: Model, path: Path, *, max_length: int | None = None) -> Cache:
        """Return a cache as it was saved: what is read next has the bits that it would have had.

        Parameters
        ----------
        model : Model
            One with the weights of the model that filled it, which nothing checks; its layers and widths are.
        path : str or path
        max_length : int, optional
            Room for other than as many tokens as it had; at least for those that it has.

        Raises
        ------
        FileError
            There is no such file, or it cannot be read.
        InvalidArgumentError
            It is no cache, or that of a model with other layers: the text names the tensor.
        """
        from .model import Model  # which needs this module

        check.instance("model", model, Model, "the model that filled it")
        length = 0 if max_length is None else check.integer("max_length", max_length, ctypes.c_int64)
        if length < 1 and max_length is not None:
            raise InvalidArgumentError(
                f"max_length = {max_length} is below 1; leave it out for that of the file"
            )
        cache = cls.__new__(cls)
        handle = Handle(
            lib.moe_cache_load,
            lib.moe_cache_free,
            model._handle,
            encoded(path),
            length,
            keep={"context": model._handle.keep["context"]},
        )
        sizes = [ctypes.c_int64() for _ in range(3)]
        lib.moe_cache_size(handle, *map(ctypes.byref, sizes))
        cache.n_sequences, cache.max_length, cache._length = (size.value for size in sizes)
        cache._open_handle = handle
        return cache
