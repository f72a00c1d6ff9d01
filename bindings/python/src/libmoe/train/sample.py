"""Text that a trained model writes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

import libmoe

from .config import UserError
from .data import Tokenizer


def sample(
    model: libmoe.Model,
    tokenizer: Tokenizer,
    prompt: bytes,
    n_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[bytes]:
    """Continue a prompt, piece by piece as it is written.

    Parameters
    ----------
    model : Model
    tokenizer : Tokenizer
        As the model was trained with.
    prompt : bytes
        Not empty.
    n_tokens : int
        To write.
    temperature, top_k, top_p, seed
        As of :meth:`libmoe.Model.generate`.

    Raises
    ------
    UserError
        The prompt has no token.
    """
    tokens = np.asarray(tokenizer.encode(np.frombuffer(prompt, np.uint8)), np.int32)
    if len(tokens) == 0:
        raise UserError("the prompt is empty; give it at least one character")
    drawn = model.generate(tokens, n_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    yield from tokenizer.pieces(drawn)


def printable(pieces: Iterable[bytes]) -> Iterator[str]:
    """Text for a terminal, as it comes: what would steer it, and what is no text, is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield "".join(
            c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
            for c in decoder.decode(piece)
        )
