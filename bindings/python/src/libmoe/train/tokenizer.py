"""Text to tokens and back: bytes, or as a file of the package ``tokenizers`` says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._pieces import pieces
from .._tokenizer_files import opened
from ..errors import FileError, InvalidArgumentError
from .errors import UserError

Tokens = NDArray[Any]
"""uint8 of bytes, int32 of a tokenizer: [n]."""

END_OF_TEXT = 0  # the byte between two texts in one window: no text has it
# What tokenizers call the token between two texts.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "</s>", "<eos>", "[SEP]", "[EOS]")


@dataclass(frozen=True)
class Unseen:
    """What of a text no token stands for.

    Attributes
    ----------
    characters : int
        Characters of the text, white space apart.
    dropped : int
        Of these, those that no token stands for at all.
    unknown : int
        Tokens that say "unknown".
    """

    characters: int = 0
    dropped: int = 0
    unknown: int = 0

    def __add__(self, other: Unseen) -> Unseen:
        """Sum of two texts'."""
        return Unseen(
            self.characters + other.characters,
            self.dropped + other.dropped,
            self.unknown + other.unknown,
        )


class Tokenizer:
    """Text to tokens and back: bytes, or as a file of the package ``tokenizers`` says.

    What such a file switches on for a batch of short texts is switched off: truncation, padding, and dropout
    of merges.

    Parameters
    ----------
    path : str
        The file; empty for bytes.

    Attributes
    ----------
    path : str
    vocabulary_size : int
        The largest token there is, plus one: 256 of bytes.
    separator : int or None
        The token between two texts in one window, where there is one.

    Raises
    ------
    UserError
        The package is missing, or the file is none of its.
    """

    def __init__(self, path: str = "") -> None:
        self.path = path
        self._coder: Any = None
        self._dropped: dict[str, bool] = {}  # whether no token stands for a character
        self.vocabulary_size = 256
        self.separator: int | None = END_OF_TEXT
        if path:
            self._coder = _opened(path)
            # Not their number: numbers may be left out.
            self.vocabulary_size = 1 + max(self._coder.get_vocab(with_added_tokens=True).values(), default=-1)
            if self.vocabulary_size < 2:
                raise UserError(f"tokenizer {path!r} has no vocabulary: train it, then save it again")
            self._unknown = _unknown(self._coder)
            known = map(self._coder.token_to_id, SEPARATORS)
            self.separator = next((token for token in known if token is not None), None)

    def encode(self, text: Tokens) -> Tokens:
        """Tokens of bytes [n] uint8; of bytes the array itself, without a copy."""
        return self.encoded(text)[0]

    def encoded(self, text: Tokens) -> tuple[Tokens, Unseen]:
        """Tokens of bytes [n] uint8, and what of the text they leave out.

        Raises
        ------
        UserError
            The text is not UTF-8, which tokenizers want.
        """
        if self._coder is None:
            return text, Unseen()
        try:
            letters = text.tobytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"byte {error.object[error.start]:#04x} at {error.start:,} is not UTF-8, which a tokenizer "
                "wants: write the text anew as UTF-8 (iconv -f LATIN1 -t UTF-8)"
            ) from None
        ids = np.array(self._coder.encode(letters, add_special_tokens=False).ids, np.int32)
        return ids, self._unseen(letters, ids)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """Bytes of tokens."""
        return bytes(tokens) if self._coder is None else self._written(tokens).encode()

    def pieces(self, tokens: Iterable[int], after: Sequence[int] = ()) -> Iterator[bytes]:
        """Bytes of tokens as they come, whole letters where they can be; they continue the tokens `after`."""
        if self._coder is None:
            yield from (bytes([token]) for token in tokens)
            return
        for text in pieces(self._written, tokens, after):
            yield text.encode()

    def _written(self, tokens: Sequence[int]) -> str:
        return str(self._coder.decode(list(tokens), skip_special_tokens=False))

    def _unseen(self, letters: str, ids: Tokens) -> Unseen:
        """Count what is left out, by encoding each character of the text alone."""
        codes, counts = np.unique(np.frombuffer(letters.encode("utf-32-le"), np.uint32), return_counts=True)
        characters = dropped = 0
        for code, count in zip(codes.tolist(), counts.tolist()):
            if chr(code).isspace():
                continue
            characters += count
            dropped += count * self._drops(chr(code))
        return Unseen(characters, dropped, int((ids == self._unknown).sum()))

    def _drops(self, character: str) -> bool:
        if character not in self._dropped:
            tokens = self._coder.encode(character, add_special_tokens=False).ids
            self._dropped[character] = not self._written(tokens).strip(" \N{LOWER ONE EIGHTH BLOCK}")
        return self._dropped[character]


def _opened(path: str) -> Any:
    try:
        return opened(path, without="leave the option out to train on bytes")
    except (InvalidArgumentError, FileError) as error:
        raise UserError(str(error)) from None


def _unknown(coder: Any) -> int:
    """Return the token that says "unknown", or -1; Unigram has its number, the others its name."""
    model = json.loads(coder.to_str())["model"]
    token = model.get("unk_id")
    if token is None and model.get("unk_token") is not None:
        token = coder.token_to_id(model["unk_token"])
    return -1 if token is None else int(token)
