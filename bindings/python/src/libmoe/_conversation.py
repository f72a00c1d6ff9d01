"""A conversation with a model: what was read of it is kept, and only what is new is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._batches import Batches
from ._generating import PART, Prompts
from .generation import Cache
from .sampling import Sampling


class Conversation:
    """Turns of a user and a model.

    Parameters
    ----------
    model : Model
        With a tokenizer that has a chat template.
    system : str
        What the model is told before; empty: nothing.
    """

    def __init__(self, model: Batches, system: str = "") -> None:
        self._model = model
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self._cache: Cache | None = None
        self._read: list[int] = []  # the tokens that the cache holds
        self._prompt: list[int] = []
        self.n_unread = 0  # tokens that the last reply had to read first

    def reply(self, text: str, n_tokens: int, *, seed: int = 0) -> Iterator[int]:
        """Return the tokens of the reply to what a user says, as they come; :meth:`said` then adds it."""
        model = self._model
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens = model.tokenizer.chat(messages)
        cache = self._room(len(tokens) + n_tokens)
        same = 0  # the last token is read in any case: its logits are wanted
        while same < min(len(self._read), len(tokens) - 1) and self._read[same] == tokens[same]:
            same += 1
        cache.truncate(same)
        self._read, self._prompt = tokens[:same], list(tokens)
        self.n_unread = len(tokens) - same
        self.messages = messages
        fresh = np.array([tokens[same:]], np.int32)
        request = model._request(len(tokens), n_tokens, None, (), None, PART, (*[None] * 5, seed))
        started = model._started(Prompts(fresh, None, [tokens[:same]]), request, cache)

        def drawn_tokens() -> Iterator[int]:  # only these wait to be asked for, and not what prompt() tells
            for drawn, _ in started:
                token = int(drawn[0])
                yield token
                tokens.append(token)
                self._read = tokens[: cache.length]

        return drawn_tokens()

    def said(self, text: str) -> None:
        """Add what the model has replied."""
        self.messages.append({"role": "assistant", "content": text})

    def prompt(self) -> list[int]:
        """Return the tokens that the last reply answers, which its text continues."""
        return list(self._prompt)

    def _room(self, n_tokens: int) -> Cache:
        """Return the cache, a larger and empty one where it is too small."""
        if self._cache is None or self._cache.max_length < n_tokens:
            self._cache = self._model.cache(1, 2 * n_tokens)
            self._read = []
        return self._cache


def chosen(defaults: Sampling, **given: Any) -> Sampling:
    """Return defaults with what was given in place of them."""
    values = {name: value for name, value in given.items() if value is not None}
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "n_tokens", "end_tokens", "stop")
    return Sampling(**{**{name: getattr(defaults, name) for name in names}, **values})
