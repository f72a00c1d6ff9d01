"""What a run was trained on: the name, size and checksum of every file of its text, beside its checkpoints.

Which blocks are held out follows from the files, their order and the seed.  So the same files give the same
split for as long as the run is there, and other files none that could be trusted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import UserError
from .folder import RECORD, write_whole
from .texts import PassedOver, Text, find, listed

SHOWN = 5  # names of each kind in a list of differences


@dataclass(frozen=True)
class File:
    """One file of a text: its absolute path, its bytes and their checksum."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The text of a run.

    Attributes
    ----------
    files : tuple of File
        In the order in which they were read.
    passed_over : tuple of PassedOver
        What was not read.
    held_out, seed : float, int
        What the split was made with.
    training_bytes, held_out_bytes, training_tokens, vocabulary_size : int
        Of the text and its split.
    """

    files: tuple[File, ...]
    passed_over: tuple[PassedOver, ...]
    held_out: float
    seed: int
    training_bytes: int
    held_out_bytes: int
    training_tokens: int
    vocabulary_size: int

    def save(self, folder: Path) -> None:
        """Write texts.json, whole or not at all."""
        write_whole(folder / RECORD, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read texts.json.

        Raises
        ------
        UserError
            There is none, or it is damaged.
        """
        path = folder / RECORD
        cure = "what was held out cannot be told without it; name files to evaluate on others"
        try:
            found = json.loads(path.read_bytes())
            return cls(
                files=tuple(File(**each) for each in found.pop("files")),
                passed_over=tuple(PassedOver(**each) for each in found.pop("passed_over")),
                **found,
            )
        except OSError as error:
            raise UserError(f"{str(path)!r}: {error.strerror}: {cure}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{str(path)!r} is damaged: {cure}") from None

    @property
    def by_sum(self) -> dict[str, str]:
        """Names of the files by their checksums."""
        return {file.sha256: file.name for file in self.files}


@dataclass(frozen=True)
class Differences:
    """What is not as it was when a run began: a line for each file."""

    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def spoil(self) -> bool:
        """Whether the split is lost; a file that was added is left out and changes nothing."""
        return bool(self.changed or self.removed)

    def __str__(self) -> str:
        """All of it in one line."""
        parts = []
        for kind in ("changed", "removed", "added"):
            names: tuple[str, ...] = getattr(self, kind)
            if names:
                more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
                parts.append(f"{kind}: {', '.join(names[:SHOWN])}{more}")
        return "; ".join(parts)


def compare(
    record: Record, names: Sequence[str], own: Path, *, utf8: bool = False
) -> tuple[list[Text], Differences]:
    """Read the files of a record again.

    Parameters
    ----------
    record : Record
    names : sequence of str
        Files and folders of the settings, in which files may have been added.
    own : path
        The run's folder.
    utf8 : bool
        Whether the text has to be UTF-8.

    Returns
    -------
    texts : list of Text
        Those that are as they were.
    differences : Differences
    """
    texts: list[Text] = []
    changed, removed = [], []
    listing = _listing(names, own)
    for file in record.files:
        if not Path(file.name).exists():
            removed.append(repr(file.name))
            continue
        if file.name not in listing:
            removed.append(f"{file.name!r} (still there, but not in what the settings name)")
            continue
        try:
            (text,), _ = find([file.name], utf8=utf8)
        except (UserError, ValueError) as error:  # refused, or empty
            changed.append(f"{file.name!r} ({error if isinstance(error, UserError) else 'no text any more'})")
            continue
        if text.sha256 == file.sha256:
            texts.append(text)
            continue
        size, now = file.bytes, len(text.data)
        sizes = f"{size:,} bytes then, {now:,} now" if size != now else f"other content of {size:,} bytes"
        changed.append(f"{file.name!r} ({sizes})")
    known = {file.name for file in record.files} | {each.name for each in record.passed_over}
    added = [repr(name) for name in listing if name not in known]
    return texts, Differences(tuple(changed), tuple(removed), tuple(added))


def _listing(names: Sequence[str], own: Path) -> dict[str, None]:
    """List the files that the names stand for now, in order; what they hold is not looked at."""
    passed: list[PassedOver] = []
    there = [name for name in names if os.path.exists(name)]
    return {os.path.abspath(path): None for path, _ in listed(there, own, passed)}


def recorded(texts: Sequence[Text]) -> tuple[File, ...]:
    """Return the entries of a record."""
    return tuple(File(text.name, len(text.data), text.sha256) for text in texts)
