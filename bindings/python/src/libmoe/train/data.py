"""Text to train on: files, mapped; which of it is held out; and which windows of it a step sees.

Every file is cut into blocks of neighbouring bytes.  A share of all blocks, drawn by the seed, is held out;
no window of tokens reaches from one side to the other.  Tokens are the bytes themselves, or those of a file
of the package ``tokenizers``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import UserError

Tokens = NDArray[Any]
"""uint8 of bytes, int32 of a tokenizer: [n]."""

SMALLEST_BLOCK = 4096  # bytes
LARGEST_BLOCK = 1 << 20
BLOCKS = 200  # of a text whose blocks lie between these
LOOKED_AT = 8192  # bytes of a file in a folder: with a NUL among them it is no text

_SPLIT, _BATCHES = 1, 2  # streams of random numbers


def random_words(seed: int, stream: int, step: int, count: int) -> NDArray[np.uint64]:
    """Philox4x64-10 keyed by (seed, stream), counted from step: no draw depends on those before."""
    key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, 0, step], np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    words: NDArray[np.uint64] = generator.random_raw(count)
    return words


class Part:
    """One side of the split: spans of neighbouring tokens.

    Parameters
    ----------
    spans : sequence of ndarray of uint8 or int32, [n]
        They may be views of mapped files.
    n_bytes : int
        Bytes of text that these tokens stand for.
    """

    def __init__(self, spans: Sequence[Tokens], n_bytes: int) -> None:
        self.spans = list(spans)
        self.n_bytes = n_bytes
        self.n_tokens = sum(len(span) for span in spans)

    def batch(self, seed: int, step: int, count: int, length: int) -> NDArray[np.int32]:
        """Return the windows of a step: count starts, each place where a window fits being equally likely.

        Parameters
        ----------
        seed, step : int
            What the places depend on, and nothing else.
        count, length : int
            Windows, and tokens of each.

        Returns
        -------
        ndarray of int32, [count, length]
        """
        places = self._places(length)
        words = random_words(seed, _BATCHES, step, count)
        # 53 bits of a word as a fraction: the bias is below 2^-20 for a text of a terabyte.
        index = ((words >> np.uint64(11)) * 2.0**-53 * places[-1]).astype(np.int64)
        return self._windows(index, places, length)

    def spread(self, most: int, length: int) -> NDArray[np.int32]:
        """Return at most so many windows without a common token, spread evenly over the text.

        Returns
        -------
        ndarray of int32, [n, length]
        """
        self._places(length)  # there is one at least
        of_spans = [np.arange(0, len(span) - length + 1, length) for span in self.spans]
        all_of_them = [(n, int(start)) for n, starts in enumerate(of_spans) for start in starts]
        chosen = np.linspace(0, len(all_of_them) - 1, min(most, len(all_of_them))).astype(int)
        rows = [self.spans[all_of_them[i][0]][all_of_them[i][1] :][:length] for i in chosen]
        return np.stack(rows).astype(np.int32)

    def _places(self, length: int) -> NDArray[np.int64]:
        """Return how many places for a window the spans have up to each of them, added up."""
        counts = np.cumsum([max(0, len(span) - length + 1) for span in self.spans], dtype=np.int64)
        if len(counts) == 0 or counts[-1] == 0:
            longest = max((len(span) for span in self.spans), default=0)
            raise UserError(
                f"sequence_length {length - 1}: no {length} tokens stand together in the text, or on one "
                f"side of its split, {longest} at most; give more text, or train on shorter sequences"
            )
        return counts

    def _windows(self, index: NDArray[np.int64], places: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        windows = np.empty((len(index), length), np.int32)
        of = np.searchsorted(places, index, side="right")
        for row, (span, place) in enumerate(zip(of, index)):
            start = place - (places[span - 1] if span else 0)
            windows[row] = self.spans[span][start : start + length]
        return windows


@dataclass(frozen=True)
class Corpus:
    """A text and its split.

    Attributes
    ----------
    training, held_out : Part
    vocabulary_size : int
        256 of bytes.
    n_files, passed_over : int
        Files that were read; those that were not: unreadable, binary, or copies of others.
    """

    training: Part
    held_out: Part
    vocabulary_size: int
    n_files: int
    passed_over: int

    @property
    def n_bytes(self) -> int:
        """Bytes on both sides."""
        return self.training.n_bytes + self.held_out.n_bytes


def load(names: Sequence[str], *, held_out: float, seed: int, tokenizer: str = "") -> Corpus:
    """Map the files and split them.

    Parameters
    ----------
    names : sequence of str
        Files, and folders of which every text file is read.
    held_out : float
        Share of the blocks that is held out, above 0 and below 1.
    seed : int
        Of the choice of these blocks.
    tokenizer : str
        A file of the package ``tokenizers``; empty: tokens are bytes.

    Raises
    ------
    UserError
        A name does not exist, there is too little text, or the tokenizer cannot be used.
    """
    coder = Tokenizer(tokenizer)
    files, passed_over = _mapped(names)
    pieces = _pieces([len(file) for file in files])
    if len(pieces) < 2:
        raise UserError(
            f"too little text in {', '.join(map(repr, names)) or 'no files'}: "
            f"{sum(map(len, files)):,} bytes in {len(files)} files; {2 * SMALLEST_BLOCK:,} are the least"
        )
    keys = random_words(seed, _SPLIT, 0, len(pieces))
    count = min(max(1, round(held_out * len(pieces))), len(pieces) - 1)
    chosen = set(np.argsort(keys, kind="stable")[:count].tolist())
    sides: tuple[list[Tokens], list[Tokens]] = ([], [])
    for file, start, stop, side in _runs(pieces, chosen):
        sides[side].append(files[file][start:stop])
    parts = [Part([coder.encode(s) for s in side], sum(map(len, side))) for side in sides]
    return Corpus(parts[0], parts[1], coder.vocabulary_size, len(files), passed_over)


def load_whole(names: Sequence[str], tokenizer: str = "") -> Part:
    """Map files and split nothing, to evaluate on all of them."""
    coder = Tokenizer(tokenizer)
    files, _ = _mapped(names)
    return Part([coder.encode(file) for file in files], sum(map(len, files)))


class Tokenizer:
    """Text to tokens and back: bytes, or as a file of the package ``tokenizers`` says.

    Parameters
    ----------
    path : str
        The file; empty for bytes.

    Raises
    ------
    UserError
        The package is missing, or the file is none of its.
    """

    def __init__(self, path: str = "") -> None:
        self._coder: Any = None
        self.vocabulary_size = 256
        if path:
            self._coder = _tokenizer(path)
            self.vocabulary_size = int(self._coder.get_vocab_size())

    def encode(self, text: Tokens) -> Tokens:
        """Tokens of bytes [n] uint8; of bytes the array itself, without a copy."""
        if self._coder is None:
            return text
        ids = self._coder.encode(text.tobytes().decode(errors="replace"), add_special_tokens=False).ids
        return np.array(ids, np.int32)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """Bytes of tokens."""
        return b"".join(self.pieces(tokens))

    def pieces(self, tokens: Iterable[int]) -> Iterator[bytes]:
        """Bytes of tokens as they come."""
        if self._coder is None:
            yield from (bytes([token]) for token in tokens)
            return
        seen: list[int] = []
        written = ""  # what stands for a token depends on those before it
        for token in tokens:
            seen.append(token)
            text = self._coder.decode(seen, skip_special_tokens=False)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a letter that is not whole yet
                yield text[len(written) :].encode()
                written = text


def _tokenizer(path: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            f"tokenizer {path!r}: the package tokenizers is not installed; "
            "pip install 'libmoe[tokenizers]', or leave the option out to train on bytes"
        ) from None
    if not os.path.isfile(path):
        raise UserError(f"tokenizer: no such file: {path!r}")
    try:
        return tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the package raises plain Exception
        raise UserError(f"tokenizer {path!r}: {error}") from None


def _mapped(names: Sequence[str]) -> tuple[list[Tokens], int]:
    """Every file that is text and no copy of another, mapped; and how many were passed over."""
    files: list[Tokens] = []
    by_size: dict[int, list[Tokens]] = {}
    passed_over = 0
    for path, named in _paths(names):
        mapped = _map(path, named)
        alike = [] if mapped is None else by_size.setdefault(len(mapped), [])
        # A second copy of a file would put the same text on both sides of the split.
        if mapped is None or any(np.array_equal(mapped, other) for other in alike):
            passed_over += 1
            continue
        alike.append(mapped)
        files.append(mapped)
    return files, passed_over


def _paths(names: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """List the files, and whether the user named them; those of folders sorted, without hidden ones."""
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"no such file or folder: {name!r}")
        if not os.path.isdir(name):
            yield Path(name), True
        for folder, folders, inside in os.walk(name):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            yield from ((Path(folder, f), False) for f in sorted(inside) if not f.startswith("."))


def _map(path: Path, named: bool) -> Tokens | None:
    """Bytes of a file; None for an empty one, and in a folder for what cannot be read or is no text."""
    if not path.is_file():  # pipes and devices could make open() wait forever
        if named:
            raise UserError(f"not a regular file: {str(path)!r}")
        return None
    if path.stat().st_size == 0:
        return None
    try:
        mapped: Tokens = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        if named:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
        return None
    return None if not named and 0 in mapped[:LOOKED_AT] else mapped


_Piece = tuple[int, int, int]  # file, first byte, byte after the last


def _pieces(sizes: Sequence[int]) -> list[_Piece]:
    """Blocks of all files, in order.  The last of a file is as long as what is left."""
    block = min(max(sum(sizes) // BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)
    return [
        (file, start, min(start + block, size))
        for file, size in enumerate(sizes)
        for start in range(0, size, block)
    ]


def _runs(pieces: Sequence[_Piece], held_out: set[int]) -> Iterator[tuple[int, int, int, int]]:
    """Neighbouring blocks of one file on one side as (file, first byte, byte after the last, side)."""
    run: tuple[int, int, int, int] | None = None
    for n, (file, start, stop) in enumerate(pieces):
        side = int(n in held_out)
        if run is not None and (run[0], run[3]) == (file, side):
            run = (file, run[1], stop, side)
            continue
        if run is not None:
            yield run
        run = (file, start, stop, side)
    if run is not None:
        yield run
