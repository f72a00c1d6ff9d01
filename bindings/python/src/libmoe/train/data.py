"""Text to train on: files, mapped; which of it is held out; and which windows of it a step sees.

Every file is cut into blocks of neighbouring bytes, between letters.  A share of all blocks, drawn by the
seed, is held out; no window of tokens reaches from one side to the other.  Tokens are the bytes themselves,
or those of a file of the package ``tokenizers``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import texts
from .config import Settings
from .errors import UserError
from .record import Differences, Record, compare, recorded
from .tokenizer import Tokenizer, Tokens, Unseen

SMALLEST_BLOCK = 4096  # bytes
LARGEST_BLOCK = 1 << 20
BLOCKS = 200  # of a text whose blocks lie between these

_SPLIT, _BATCHES = 1, 2  # streams of random numbers


def random_words(seed: int, stream: int, step: int, count: int) -> NDArray[np.uint64]:
    """Philox4x64-10 keyed by (seed, stream), counted from step: no draw depends on those before."""
    key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, 0, step], np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    words: NDArray[np.uint64] = generator.random_raw(count)
    return words


class Part:
    """One side of the split: spans of neighbouring tokens.

    A span that is shorter than a window is joined to others, so that every token can be read: the short ones
    follow each other with a separator between them.

    Parameters
    ----------
    spans : sequence of ndarray of uint8 or int32, [n]
        They may be views of mapped files.
    n_bytes : int
        Bytes of text that these tokens stand for.
    separator : int, optional
        The token between two spans that are joined.
    """

    def __init__(self, spans: Sequence[Tokens], n_bytes: int, separator: int | None = None) -> None:
        self.spans = list(spans)
        self.n_bytes = n_bytes
        self.n_tokens = sum(len(span) for span in spans)
        self.separator = separator
        self._of_length: dict[int, tuple[list[Tokens], NDArray[np.int64]]] = {}

    @property
    def bits(self) -> float:
        """Bits per byte that a nat per token is."""
        return self.n_tokens / self.n_bytes / math.log(2)

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
        spans, places = self._places(length)
        words = random_words(seed, _BATCHES, step, count)
        # 53 bits of a word as a fraction: the bias is below 2^-20 for a text of a terabyte.
        index = ((words >> np.uint64(11)) * 2.0**-53 * places[-1]).astype(np.int64)
        windows = np.empty((count, length), np.int32)
        of = np.searchsorted(places, index, side="right")
        for row, (span, place) in enumerate(zip(of, index)):
            start = place - (places[span - 1] if span else 0)
            windows[row] = spans[span][start : start + length]
        return windows

    def spread(self, most: int, length: int) -> NDArray[np.int32]:
        """Return at most so many windows without a common token, spread evenly over the text.

        Returns
        -------
        ndarray of int32, [n, length]
        """
        spans, _ = self._places(length)  # there is one at least
        counts = np.cumsum([len(span) // length for span in spans], dtype=np.int64)
        count = int(counts[-1])
        chosen = np.linspace(0, count - 1, min(most, count)).astype(np.int64)
        windows = np.empty((len(chosen), length), np.int32)
        of = np.searchsorted(counts, chosen, side="right")
        for row, (span, number) in enumerate(zip(of, chosen)):
            start = (number - (counts[span - 1] if span else 0)) * length
            windows[row] = spans[span][start : start + length]
        return windows

    def _places(self, length: int) -> tuple[list[Tokens], NDArray[np.int64]]:
        """Return spans of a window at least, and the places for one up to the end of each, added up."""
        if length not in self._of_length:
            spans = self._joined(length)
            counts = np.cumsum([len(span) - length + 1 for span in spans], dtype=np.int64)
            self._of_length[length] = spans, counts
        return self._of_length[length]

    def _joined(self, length: int) -> list[Tokens]:
        spans = [span for span in self.spans if len(span) >= length]
        short = [span for span in self.spans if 0 < len(span) < length]
        if not short:
            joined = np.empty(0, np.int32)
        elif sum(map(len, short)) < length and spans:  # with the end of a long one before them
            joined = self._one([spans[-1][-length:], *short])
        else:
            joined = self._one(short)
        if len(joined) >= length:
            spans.append(joined)
        if not spans:
            raise UserError(
                f"sequence_length {length - 1}: no {length} tokens are on one side of the text's split, "
                f"{len(joined)} at most; give more text, or train on shorter sequences"
            )
        return spans

    def _one(self, spans: Sequence[Tokens]) -> Tokens:
        between = [] if self.separator is None else [np.array([self.separator], spans[0].dtype)]
        parts = [part for span in spans for part in (*between, span)]
        return np.concatenate(parts[len(between) :])


@dataclass(frozen=True)
class Corpus:
    """A text and its split.

    Attributes
    ----------
    training, held_out : Part
    vocabulary_size : int
        256 of bytes.
    record : Record
        Every file that was read, and what was passed over.
    unseen : Unseen
        What of the text the tokenizer has no tokens for.
    differences : Differences
        Of a recorded text, files that were added since, which are not read.
    """

    training: Part
    held_out: Part
    vocabulary_size: int
    record: Record
    unseen: Unseen
    differences: Differences = Differences()

    @property
    def added(self) -> str:
        """What a user should know of files that were added since the run began, or nothing."""
        found = self.differences
        return f"files that were not there when the run began are not read: {found}" if found.added else ""

    @property
    def n_files(self) -> int:
        """Files that were read."""
        return len(self.record.files)

    @property
    def n_bytes(self) -> int:
        """Bytes on both sides."""
        return self.training.n_bytes + self.held_out.n_bytes


def load(
    names: Sequence[str], *, held_out: float, seed: int, tokenizer: str = "", own: Path | None = None
) -> Corpus:
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
    own : path, optional
        Folder of the run that reads: what is in it is never text.

    Raises
    ------
    UserError
        A name does not exist or is no text, there is too little text, or the tokenizer cannot be used.
    """
    coder = Tokenizer(tokenizer)
    found, passed_over = texts.find(names, utf8=bool(tokenizer), own=own)
    corpus = _split(found, passed_over, coder, held_out, seed)
    if corpus is None:
        size = sum(len(text.data) for text in found)
        raise UserError(
            f"too little text in {', '.join(map(repr, names)) or 'no files'}: {size:,} bytes in {len(found)} "
            f"files; two files, or {SMALLEST_BLOCK + 1:,} bytes, are the least, of which one part is held out"
            + (f"\n{texts.told(passed_over)}" if passed_over else "")
        )
    return corpus


