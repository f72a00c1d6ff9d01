"""The text: which files, which of them are held out, and what simple counting can already predict.

A text is one array of bytes.  Every file ends with a NUL byte, which text never contains, so that the models
see where files begin and end.
"""

from __future__ import annotations

import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

END_OF_FILE = 0
LARGEST_TEXT = 64 << 20  # bytes: more would not be read within minutes
SMALLEST_PART = 1024  # bytes: below this a part says nothing
NOT_OURS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class TextError(Exception):
    """What was named does not exist, or has not enough text to train on and to hold out."""


@dataclass(frozen=True)
class Corpus:
    """Training and held-out text, and how they came about."""

    training: Bytes
    held_out: Bytes
    n_files: int
    passed_over: list[Path]  # unreadable or binary
    truncated: bool  # there was more than LARGEST_TEXT


def load(names: Sequence[str], output: Path | None = None) -> Corpus:
    """Read the named files and folders, or without names the default text, and split it.

    What is in the output folder is never text.  Raises TextError for a name that does not exist or is a file
    that is no text, and when a part is smaller than SMALLEST_PART.
    """
    named = {Path(name) for name in names if not os.path.isdir(name)}
    for name in names:
        if not os.path.exists(name):
            raise TextError(f"no such file or folder: {name!r}")
    texts: list[bytes] = []
    passed_over: list[Path] = []
    seen: set[int] = set()
    room = LARGEST_TEXT
    for path in _files(names) if names else default_files():
        if room == 0:
            break
        if output is not None and output.resolve() in path.resolve().parents:
            continue
        text = _read(path, room)
        if text is None and path in named:
            raise TextError(f"{str(path)!r} is no text: it cannot be read, or has a NUL byte; name its text")
        if text is None:
            passed_over.append(path)
            continue
        room -= len(text)
        # A second copy of a file would put the same text on both sides of the split or count it twice.
        if zlib.crc32(text) not in seen:
            seen.add(zlib.crc32(text))
            texts.append(text)
    training, held_out = _split(texts)
    if min(len(training), len(held_out)) < SMALLEST_PART:
        where = ", ".join(map(repr, names)) if names else "the default places"
        size = sum(map(len, texts))
        raise TextError(
            f"too little text in {where}: {size:,} bytes, where {11 * SMALLEST_PART:,} would do"
            f" (text files: {len(texts)}; unreadable or binary: {len(passed_over)})"
        )
    return Corpus(training, held_out, len(texts), passed_over, room == 0)


def default_files() -> Iterator[Path]:
    """Text on every machine that runs this: Python's own sources and, on Debian's kin, the licences."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in _files([str(library)]):
        if path.suffix == ".py" and NOT_OURS.isdisjoint(path.relative_to(library).parts):
            yield path
    licences = Path("/usr/share/common-licenses")
    if licences.is_dir():
        yield from _files([str(licences)])


def _files(names: Sequence[str]) -> Iterator[Path]:
    """List the named files, and those below the named folders in sorted order without hidden ones."""
    for name in names:
        if not os.path.isdir(name):
            yield Path(name)
        for folder, folders, files in os.walk(name):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            yield from (Path(folder, f) for f in sorted(files) if not f.startswith("."))


def _read(path: Path, room: int) -> bytes | None:
    """At most `room` bytes of a text file; None for what is no file, cannot be read or holds a NUL byte."""
    if not path.is_file():  # pipes and devices could make open() wait forever
        return None
    try:
        with path.open("rb") as file:
            text = file.read(room)
    except OSError:
        return None
    return None if END_OF_FILE in text else text


def _split(texts: Sequence[bytes]) -> tuple[Bytes, Bytes]:
    """Hold out a tenth of the files, chosen by their content alone so that runs on any machine agree.

    Where that leaves a part too small, as with a single file, hold out the last tenth of every file instead.
    """
    training = [text for text in texts if zlib.crc32(text) % 10]
    held_out = [text for text in texts if not zlib.crc32(text) % 10]
    if min(sum(map(len, training)), 9 * sum(map(len, held_out))) < sum(map(len, texts)) // 3:
        training = [text[: -(len(text) // 10) or None] for text in texts]
        held_out = [text[len(text) - len(text) // 10 :] for text in texts]
    return _join(training), _join(held_out)


def _join(texts: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(text + bytes([END_OF_FILE]) for text in texts), np.uint8)


def contexts(text: Bytes, positions: NDArray[np.int64], length: int) -> Bytes:
    """Take the `length` bytes before each position, oldest first; before the text stand end-of-file bytes.

    positions [T] -> [T, length]
    """
    index = positions[:, None] + np.arange(-length, 0)  # below 0 before the beginning
    return np.where(index < 0, np.uint8(END_OF_FILE), text[index])


def unigram(training: Bytes) -> NDArray[np.float64]:
    """Share of each byte in the text [256]; every byte counts as seen once more than it was."""
    return (np.bincount(training, minlength=256) + 1.0) / (len(training) + 256)


def unigram_bits(training: Bytes, text: Bytes, positions: NDArray[np.int64]) -> float:
    """Bits per byte of guessing each byte by its frequency alone."""
    return float(-np.log2(unigram(training)[text[positions]]).mean())


def bigram_bits(training: Bytes, text: Bytes, positions: NDArray[np.int64]) -> float:
    """Bits per byte of guessing each byte from the one before it.

    Rare pairs are smoothed towards the unigram model, which counts as one more sighting of each first byte.
    """
    pairs = training[:-1].astype(np.int64) * 256 + training[1:]
    counts = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)  # [first, second]
    p = (counts + unigram(training)) / (counts.sum(1, keepdims=True) + 1)
    before = contexts(text, positions, 1)[:, 0]
    return float(-np.log2(p[before, text[positions]]).mean())
