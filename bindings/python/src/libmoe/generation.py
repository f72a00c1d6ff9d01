"""Generation: what a model has read so far, and several sequences at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._keywords import keywords
from ._model_call import Integers, Mask
from ._native import check
from ._native.check import FloatArray
from ._native.library import Handle, Native, lib
from .blocks._tokens import check_sampling, sample
from .checkpoint import Path, encoded
from .context import Context
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


@keywords
class Batches:
    """What :class:`Model` has to write: tokens after a prompt, or after several."""

    if TYPE_CHECKING:
        _context: Context

        @property
        def vocabulary_size(self) -> int: ...  # noqa: D102

        cache: Callable[[int, int], Cache]
        read: Callable[..., FloatArray]

    def generate(
        self,
        prompt: Sequence[int] | NDArray[Any],
        n_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Yield the n_tokens tokens after the prompt, each as soon as it is drawn.

        Its time is that of reading the weights: :meth:`prepare` before makes it faster.

        Parameters
        ----------
        prompt : sequence of int
            At least one token, of one sequence; an array of shape [1, n] is one too.
        n_tokens : int
            How many; 0 yields none.
        temperature, top_k, top_p
            As of :func:`sample`.
        seed : int
            The same seed draws the same tokens.

        Raises
        ------
        InvalidArgumentError
            The prompt is empty, several sequences, or not of ints that are tokens; a number is out of range.
        """
        tokens = check.integers("prompt", prompt, np.int32)
        if tokens.ndim != 1 and tokens.shape[:-1] != (1,):
            raise InvalidArgumentError(
                f"prompt: expected one sequence of tokens, got shape {tokens.shape}; "
                "use generate_batch for several"
            )
        if tokens.size == 0:
            raise InvalidArgumentError("prompt: is empty; give at least one token")
        self._require_ids("prompt", tokens)
        how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        check_sampling(**how)
        return self._generated(tokens.reshape(1, -1), check.count("n_tokens", n_tokens), how)

    def _require_ids(self, name: str, tokens: Integers) -> None:
        """Refuse now what reading would refuse, which is done only when the first token is asked for."""
        if not self.vocabulary_size:
            raise InvalidArgumentError(
                f"{name}: this model has no vocabulary, its input are vectors; give it a vocabulary_size"
            )
        wrong = (tokens < 0) | (tokens >= self.vocabulary_size)
        if wrong.any():
            raise InvalidArgumentError(
                f"{name}: {tokens[wrong][0]} is no token of a vocabulary_size of {self.vocabulary_size}"
            )

    def _generated(self, tokens: Integers, n_tokens: int, how: dict[str, Any]) -> Iterator[int]:
        if n_tokens == 0:
            return
        cache = self.cache(1, tokens.size + n_tokens - 1)
        for number in range(n_tokens):
            token = sample(self.read(cache, tokens)[0], **how, draw=number, context=self._context)
            yield token
            tokens = np.array([[token]], np.int32)

    def generate_batch(
        self,
        prompts: Integers,
        n_tokens: int,
        *,
        valid_mask: Mask | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[Integers]:
        """Yield, n_tokens times, the next token of each of B sequences, ndarray of int32, [B].

        Sequence b gets the tokens that :meth:`generate` gives for it alone with the seed ``seed + b``.

        Parameters
        ----------
        prompts : ndarray of int32, [B, S]
        n_tokens : int
        valid_mask : ndarray of bool, [B, S], optional
            False for padding, in front of the shorter prompts or behind them; each has one token at least.
        temperature, top_k, top_p
            As of :func:`sample`.
        seed : int
            The same seed draws the same tokens.

        Raises
        ------
        TypeError, ValueError
            An array has the wrong type, shape or layout, or a prompt is all padding.
        """
        prompts = check.array("prompts", prompts, dtype="i32")
        if prompts.ndim != 2 or prompts.size == 0:
            raise InvalidArgumentError(
                f"prompts: expected shape [B, S], at least one token each, got {prompts.shape}"
            )
        if valid_mask is not None:
            check.array("valid_mask", valid_mask, prompts.shape, dtype="mask")
            empty = np.flatnonzero(~valid_mask.astype(bool).any(axis=1))
            if empty.size:
                raise InvalidArgumentError(f"valid_mask: prompt {empty[0]} is all padding; give it a token")
        self._require_ids("prompts", prompts)
        check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        n_tokens = check.count("n_tokens", n_tokens)
        return self._batch(
            prompts, n_tokens, valid_mask, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )

    def _batch(
        self, tokens: Integers, n_tokens: int, valid_mask: Mask | None, *, seed: int, **how: Any
    ) -> Iterator[Integers]:
        if n_tokens == 0:
            return
        cache = self.cache(tokens.shape[0], tokens.shape[1] + n_tokens - 1)
        for number in range(n_tokens):
            logits = self.read(cache, tokens, valid_mask=valid_mask)
            drawn = [
                sample(row, seed=(seed + b) % 2**64, draw=number, context=self._context, **how)
                for b, row in enumerate(logits)
            ]
            yield np.array(drawn, np.int32)
            tokens, valid_mask = np.array(drawn, np.int32).reshape(-1, 1), None