def load_recorded(folder: Path, settings: Settings) -> Corpus:
    """Map the text of a run again, and split it as it was.

    Files that were added since are not read; `differences` of the corpus has them.

    Raises
    ------
    UserError
        Files were changed or removed: what was held out cannot be told from what was trained on.
    """
    record = Record.load(folder)
    for name in ("held_out", "seed"):
        then, now = getattr(record, name), getattr(settings, name)
        if then != now:
            raise UserError(
                f"{name} = {now}: the text of this run was split with {then}, and what was trained on "
                "would be held out; it cannot change in a run that goes on"
            )
    found, differences = compare(record, settings.files, folder, utf8=bool(settings.tokenizer))
    corpus = None
    if not differences.spoil:
        coder = Tokenizer(settings.tokenizer)
        corpus = _split(found, record.passed_over, coder, settings.held_out, settings.seed)
    if corpus is None:
        raise UserError(
            f"the text is not the one this run began with ({differences}), so that held-out text cannot be "
            "told from what was trained on: put the files back as they were, or name other files for eval"
        )
    return replace(corpus, record=record, differences=differences)


def load_whole(names: Sequence[str], tokenizer: str = "") -> Part:
    """Map files and split nothing, to evaluate on all of them."""
    found, _ = texts.find(names, utf8=bool(tokenizer))
    return whole(found, Tokenizer(tokenizer))


def whole(found: Sequence[texts.Text], coder: Tokenizer) -> Part:
    """Return files as one part, without a split."""
    if not found:
        raise UserError("no text in the files that were named")
    files = [text.data for text in found]
    return Part([coder.encode(file) for file in files], sum(map(len, files)), coder.separator)


def _split(
    found: Sequence[texts.Text],
    passed_over: Sequence[texts.PassedOver],
    coder: Tokenizer,
    held_out: float,
    seed: int,
) -> Corpus | None:
    """Split texts into what is trained on and what is held out; None where there is too little."""
    files = [text.data for text in found]
    pieces = _pieces(files)
    if len(pieces) < 2:
        return None
    keys = random_words(seed, _SPLIT, 0, len(pieces))
    count = min(max(1, round(held_out * len(pieces))), len(pieces) - 1)
    chosen = set(np.argsort(keys, kind="stable")[:count].tolist())
    sides: tuple[list[Tokens], list[Tokens]] = ([], [])
    n_bytes, unseen = [0, 0], Unseen()
    for file, start, stop, side in _runs(pieces, chosen):
        tokens, lost = coder.encoded(files[file][start:stop])
        sides[side].append(tokens)
        n_bytes[side] += stop - start
        unseen += lost
    training, rest = (Part(spans, size, coder.separator) for spans, size in zip(sides, n_bytes))
    record = Record(
        recorded(found),
        tuple(passed_over),
        held_out,
        seed,
        training.n_bytes,
        rest.n_bytes,
        training.n_tokens,
        coder.vocabulary_size,
    )
    return Corpus(training, rest, coder.vocabulary_size, record, unseen)


_Piece = tuple[int, int, int]  # file, first byte, byte after the last


def _pieces(files: Sequence[Tokens]) -> list[_Piece]:
    """Blocks of all files, in order.  The last of a file is as long as what is left."""
    block = min(max(sum(map(len, files)) // BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)
    pieces = []
    for number, file in enumerate(files):
        start = 0
        while start < len(file):
            stop = _between_letters(file, min(start + block, len(file)))
            pieces.append((number, start, stop))
            start = stop
    return pieces


def _between_letters(file: Tokens, place: int) -> int:
    """Return the place, or the one before the letter of UTF-8 that it would cut in two."""
    for back in range(4):  # a letter has at most 3 bytes behind its first
        if place == len(file) or file[place - back] & 0xC0 != 0x80:
            return place - back
    return place  # no UTF-8


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
