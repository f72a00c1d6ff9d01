"""Tokens after prompts, one for each sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._model_call import Integers, Mask
from ._native.check import FloatArray
from ._pieces import Ending, Written
from .blocks._tokens import sample
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from .context import Context
    from .generation import Cache

Read = Callable[..., FloatArray]
ENDED = -1  # in place of a token, of a sequence that has ended
PART = 512  # tokens of a prompt that are read at once


@dataclass(frozen=True)
class Prompts:
    """Where generation begins.

    Attributes
    ----------
    tokens : ndarray of int32, [B, S]
    valid_mask : ndarray of bool, [B, S], or None
        False for padding.
    before : list of list of int, optional
        What a cache has read of each sequence.
    """

    tokens: Integers
    valid_mask: Mask | None
    before: list[list[int]] | None = None

    def so_far(self) -> list[list[int]]:
        """Return the tokens of each sequence that are no padding."""
        rows = self.tokens.tolist()
        if self.valid_mask is not None:
            rows = [[t for t, real in zip(row, valid) if real] for row, valid in zip(rows, self.valid_mask)]
        return [before + row for before, row in zip(self.before or [[] for _ in rows], rows)]


@dataclass(frozen=True)
class Request:
    """What shall be generated.

    Attributes
    ----------
    n_tokens : int
    drawing : dict
        As of :func:`sample`.
    seed : int
        Of the first sequence; the next has the next.
    end_tokens : frozenset of int
    stop : sequence of str
    written : callable or None
        Writes tokens as text, where there are texts that end a sequence.
    part : int
        Tokens of a prompt that are read at once.
    """

    n_tokens: int
    drawing: dict[str, Any]
    seed: int
    end_tokens: frozenset[int]
    stop: Sequence[str]
    written: Written | None
    part: int


def padded(prompts: Sequence[Integers]) -> Prompts:
    """Return prompts of any lengths as one array, with padding in front of the shorter ones."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), np.int32)
    valid = np.zeros(tokens.shape, np.bool_)
    for row, prompt in enumerate(prompts):
        if len(prompt):
            tokens[row, -len(prompt) :] = prompt
            valid[row, -len(prompt) :] = True
    return Prompts(tokens, None if valid.all() else valid)


def generated(
    read: Read, cache: Cache, prompts: Prompts, request: Request, context: Context
) -> Iterator[tuple[Integers, FloatArray]]:
    """Yield the next token of each sequence [B], ENDED where it has, and the logits [B, V] it is drawn from.

    The cache then has read all but the last.
    """
    tokens, valid = prompts.tokens, prompts.valid_mask
    count = len(tokens)
    so_far = prompts.so_far()
    penalised = request.drawing["repetition_penalty"] != 1
    written = request.written or str
    endings = [Ending(written, request.stop) for _ in range(count)]
    live = np.ones(count, np.bool_)
    for number in range(request.n_tokens):
        logits = _read(read, cache, tokens, valid, request.part)
        drawn = np.full(count, ENDED, np.int32)
        for row in np.flatnonzero(live):
            drawn[row] = sample(
                logits[row],
                **request.drawing,
                history=so_far[row] if penalised else None,
                seed=(request.seed + int(row)) % 2**64,
                draw=number,
                context=context,
            )
        yield drawn, logits
        for row in np.flatnonzero(live):
            token = int(drawn[row])
            so_far[row].append(token)
            live[row] = token not in request.end_tokens and not endings[row].reached(token)
        if not live.any():
            return
        tokens = np.where(live, drawn, 0).astype(np.int32).reshape(-1, 1)
        valid = None if live.all() else live.reshape(-1, 1).copy()


def _read(read: Read, cache: Cache, tokens: Integers, valid: Mask | None, part: int) -> FloatArray:
    """Read tokens [B, n] part by part, which changes no bit; return the logits of each sequence's last."""
    logits: FloatArray | None = None
    for start in range(0, tokens.shape[1], part):
        here = np.ascontiguousarray(tokens[:, start : start + part])
        real = None if valid is None else np.ascontiguousarray(valid[:, start : start + part])
        found = read(cache, here, valid_mask=real)
        if logits is None or real is None:
            logits = found
        else:  # a sequence that is padded behind has its last token in an earlier part
            logits = np.where(np.any(real, axis=1, keepdims=True), found, logits)
    if logits is None:
        raise InvalidArgumentError("prompts: are empty; give at least one token")
    return logits
