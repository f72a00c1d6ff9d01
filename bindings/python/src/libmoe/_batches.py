"""What a model has to write: tokens after a prompt or after several, and text after text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from . import _pieces
from ._generating import PART, Prompts, Request, generated, padded
from ._keywords import keywords
from ._model_call import Integers, Mask
from ._model_passes import Passes
from ._native import check
from ._native.check import FloatArray
from .blocks._tokens import check_sampling
from .errors import ArgumentTypeError, BadStateError, InvalidArgumentError
from .generation import Cache
from .sampling import Sampling, end_tokens, stop_texts
from .tokenizer import Tokenizer

_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@keywords
class Batches(Passes):
    """What :class:`Model` has to write: tokens after a prompt, or after several."""

    _sampling: Sampling
    _tokenizer: Tokenizer | None

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn where a call does not say it; of a model from a folder what that asks for."""
        return getattr(self, "_sampling", None) or Sampling()

    @sampling.setter
    def sampling(self, value: Sampling) -> None:
        self._sampling = check.instance("sampling", value, Sampling, "libmoe.Sampling(temperature=0.7)")

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the model's folder, or the one that was set.

        Raises
        ------
        BadStateError
            The model came from no folder, and none was set.
        InvalidArgumentError
            The package ``tokenizers`` is missing, or the file is no tokenizer's.
        FileError
            The folder has none.
        """
        found = getattr(self, "_tokenizer", None)
        folder = getattr(self, "_folder", None)
        if found is None and folder is not None:
            found = self._tokenizer = Tokenizer(folder)
        if found is None:
            raise BadStateError(
                "tokenizer: this model came from no folder; set model.tokenizer = libmoe.Tokenizer(path)"
            )
        return cast(Tokenizer, found)

    @tokenizer.setter
    def tokenizer(self, value: Tokenizer) -> None:
        self._tokenizer = check.instance("tokenizer", value, Tokenizer, "libmoe.Tokenizer(path)")

    @overload
    def generate(
        self,
        prompt: Sequence[int] | NDArray[Any],
        n_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        cache: Cache | None = None,
        part_tokens: int = PART,
        logits: Literal[False] = False,
    ) -> Iterator[int]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[int] | NDArray[Any],
        n_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        cache: Cache | None = None,
        part_tokens: int = PART,
        logits: Literal[True],
    ) -> Iterator[tuple[int, FloatArray]]: ...

    def generate(
        self,
        prompt: Sequence[int] | NDArray[Any],
        n_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        cache: Cache | None = None,
        part_tokens: int = PART,
        logits: bool = False,
    ) -> Iterator[int] | Iterator[tuple[int, FloatArray]]:
        """Yield the tokens after the prompt, each as soon as it is drawn.

        Its time is that of reading the weights: :meth:`prepare` before makes it faster.  What is left out is
        taken from :attr:`sampling`.  Of long positions with a short and a long form (PhiMoE) the room that is
        asked for, the prompt and n_tokens or the cache's, decides between both from the first token on.

        Parameters
        ----------
        prompt : sequence of int
            At least one token, of one sequence; an array of shape [1, n] is one too.
        n_tokens : int, optional
            How many at most; 0 yields none.
        temperature, top_k, top_p, min_p, repetition_penalty
            As of :func:`sample`; the penalty is for the tokens of the prompt and of what follows.
        seed : int
            The same seed draws the same tokens.
        end_tokens : int or sequence of int, optional
            The first of these is the last token; ``()``: n_tokens alone decide.
        stop : str or sequence of str, optional
            The token that completes one of these texts is the last; they are looked for in what is generated.
        tokenizer : Tokenizer, optional
            Writes the tokens as text for `stop`; by default :attr:`tokenizer`.
        cache : Cache, optional
            Of one sequence, which the prompt continues; by default a new one.  At the end it has read all but
            the last token.
        part_tokens : int
            Tokens of the prompt that are read at once, at least 1: fewer take less memory, and more time.
        logits : bool
            Whether pairs are yielded: a token, and the logits it was drawn from, ndarray of float32, [V].

        Raises
        ------
        InvalidArgumentError
            The prompt is empty, several sequences, or not of ints that are tokens; a number is out of range;
            or a folder's defaults ask for what is not computed.
        """
        tokens = self._prompt("prompt", prompt)
        request = self._request(
            tokens.size,
            n_tokens,
            end_tokens,
            stop,
            tokenizer,
            part_tokens,
            (temperature, top_k, top_p, min_p, repetition_penalty, seed),
        )
        steps = self._started(Prompts(tokens.reshape(1, -1), None), request, cache)
        if check.flag("logits", logits):
            return ((int(drawn[0]), scores[0].copy()) for drawn, scores in steps)
        return (int(drawn[0]) for drawn, _ in steps)

    @overload
    def generate_batch(
        self,
        prompts: Integers | Sequence[Sequence[int] | Integers],
        n_tokens: int | None = None,
        *,
        valid_mask: Mask | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        cache: Cache | None = None,
        part_tokens: int = PART,
        logits: Literal[False] = False,
    ) -> Iterator[Integers]: ...

    @overload
    def generate_batch(
        self,
        prompts: Integers | Sequence[Sequence[int] | Integers],
        n_tokens: int | None = None,
        *,
        valid_mask: Mask | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        cache: Cache | None = None,
        part_tokens: int = PART,
        logits: Literal[True],
    ) -> Iterator[tuple[Integers, FloatArray]]: ...

    def generate_batch(
        self,
        prompts: Integers | Sequence[Sequence[int] | Integers],
        n_tokens: int | None = None,
        *,
        valid_mask: Mask | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        cache: Cache | None = None,
        part_tokens: int = PART,
        logits: bool = False,
    ) -> Iterator[Integers] | Iterator[tuple[Integers, FloatArray]]:
        """Yield the next token of each of B sequences, ndarray of int32, [B], until all have ended.

        Sequence b gets the tokens that :meth:`generate` gives for it alone with the seed ``seed + b``, and -1
        once it has ended.

        Parameters
        ----------
        prompts : list of sequences of int, or ndarray of int32, [B, S]
            Of any lengths, at least one token each.
        n_tokens : int, optional
            How many at most.
        valid_mask : ndarray of bool, [B, S], optional
            With an array: False for padding, in front of the shorter prompts or behind them.
        temperature, top_k, top_p, min_p, repetition_penalty, seed, end_tokens, stop, tokenizer
            As of :meth:`generate`.
        cache : Cache, optional
            Of B sequences, which the prompts continue; by default a new one.
        part_tokens : int
            Tokens of each prompt that are read at once.
        logits : bool
            Whether pairs are yielded: tokens [B], and the logits, ndarray of float32, [B, V].

        Raises
        ------
        TypeError, ValueError
            An array has the wrong type, shape or layout, or a prompt is empty or all padding.
        """
        begun = self._prompts(prompts, valid_mask)
        request = self._request(
            begun.tokens.shape[1],
            n_tokens,
            end_tokens,
            stop,
            tokenizer,
            part_tokens,
            (temperature, top_k, top_p, min_p, repetition_penalty, seed),
        )
        steps = self._started(begun, request, cache)
        if check.flag("logits", logits):
            return steps
        return (drawn for drawn, _ in steps)

    def write(
        self,
        text: str,
        n_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        part_tokens: int = PART,
    ) -> Iterator[str]:
        """Yield the text that continues a text, piece by piece; neither end tokens nor `stop` are in it.

        Parameters
        ----------
        text : str
        tokenizer : Tokenizer, optional
            By default :attr:`tokenizer`.
        n_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, end_tokens, stop, part_tokens
            As of :meth:`generate`.

        Raises
        ------
        InvalidArgumentError
            The text has no token, or as of :meth:`generate`.
        """
        coder = self._coder(tokenizer)
        prompt = coder.encode(text)
        if not prompt:
            raise InvalidArgumentError("text: has no token; give at least one letter")
        tokens = self.generate(
            prompt,
            n_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            end_tokens=end_tokens,
            stop=(),
            part_tokens=part_tokens,
        )
        return self.written(tokens, prompt, coder, end_tokens=end_tokens, stop=stop)

    def written(
        self,
        tokens: Iterator[int],
        after: Sequence[int],
        tokenizer: Tokenizer | None = None,
        *,
        end_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Iterator[str]:
        """Yield generated tokens as text, up to an end token or a text that ends it.

        Parameters
        ----------
        tokens : iterator of int
            As of :meth:`generate`.
        after : sequence of int
            The prompt.
        tokenizer, end_tokens, stop
            As of :meth:`write`.
        """
        ends, texts = self._ends(end_tokens, stop)
        before_end = (token for token in tokens if token not in ends)
        return _pieces.until(self._coder(tokenizer).pieces(before_end, after), texts)

    # ----------------------------------------------------------------------------------------------------
    # What a call asks for
    # ----------------------------------------------------------------------------------------------------

    def _prompt(self, name: str, prompt: Any) -> Integers:
        tokens = check.integers(name, prompt, np.int32)
        if tokens.ndim != 1 and tokens.shape[:-1] != (1,):
            raise InvalidArgumentError(
                f"{name}: expected one sequence of tokens, got shape {tokens.shape}; "
                "use generate_batch for several"
            )
        if tokens.size == 0:
            raise InvalidArgumentError(f"{name}: is empty; give at least one token")
        self._require_ids(name, tokens)
        return tokens.ravel()

    def _prompts(self, prompts: Any, valid_mask: Mask | None) -> Prompts:
        """Return prompts as one array and a mask."""
        if not isinstance(prompts, np.ndarray):
            if valid_mask is not None:
                raise InvalidArgumentError(
                    "valid_mask: goes with an array of prompts; a list of prompts has no padding"
                )
            listed = check.listed("prompts", prompts, "a list of prompts: [[1, 2, 3], [4]]")
            if not listed:
                raise InvalidArgumentError("prompts: are none; give one at least")
            return padded([self._prompt(f"prompts[{row}]", prompt) for row, prompt in enumerate(listed)])
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
        return Prompts(prompts, valid_mask)

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

    def _request(
        self,
        n_prompt: int,
        n_tokens: int | None,
        ends: int | Sequence[int] | None,
        stop: str | Sequence[str] | None,
        tokenizer: Tokenizer | None,
        part_tokens: int,
        drawing: tuple[Any, ...],
    ) -> Request:
        defaults = self.sampling
        if defaults.not_computed:
            raise InvalidArgumentError(
                f"sampling: the model's folder asks for {', '.join(defaults.not_computed)}, which is not "
                "computed; set model.sampling = libmoe.Sampling(...) to generate without"
            )
        *named, seed = drawing
        given = {name: value for name, value in zip(_NAMES, named) if value is not None}
        how = {**defaults.drawing(), **given, "seed": seed}
        check_sampling(**how)
        n_tokens = defaults.most_tokens(n_prompt) if n_tokens is None else n_tokens
        ended, texts = self._ends(ends, stop)
        return Request(
            n_tokens=check.count("n_tokens", n_tokens),
            seed=how.pop("seed"),
            drawing=how,
            end_tokens=ended,
            stop=texts,
            written=self._coder(tokenizer)._written if texts else None,
            part=_part(part_tokens),
        )

    def _ends(self, ends: Any, stop: Any) -> tuple[frozenset[int], tuple[str, ...]]:
        """Return tokens and texts that end a sequence: those that are given, or the defaults."""
        return (
            frozenset(self.sampling.end_tokens if ends is None else end_tokens(ends)),
            self.sampling.stop if stop is None else stop_texts(stop),
        )

    def _coder(self, tokenizer: Tokenizer | None) -> Tokenizer:
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            raise ArgumentTypeError(
                f"tokenizer: expected a libmoe.Tokenizer, got {type(tokenizer).__name__}; "
                "use libmoe.Tokenizer(path)"
            )
        return self.tokenizer if tokenizer is None else tokenizer

    def _started(
        self, prompts: Prompts, request: Request, cache: Cache | None
    ) -> Iterator[tuple[Integers, FloatArray]]:
        """Check the cache now, and make one only when the first token is asked for."""
        count, length = prompts.tokens.shape
        room = length + max(request.n_tokens, 1) - 1
        if cache is not None:
            check.instance("cache", cache, Cache, "model.cache(n_sequences, max_length)")
            if cache.n_sequences != count:
                raise InvalidArgumentError(
                    f"cache: is of {cache.n_sequences} sequences, but there are {count} prompts; "
                    f"make one with model.cache({count}, ...)"
                )
            if cache.length + room > cache.max_length:
                raise InvalidArgumentError(
                    f"cache: has room for {cache.max_length - cache.length} more tokens, but prompt and "
                    f"n_tokens take {room}; make a larger one, or ask for fewer tokens"
                )

        def steps() -> Iterator[tuple[Integers, FloatArray]]:
            if request.n_tokens:
                used = self.cache(count, room) if cache is None else cache
                yield from generated(self.read, used, prompts, request, self._context)

        return steps()


def _part(part_tokens: int) -> int:
    count = check.count("part_tokens", part_tokens)
    if count == 0:
        raise InvalidArgumentError("part_tokens = 0 would read nothing; give 1 or more, or leave it out")
    return count
