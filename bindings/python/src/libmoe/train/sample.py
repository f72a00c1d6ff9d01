"""Text that a trained model writes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

from ..blocks import sample as drawn
from ..blocks._tokens import check_sampling
from .errors import UserError
from .run import Trained
from .tokenizer import END_OF_TEXT


def sample(
    trained: Trained,
    prompt: bytes,
    n_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[bytes]:
    """Continue a prompt, piece by piece as it is written.

    A model knows no places beyond the sequences it was trained on: when S tokens are full, it reads the last
    S / 2 of them anew and goes on from there.

    Parameters
    ----------
    trained : Trained
        A run's model.
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
    model, room = trained.model, trained.settings.sequence_length
    try:
        tokens = trained.tokenizer.encode(np.frombuffer(prompt, np.uint8)).tolist()
    except UserError as error:
        raise UserError(f"the prompt: {error}") from None
    if not tokens and prompt and trained.tokenizer.separator is not None:
        tokens = [trained.tokenizer.separator]  # white space that has no token: a text begins
    if not tokens:
        raise UserError("the prompt is empty; give it at least one character")
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    cache = model.cache(1, room)

    def written() -> Iterator[int]:
        unread = tokens[-room:]
        for number in range(n_tokens):
            if cache.length + len(unread) > room:
                cache.truncate(0)
                unread = tokens[-max(1, room // 2) :]
            logits = model.read(cache, np.array([unread], np.int32))[0]
            token = drawn(
                logits,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                draw=number,
                context=trained.context,
            )
            tokens.append(token)
            unread = [token]
            yield token

    return trained.tokenizer.pieces(written(), tokens.copy())


def printable(pieces: Iterable[bytes]) -> Iterator[str]:
    """Text for a terminal, as it comes: what would steer it, and what is no text, is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield _shown(decoder.decode(piece))
    yield _shown(decoder.decode(b"", final=True))  # a letter that was not finished


def _shown(text: str) -> str:
    """Text without what would steer a terminal; between two texts stands a line break."""
    text = text.replace(chr(END_OF_TEXT), "\n")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
