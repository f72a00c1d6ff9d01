"""Held-out text in bits per byte."""

from __future__ import annotations

import libmoe

from .data import Part
from .ranks import Ranks

IGNORED = -100  # a target that is not predicted


def bits_per_byte(
    model: libmoe.Model,
    part: Part,
    *,
    sequence_length: int,
    sequences: int,
    most_tokens: int,
    memory_limit: int | None = None,
    ranks: Ranks | None = None,
) -> float:
    """Mean cross-entropy of windows that lie evenly over a text, in bits for each of its bytes.

    ::

        bits per byte = nats per token / ln 2 * tokens of the text / bytes of the text

    so that tokenizers of different vocabularies can be compared; of byte tokens the last factor is 1.  The
    first byte of each window is only read, and each byte is predicted from those before it in its window.

    Parameters
    ----------
    model : Model
    part : Part
        The text.
    sequence_length, sequences : int
        Tokens that are predicted in a window, and windows of one forward.
    most_tokens : int
        Of the text; fewer where there are not so many.
    memory_limit : int, optional
        Bytes of a call.
    ranks : Ranks, optional
        Of the model, each of which computes a part of the windows.
    """
    windows = part.spread(max(1, most_tokens // sequence_length), sequence_length + 1)
    nats, count = 0.0, 0
    for first in range(0, len(windows), sequences):
        rows = windows[first : first + sequences]
        if ranks is not None:
            rows = ranks.part(rows)
        targets = rows[:, 1:].copy()
        if part.separator is not None:
            targets[targets == part.separator] = IGNORED  # it is no byte of the text
        output = model.forward(rows[:, :-1].copy(), targets, ignore_index=IGNORED, memory_limit=memory_limit)
        nats += output.loss * output.n_targets
        count += output.n_targets
    return nats / max(1, count) * part.bits


def what_is_read(part: Part, most_tokens: int, sequence_length: int, unit: str) -> str:
    """Say how much of a text :func:`bits_per_byte` reads; empty: all of it."""
    if most_tokens >= part.n_tokens:
        return ""
    read = max(1, most_tokens // sequence_length) * sequence_length
    told = f"{read:,} of its {part.n_tokens:,} {unit}"
    if most_tokens < sequence_length:
        told += (
            f"; --tokens {most_tokens} is less than a window of sequence_length {sequence_length}, of which "
            "one was read"
        )
    return told
