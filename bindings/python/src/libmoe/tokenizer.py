"""The tokenizer of a folder: text to tokens and back, and conversations as its model was taught them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _pieces
from ._gguf import is_gguf
from ._gguf_tokenizer import template_of
from ._keywords import keywords
from ._native import check
from ._tokenizer_files import opened
from .chat_template import ChatTemplate
from .checkpoint import Path, place_of
from .errors import ArgumentTypeError, FileError, InvalidArgumentError

FILE = "tokenizer.json"


@keywords
class Tokenizer:
    """Text to tokens and back, as tokenizer.json of a folder says; needs the package ``tokenizers``.

    Parameters
    ----------
    path : path
        Of a folder with tokenizer.json, of such a file, or of a GGUF file.

    Raises
    ------
    InvalidArgumentError
        The package is missing, or the file is no tokenizer's; the text says what would do.
    FileError
        There is no such file, or it cannot be read.

    Examples
    --------
    ::

        tokenizer = libmoe.Tokenizer("OLMoE-1B-7B")
        tokens = tokenizer.encode("Once upon a time")
        text = tokenizer.decode(tokens)
    """

    def __init__(self, path: Path) -> None:
        place = place_of(path)
        if place.is_dir():
            place = place / FILE
            if not place.exists():
                raise FileError(
                    f"tokenizer: {os.fspath(path)!r} has no {FILE}: put one there (transformers' "
                    "tokenizer.save_pretrained writes it), or give tokens in place of text"
                )
        self.path = place
        self._coder = opened(str(place), without="give tokens in place of text")
        self._template: ChatTemplate | None = None
        self._size = 1 + max(self._coder.get_vocab(with_added_tokens=True).values(), default=-1)

    def __repr__(self) -> str:
        """Say of which file."""
        return f"<libmoe.Tokenizer: {str(self.path)!r}, {self.vocabulary_size} tokens>"

    @property
    def vocabulary_size(self) -> int:
        """The largest token there is, plus one."""
        return self._size

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text.

        Parameters
        ----------
        text : str
        special : bool
            Whether the file's own are put around it, such as one for the beginning.

        Raises
        ------
        InvalidArgumentError
            There are surrogates in the text, as Python has for bytes that were no UTF-8.
        """
        _require_text("text", text)
        return [int(token) for token in self._coder.encode(text, add_special_tokens=special).ids]

    def decode(self, tokens: Sequence[int] | NDArray[Any], *, special: bool = False) -> str:
        """Return the text of tokens.

        Parameters
        ----------
        tokens : sequence of int
        special : bool
            Whether special ones, such as one for the end, are written too.

        Raises
        ------
        InvalidArgumentError
            A number is negative, or beyond the vocabulary.
        """
        listed = check.integers("tokens", tokens, np.int32).ravel()
        wrong = listed[(listed < 0) | (listed >= self._size)]
        if wrong.size:
            raise InvalidArgumentError(
                f"tokens: {wrong[0]} is no token of this tokenizer, which has 0 to {self._size - 1}; "
                "leave it out"
            )
        return str(self._coder.decode(listed.tolist(), skip_special_tokens=not special))

    def pieces(self, tokens: Iterable[int], after: Sequence[int] = ()) -> Iterator[str]:
        """Yield the text of tokens as they come, in whole letters; it continues the tokens `after`.

        Many a model has rows beyond the tokenizer's vocabulary: such tokens have no text.
        """
        return _pieces.pieces(self._written, tokens, after)

    def _written(self, tokens: Sequence[int]) -> str:
        """Return the text of what a model generates."""
        listed = check.integers("tokens", tokens, np.int32)
        return self.decode(listed[listed < self._size])

    def token(self, name: str) -> int | None:
        """Return the number of a token by its name, such as ``"</s>"``; None where there is none."""
        _require_text("name", name)
        found = self._coder.token_to_id(name)
        return None if found is None else int(found)

    # ----------------------------------------------------------------------------------------------------
    # Conversations
    # ----------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> ChatTemplate:
        """How the model was taught conversations; needs jinja2 when it is rendered.

        Raises
        ------
        InvalidArgumentError
            The folder has none.
        """
        if self._template is None:
            own = template_of(str(self.path)) if is_gguf(self.path) else None
            self._template = own or ChatTemplate.of(self.path.parent)
        return self._template

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, reply: bool = True, **variables: Any
    ) -> list[int]:
        """Return the tokens of a conversation, as the folder's chat template writes it.

        Parameters
        ----------
        messages : sequence of dict
            Each with ``"role"`` (``"system"``, ``"user"``, ``"assistant"``) and ``"content"``.
        reply : bool
            Whether the beginning of a reply stands at the end, for :meth:`Model.generate` to continue.
        variables
            Others that the template knows, such as ``tools`` or ``enable_thinking``.

        Raises
        ------
        ArgumentTypeError
            The messages are no sequence of dicts, or a content is no text.
        InvalidArgumentError
            There is no template, jinja2 is missing, or the template refuses the messages.
        """
        text = self.chat_template.render(messages, reply=reply, **variables)
        return self.encode(text, special=False)


def _require_text(name: str, text: Any) -> None:
    """Refuse what is no text that can be written as UTF-8, which is what a tokenizer reads."""
    if not isinstance(text, str):
        raise ArgumentTypeError(f"{name}: expected a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte {code - 0xDC00:#04x}" if 0xDC80 <= code <= 0xDCFF else f"surrogate U+{code:04X}"
        raise InvalidArgumentError(
            f"{name}: {what} at character {error.start:,} is not UTF-8, which a tokenizer wants: write the "
            "text anew as UTF-8 (iconv -f LATIN1 -t UTF-8), or take it out"
        ) from None
